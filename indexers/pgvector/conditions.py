"""Conditions on rows as SQL, with quoted columns and bound values.

A condition that PostgreSQL might decide differently from `Condition.met` is not translated. Rows of
such a condition are listed by their keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from retrieval.errors import BadInput
from retrieval.where.conditions import (
    AllOf,
    AnyOf,
    Between,
    ColumnComparison,
    Condition,
    IsNull,
    Like,
    Not,
    Value,
)
from retrieval.where.values import forms, interval_of, number_of, truth_of

TIME_TYPES = {"timestamp": pa.timestamp("ms"), "timestamptz": pa.timestamp("ms", "UTC")}
MAX_TERMS = 200  # longer conditions list their rows


@dataclass(frozen=True)
class SqlCondition:
    """A condition of a query. sql: a psycopg.sql.Composable with a placeholder for each value."""

    sql: Any
    values: tuple[Any, ...]

    def __and__(self, other: "SqlCondition") -> "SqlCondition":
        return _joined(" AND ", [self, other])


class _Untranslatable(Exception):
    """SQL might decide the condition differently."""


def sql_of(condition: Condition, kinds: Mapping[str, str]) -> SqlCondition | None:
    """Return the condition as SQL; None if it is listed by its rows instead.

    kinds: the type of each column in the table.
    """
    try:
        found = _sql(condition, kinds)
    except (_Untranslatable, BadInput, RecursionError):
        return None
    return found if len(found.values) <= MAX_TERMS else None


def keys_condition(column: str, keys: list[int], listed: bool) -> SqlCondition:
    """Return the condition that a key is, or is not, in the list."""
    text = "{} = ANY(%s::bigint[])" if listed else "NOT {} = ANY(%s::bigint[])"
    return _term(text, column, keys)


def keys_below(column: str, end: int) -> SqlCondition:
    """Return the condition that a key is below the end."""
    return _term("{} < %s::bigint", column, end)


def name_beside_values(*names: str) -> Any:
    """Return the quoted name of a column or table, for a query with placeholders.

    psycopg reads such a query for placeholders, names included, and %% is a percent sign there.
    """
    from psycopg import sql

    return sql.Identifier(*(name.replace("%", "%%") for name in names))


def _sql(condition: Condition, kinds: Mapping[str, str]) -> SqlCondition:
    match condition:
        case AllOf(conditions):
            return _joined(" AND ", [_sql(each, kinds) for each in conditions])
        case AnyOf(conditions):
            return _joined(" OR ", [_sql(each, kinds) for each in conditions])
        case Not(inner):
            return _negated(_sql(inner, kinds))
        case IsNull(column):
            _kind(column, kinds)
            return _term("{} IS NULL", column)
        case Between(column, first, last):
            ends = ColumnComparison(column, ">=", (first,)), ColumnComparison(column, "<=", (last,))
            return _joined(" AND ", [_sql(each, kinds) for each in ends])
        case Like(column, pattern, ignore_case):
            return _like(column, pattern, ignore_case, kinds)
        case ColumnComparison():
            return _comparison(condition, kinds)
    raise _Untranslatable


def _comparison(condition: ColumnComparison, kinds: Mapping[str, str]) -> SqlCondition:
    column, operator = condition.column, condition.operator
    kind = _kind(column, kinds)
    if kind == "text":
        return _text(condition)
    for value in condition.values:
        if not value.is_quoted and value.text in kinds:  # the word may name a column
            raise _Untranslatable
    if operator in ("=", "!="):
        each = [_one(column, "=", value, kind) for value in condition.values]
        equal = _joined(" OR ", each)
        return equal if operator == "=" else _negated(equal)
    return _one(column, operator, condition.values[0], kind)


def _text(condition: ColumnComparison) -> SqlCondition:
    column = condition.column
    if condition.operator in ("=", "!="):
        wanted = [form for value in condition.values for form in forms(value.text)]
        if any("\0" in each for each in wanted):
            raise _Untranslatable
        equal = _term('{} COLLATE "C" = ANY(%s::text[])', column, list(dict.fromkeys(wanted)))
        return equal if condition.operator == "=" else _negated(equal)
    (value,) = condition.values
    if "\0" in value.text:
        raise _Untranslatable
    return _term(f'{{}} COLLATE "C" {_safe(condition.operator)} %s::text', column, value.text)


def _one(column: str, operator: str, value: Value, kind: str) -> SqlCondition:
    """Return a comparison of a number, a boolean or a time."""
    if kind in TIME_TYPES:
        start, end = interval_of(value.text, TIME_TYPES[kind])
        if kind == "timestamp":
            start, end = start.replace(tzinfo=None), end.replace(tzinfo=None)
        match operator:
            case "<":
                return _term(f"{{}} < %s::{kind}", column, start)
            case "<=":
                return _term(f"{{}} < %s::{kind}", column, end)
            case ">":
                return _term(f"{{}} >= %s::{kind}", column, end)
            case ">=":
                return _term(f"{{}} >= %s::{kind}", column, start)
        return _joined(
            " AND ",
            [
                _term(f"{{}} >= %s::{kind}", column, start),
                _term(f"{{}} < %s::{kind}", column, end),
            ],
        )
    converted = truth_of(value.text) if kind == "bool" else number_of(value.text)
    if converted is None or (kind == "bool" and operator != "="):
        raise _Untranslatable
    if kind == "bool":
        return _term("{} = %s::bool", column, converted)
    if kind == "int8" and isinstance(converted, int):
        return _term(f"{{}} {_safe(operator)} %s::int8", column, converted)
    return _term(f"{{}}::float8 {_safe(operator)} %s::float8", column, float(converted))


def _like(column: str, pattern: str, ignore_case: bool, kinds: Mapping[str, str]) -> SqlCondition:
    if _kind(column, kinds) != "text" or ignore_case or "\\" in pattern or "\0" in pattern:
        raise _Untranslatable
    return _joined(" OR ", [_term("{} LIKE %s::text", column, form) for form in forms(pattern)])


def _kind(column: str, kinds: Mapping[str, str]) -> str:
    if column not in kinds:
        raise _Untranslatable
    return kinds[column]


def _safe(operator: str) -> str:
    """Return the operator, which becomes a part of the query, if it is one of SQL."""
    if operator not in ("=", "<", "<=", ">", ">="):
        raise _Untranslatable
    return operator


def _term(text: str, column: str, *values: Any) -> SqlCondition:
    from psycopg import sql

    return SqlCondition(sql.SQL(text).format(name_beside_values(column)), values)


def _negated(inner: SqlCondition) -> SqlCondition:
    from psycopg import sql

    return SqlCondition(sql.SQL("NOT ({})").format(inner.sql), inner.values)


def _joined(word: str, each: list[SqlCondition]) -> SqlCondition:
    from psycopg import sql

    texts = [sql.SQL("({})").format(one.sql) for one in each]
    return SqlCondition(
        sql.SQL(word).join(texts), tuple(value for one in each for value in one.values)
    )
