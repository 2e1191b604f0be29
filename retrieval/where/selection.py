"""Select the rows of an index that a search may find."""

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from retrieval.contracts import Filter, Mask
from retrieval.errors import BadInput
from retrieval.values import shown
from retrieval.where.values import forms

if TYPE_CHECKING:
    from retrieval.index.row_tables import RowColumns
    from retrieval.where.conditions import Condition

SHORT_FIELDS = ("id", "label")
"""Columns whose values may be written without quotes: `label=hot dog,cat`."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The rows of one index that match a filter.

    mask: (rows,). where: the filter, if it is one of id or label that a backend can apply itself.
    condition: the same for backends that know all columns.
    """

    where: Filter | None
    mask: Mask
    condition: "Condition | None" = None


def select_rows(rows: pa.Table, where: str, columns: "RowColumns | None" = None) -> Selection:
    """Return the rows that match a filter: `FIELD=VALUE[,VALUE…]`, or an expression.

    rows: id, label and path. columns: further columns of the same rows. See docs/filters.md.

    Raises BadInput for text that is neither, for an id that no row has and for a value that does
    not fit its column; UnknownName for a label that no row has, and for a column that there is not.
    """
    import pyarrow.compute as pc

    if not isinstance(where, str):
        raise BadInput(f"the filter is {shown(where)}; give text such as 'label = cat'")
    table = _RowColumns(rows, columns)
    short = _short_filter(table, where)
    if short is not None:
        mask = pc.is_in(rows[short.field], value_set=pa.array(short.values, pa.string()))
        return Selection(short, mask.to_numpy(), _condition_of(short))
    condition = _condition(table, where)
    mask = pc.fill_null(condition.met(table), False)
    return Selection(_filter_of(condition), mask.to_numpy(), condition)


def _condition(table: "_RowColumns", where: str) -> "Condition":
    """Parse the expression. Raises UnknownName or BadInput."""
    from retrieval.where.conditions import unknown_value
    from retrieval.where.grammar import parsed

    try:
        return parsed(where)
    except BadInput:
        field, equals, written = where.partition("=")
        if not (equals and written and field in SHORT_FIELDS):
            raise
        column = table.column(field)
        present = _present(column, written)
        missing = [v for v in _readings(written)[-1] if present.isdisjoint(forms(v))]
        raise unknown_value(field, missing[0], column) from None


def _filter_of(condition: "Condition") -> Filter | None:
    """Return the condition as a filter that a backend may apply; None if it is another one."""
    from retrieval.where.conditions import ColumnComparison

    if not isinstance(condition, ColumnComparison) or condition.column not in SHORT_FIELDS:
        return None
    if condition.operator != "=":
        return None
    named = (form for value in condition.values for form in forms(value.text))
    return Filter(condition.column, tuple(dict.fromkeys(named)))


def _condition_of(where: Filter) -> "Condition":
    from retrieval.where.conditions import ColumnComparison, Value

    return ColumnComparison(where.field, "=", tuple(Value(each, True) for each in where.values))


class _RowColumns:
    """All columns of the rows of an index."""

    def __init__(self, rows: pa.Table, further: "RowColumns | None") -> None:
        self._rows = rows
        self._further = further
        self._read: dict[str, pa.ChunkedArray] = {}

    @property
    def names(self) -> list[str]:
        """The names of all columns."""
        more = [] if self._further is None else self._further.names
        return [*self._rows.column_names, *more]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return the values of a column."""
        if name in self._rows.column_names or self._further is None:
            return self._rows[name]
        if name not in self._read:
            self._read[name] = self._further.table([name])[name]
        return self._read[name]


def _short_filter(table: _RowColumns, where: str) -> Filter | None:
    """Return the filter `FIELD=VALUE[,VALUE…]` if that is what the text is, and all values exist.

    A value with a comma is quoted, as in CSV: `label="a, b",c`. Quotes may be left out if the whole
    text after = is a value of some row. Unicode NFC and NFD forms of a value are equal.
    """
    field, equals, written = where.partition("=")
    if not equals or not written or field not in SHORT_FIELDS:
        return None
    present = _present(table.column(field), written)
    for values in _readings(written):
        if not any(present.isdisjoint(forms(value)) for value in values):
            return Filter(field, tuple(dict.fromkeys(f for v in values for f in forms(v))))
    return None


def _present(column: pa.ChunkedArray, written: str) -> set[str]:
    """Return the values of the column that the text may name."""
    import pyarrow.compute as pc

    named = {form for values in _readings(written) for value in values for form in forms(value)}
    mask = pc.is_in(column, value_set=pa.array(sorted(named), pa.string()))
    return {*column.filter(mask).unique().to_pylist()}


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
