"""Filters over the rows of an index, as text: `label=cat,dog`."""

import csv
from collections.abc import Sequence
from unicodedata import normalize

import pyarrow as pa

from retrieval.contracts import Filter, Mask
from retrieval.errors import BadInput, UnknownName
from retrieval.storage.names import storable
from retrieval.values import shown

FILTER_FIELDS = ("id", "label")
"""Columns that a filter can name."""


def parsed(rows: pa.Table, where: str) -> Filter:
    """Return the filter that is written `FIELD=VALUE[,VALUE…]`.

    A value with a comma stands in quotes, as in CSV: `label="a, b",c`. Quotes are not needed where
    all of the text is one value that a row has. Values match in Unicode NFC and NFD alike.

    Raises BadInput for other text and for an id that no row has, UnknownName for a label that no
    row has and for a field that cannot be filtered by.
    """
    import pyarrow.compute as pc  # most searches filter nothing, and need not wait for it

    if not isinstance(where, str):
        raise BadInput(f"the filter is {shown(where)}; give text such as 'label=cat'")
    field, equals, written = where.partition("=")
    if not equals or not written:
        raise BadInput(f"the filter '{where}' is not understood; write --where 'label=cat'")
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
        raise BadInput(f"no row of the index has the id '{unknown[0]}'; give one that is there")
    forms = dict.fromkeys(form for value in values for form in _forms(value))
    return Filter(field, tuple(forms))


def matching(rows: pa.Table, where: str) -> Mask:
    """True for each row that the filter `FIELD=VALUE[,VALUE…]` admits, (rows,).

    Raises what `parsed` raises.
    """
    import pyarrow.compute as pc

    wanted = parsed(rows, where)
    values = pa.array(wanted.values, pa.string())
    mask: Mask = pc.is_in(rows[wanted.field], value_set=values).to_numpy()
    return mask


def _readings(written: str) -> list[tuple[str, ...]]:
    """Return the readings of the values: one value with commas, plain, quoted; likeliest last."""
    readings = [(written,), tuple(written.split(","))]
    try:
        (values,) = csv.reader([written], strict=True, skipinitialspace=True)
    except (csv.Error, ValueError):
        return readings
    return [*readings, tuple(values)]


def _forms(value: str) -> tuple[str, ...]:
    """Return the value as typed and as a name is stored, in both normal forms: macOS writes NFD."""
    typed = value.encode("utf-8", "backslashreplace").decode()
    forms = (normalize(form, each) for each in (typed, storable(value)) for form in ("NFC", "NFD"))
    return tuple(dict.fromkeys(forms))
