"""Conditions on the columns of rows, and which rows meet them.

The logic is that of SQL: a comparison with null is neither true nor false, so a row whose value is
not known meets neither `width > 1000` nor `not width > 1000`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import BadInput, UnknownName
from retrieval.where.values import Interval, forms, interval_of, number_of, truth_of

Truth: TypeAlias = pa.ChunkedArray
"""(rows,) booleans; null where it is not known whether the row meets a condition."""

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
CHECKED = ("id", "label")
"""Columns for which a value that no row has is an error: it is a slip of the pen."""


class ColumnValues(Protocol):
    """The columns of rows, by name."""

    @property
    def names(self) -> list[str]:
        """The names of all columns."""

    def column(self, name: str) -> pa.ChunkedArray:
        """Return the values of a column."""


class Condition(Protocol):
    """A condition that each row meets or not."""

    def met(self, columns: ColumnValues) -> Truth:
        """Return which rows meet the condition.

        Raises UnknownName for a column or label that there is not, BadInput for a value that does
        not fit the column.
        """


@dataclass(frozen=True, slots=True)
class Value:
    """A value as it is written."""

    text: str
    is_quoted: bool = False


@dataclass(frozen=True, slots=True)
class ColumnComparison:
    """`column = values`: the column is any of the values; `!=`: none; `<` and others take one."""

    column: str
    operator: str
    values: tuple[Value, ...]

    def met(self, columns: ColumnValues) -> Truth:
        found = _column(columns, self.column)
        if self.operator in ("=", "!="):
            is_any = self._equal(columns, found)
            return is_any if self.operator == "=" else pc.invert(is_any)
        (value,) = self.values
        if (other := _other_column(columns, found, value)) is not None:
            return _compared(self.operator, found, other)
        if pa.types.is_timestamp(found.type):
            return _compared_times(found, self.operator, interval_of(value.text, found.type))
        return _compared(self.operator, found, _scalar(self.column, found, value))

    def _equal(self, columns: ColumnValues, found: pa.ChunkedArray) -> Truth:
        """Return which rows have one of the values."""
        if pa.types.is_string(found.type):
            return self._equal_text(found)
        each = [self._equal_value(columns, found, value) for value in self.values]
        return _joined(pc.or_kleene, each)

    def _equal_value(self, columns: ColumnValues, found: pa.ChunkedArray, value: Value) -> Truth:
        if (other := _other_column(columns, found, value)) is not None:
            return _compared("=", found, other)
        if pa.types.is_timestamp(found.type):
            return _compared_times(found, "=", interval_of(value.text, found.type))
        return _compared("=", found, _scalar(self.column, found, value))

    def _equal_text(self, found: pa.ChunkedArray) -> Truth:
        wanted = {form: value.text for value in self.values for form in forms(value.text)}
        is_any = pc.is_in(found, value_set=pa.array([*wanted], pa.string()))
        if self.column in CHECKED:
            present = {wanted[each] for each in found.filter(is_any).unique().to_pylist()}
            for value in self.values:
                if value.text not in present:
                    raise unknown_value(self.column, value.text, found)
        return pc.if_else(found.is_valid(), is_any, None)


@dataclass(frozen=True, slots=True)
class Between:
    """`column between first and last`, both included."""

    column: str
    first: Value
    last: Value

    def met(self, columns: ColumnValues) -> Truth:
        ends = (
            ColumnComparison(self.column, ">=", (self.first,)),
            ColumnComparison(self.column, "<=", (self.last,)),
        )
        return AllOf(ends).met(columns)


@dataclass(frozen=True, slots=True)
class Like:
    """`column like pattern`: % is any text, _ any character, and a backslash takes a sign as it is.

    ignore_case: `ilike`.
    """

    column: str
    pattern: str
    ignore_case: bool = False

    def met(self, columns: ColumnValues) -> Truth:
        found = _column(columns, self.column)
        if not pa.types.is_string(found.type):
            raise BadInput(
                f"like compares text, and column {self.column} holds {kind_of(found)}; use = or <"
            )
        each = [
            pc.match_like(found, form, ignore_case=self.ignore_case) for form in forms(self.pattern)
        ]
        return _joined(pc.or_kleene, each)


@dataclass(frozen=True, slots=True)
class IsNull:
    """`column is null`: the value is not known."""

    column: str

    def met(self, columns: ColumnValues) -> Truth:
        return _column(columns, self.column).is_null()


@dataclass(frozen=True, slots=True)
class Not:
    """`not condition`."""

    condition: Condition

    def met(self, columns: ColumnValues) -> Truth:
        return pc.invert(self.condition.met(columns))


@dataclass(frozen=True, slots=True)
class AllOf:
    """`condition and condition …`."""

    conditions: tuple[Condition, ...]

    def met(self, columns: ColumnValues) -> Truth:
        return _joined(pc.and_kleene, [each.met(columns) for each in self.conditions])


@dataclass(frozen=True, slots=True)
class AnyOf:
    """`condition or condition …`."""

    conditions: tuple[Condition, ...]

    def met(self, columns: ColumnValues) -> Truth:
        return _joined(pc.or_kleene, [each.met(columns) for each in self.conditions])


def unknown_value(column: str, value: str, found: pa.ChunkedArray) -> BadInput:
    """Return the error for an id or label that no row has."""
    if column == "label":
        known = [each for each in found.unique().to_pylist() if each is not None]
        return UnknownName("label in the index", value, known)
    return BadInput(f"no row of the index has the {column} '{value}'; give another {column}")


def kind_of(found: pa.ChunkedArray) -> str:
    """Return words for the values of a column."""
    kind = found.type
    if pa.types.is_timestamp(kind):
        return "times"
    if pa.types.is_boolean(kind):
        return "true and false"
    return "text" if pa.types.is_string(kind) else "numbers"


def _column(columns: ColumnValues, name: str) -> pa.ChunkedArray:
    if name not in columns.names:
        raise UnknownName("column to filter by", name, columns.names)
    return columns.column(name)


def _other_column(
    columns: ColumnValues, found: pa.ChunkedArray, value: Value
) -> pa.ChunkedArray | None:
    """Return the column that a word on the right names, to compare numbers or times with it."""
    if value.is_quoted or value.text not in columns.names or pa.types.is_string(found.type):
        return None
    other = columns.column(value.text)
    if kind_of(other) != kind_of(found):
        raise BadInput(
            f"column {value.text} holds {kind_of(other)}, not {kind_of(found)}; compare columns of "
            "one kind"
        )
    return other


def _scalar(column: str, found: pa.ChunkedArray, value: Value) -> object:
    """Return the value as one of the column's type. Raises BadInput."""
    if pa.types.is_string(found.type):
        return value.text
    convert = truth_of if pa.types.is_boolean(found.type) else number_of
    converted = convert(value.text)
    if converted is None:
        raise BadInput(
            f"column {column} holds {kind_of(found)}, not '{value.text}'; give one of these"
        )
    return converted


def _compared(operator: str, found: pa.ChunkedArray, other: object) -> Truth:
    """Compare a column with a value or a column. Whole numbers and others compare as float64."""
    kind = other.type if isinstance(other, pa.ChunkedArray) else None
    if pa.types.is_integer(found.type) and (kind == pa.float64() or isinstance(other, float)):
        found = pc.cast(found, pa.float64(), safe=False)
    elif pa.types.is_floating(found.type):
        if kind is not None:
            other = pc.cast(other, pa.float64(), safe=False)
        elif isinstance(other, int):
            other = float(other)
    return _COMPARE[operator](found, other)


def _compared_times(found: pa.ChunkedArray, operator: str, interval: Interval) -> Truth:
    """Compare times with a day, month or other interval: < is before it, > is after it."""
    start, end = (pa.scalar(each, found.type) for each in interval)
    match operator:
        case "<":
            return pc.less(found, start)
        case "<=":
            return pc.less(found, end)
        case ">":
            return pc.greater_equal(found, end)
        case ">=":
            return pc.greater_equal(found, start)
        case _:
            return pc.and_kleene(pc.greater_equal(found, start), pc.less(found, end))


def _joined(function: Callable[[Any, Any], Any], each: list[Truth]) -> Truth:
    found = each[0]
    for other in each[1:]:
        found = function(found, other)
    return found
