"""Filters: which rows of an index a search may find, as text such as `label = cat`.

`grammar` turns text into conditions, `conditions` applies them to columns, and `selection` is what
searches use. docs/filters.md describes the language.
"""
