"""Endings of the files of tables and archives, in lower case."""

PARQUET = frozenset({".parquet"})
ARROW = frozenset({".arrow"})
TAR = frozenset({".tar"})
