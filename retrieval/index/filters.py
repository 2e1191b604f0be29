"""Filter the rows of an index by text such as `label=cat,dog`."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import normalize

import pyarrow as pa

from retrieval.contracts import Filter, Mask
from retrieval.errors import BadInput, UnknownName
from retrieval.storage.names import storable
from retrieval.values import shown

FILTER_FIELDS = ("id", "label")
"""Columns that a filter can name."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """A filter, and the mask (rows,) of the rows of one index that match it."""

    where: Filter
    mask: Mask


def parse_filter(rows: pa.Table, where: str) -> Filter:
    """Parse a filter `FIELD=VALUE[,VALUE…]`.

    A value with a comma is quoted, as in CSV: `label="a, b",c`. Quotes may be left out if the whole
    text after = is a value of some row. Unicode NFC and NFD forms of a value are equal.

    Raises BadInput for other text and for an id that no row has; UnknownName for a label that no
    row has, and for another field.
    """
    import pyarrow.compute as pc  # slow to import, and most searches have no filter

    if not isinstance(where, str):
        raise BadInput(f"the filter is {shown(where)}; give text such as 'label=cat'")
    field, equals, written = where.partition("=")
    if not equals or not written:
        raise BadInput(f"invalid filter '{where}'; write it as 'label=cat'")
    if field not in FILTER_FIELDS:
        raise UnknownName("field to filter by", field, FILTER_FIELDS)
    readings = _readings(written)
    named = {form for values in readings for value in values for form in _forms(value)}
    column = rows[field]
    mask = pc.is_in(column, value_set=pa.array(sorted(named), pa.string()))
    present = set(column.filter(mask).unique().to_pylist())

    def missing(values: Sequence[str]) -> list[str]:
        return [value for value in values if present.isdisjoint(_forms(value))]

    values = next((each for each in readings if not missing(each)), readings[-1])
    if unknown := missing(values):
        if field == "label":
            known = [v for v in column.unique().to_pylist() if v is not None]
            raise UnknownName("label in the index", unknown[0], known)
        raise BadInput(f"no row of the index has the id '{unknown[0]}'; give another id")
    forms = dict.fromkeys(form for value in values for form in _forms(value))
    return Filter(field, tuple(forms))


def select_rows(rows: pa.Table, where: str) -> Selection:
    """Return the rows that match the filter `FIELD=VALUE[,VALUE…]`.

    Raises the errors of `parse_filter`.
    """
    import pyarrow.compute as pc

    wanted = parse_filter(rows, where)
    values = pa.array(wanted.values, pa.string())
    return Selection(wanted, pc.is_in(rows[wanted.field], value_set=values).to_numpy())


def _readings(written: str) -> list[tuple[str, ...]]:
    """Return possible readings of the values, the most likely last.

    The text may be a single value with commas, values without quotes, or values with quotes.
    """
    readings = [(written,), tuple(written.split(","))]
    try:
        (values,) = csv.reader([written], strict=True, skipinitialspace=True)
    except (csv.Error, ValueError):
        return readings
    return [*readings, tuple(values)]


def _forms(value: str) -> tuple[str, ...]:
    """Return the value as typed and as names are stored, each in NFC and in NFD.

    macOS writes file names in NFD.
    """
    typed = value.encode("utf-8", "backslashreplace").decode()
    forms = (normalize(form, each) for each in (typed, storable(value)) for form in ("NFC", "NFD"))
    return tuple(dict.fromkeys(forms))
