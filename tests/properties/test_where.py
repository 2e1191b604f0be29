"""Filters: random expressions select the rows that a plain reading of them selects."""

import operator
from collections.abc import Callable

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from retrieval.where.selection import select_rows

NUMBERS = st.none() | st.integers(-3, 3)
WORDS = st.none() | st.sampled_from(["ab", "b", "a b", "it's", "and", "1"])
COMPARE: dict[str, Callable[[int, int], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Row = dict[str, int | str | None]
Meaning = Callable[[Row], bool | None]
"""Whether a row meets a condition; None if that is not known."""


class Held:
    """Further columns in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.held = table
        self.names = table.column_names

    def table(self, names: list[str]) -> pa.Table:
        return self.held.select(names)


def quoted(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"


def comparison(column: str, sign: str, number: int) -> tuple[str, Meaning]:
    def met(row: Row) -> bool | None:
        value = row[column]
        return COMPARE[sign](value, number) if isinstance(value, int) else None

    return f"{column} {sign} {number}", met


def among(column: str, words: list[str], has_not: bool) -> tuple[str, Meaning]:
    def met(row: Row) -> bool | None:
        value = row[column]
        return None if value is None else (value in words) != has_not

    listed = ", ".join(map(quoted, words))
    return f"{column} {'not in' if has_not else 'in'} ({listed})", met


def is_null(column: str, has_not: bool) -> tuple[str, Meaning]:
    text = f"{column} is {'not ' if has_not else ''}null"
    return text, lambda row: (row[column] is None) != has_not


def negated(inner: tuple[str, Meaning]) -> tuple[str, Meaning]:
    text, meaning = inner

    def met(row: Row) -> bool | None:
        found = meaning(row)
        return None if found is None else not found

    return f"not ({text})", met


def joined(parts: list[tuple[str, Meaning]], word: str) -> tuple[str, Meaning]:
    decisive = word == "or"  # a value of one part that decides

    def met(row: Row) -> bool | None:
        found = [meaning(row) for _, meaning in parts]
        if decisive in found:
            return decisive
        return None if None in found else not decisive

    return f" {word} ".join(f"({text})" for text, _ in parts), met


LEAVES = (
    st.builds(comparison, st.sampled_from("mn"), st.sampled_from([*COMPARE]), st.integers(-3, 3))
    | st.builds(
        among,
        st.just("w"),
        st.lists(st.sampled_from(["ab", "b", "a b", "it's", "and", "1", "none"]), min_size=1),
        st.booleans(),
    )
    | st.builds(is_null, st.sampled_from("mnw"), st.booleans())
)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(negated, inner)
        | st.builds(joined, st.lists(inner, min_size=1, max_size=3), st.sampled_from(["and", "or"]))
    ),
    max_leaves=8,
)
TABLES = st.lists(st.fixed_dictionaries({"m": NUMBERS, "n": NUMBERS, "w": WORDS}), max_size=12)


@given(EXPRESSIONS, TABLES)
def test_expressions_mean_what_they_say(expression: tuple[str, Meaning], found: list[Row]) -> None:
    text, meaning = expression
    names = [f"{number}.jpg" for number in range(len(found))]
    rows = pa.table({name: pa.array(names, pa.string()) for name in ("id", "label", "path")})
    columns = pa.table(
        {
            "m": pa.array([row["m"] for row in found], pa.int32()),
            "n": pa.array([row["n"] for row in found], pa.float64()),
            "w": pa.array([row["w"] for row in found], pa.string()),
        }
    )
    selected = select_rows(rows, text, Held(columns))  # type: ignore[arg-type]
    assert selected.mask.tolist() == [meaning(row) is True for row in found]
