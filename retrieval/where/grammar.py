"""Parse an expression such as `taken >= 2024-05-01 and camera like 'Pixel%'`."""

import re
from functools import cache
from typing import Any, cast

from lark import Lark, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from retrieval.errors import BadInput
from retrieval.values import shortened
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

MAX_DEPTH = 100
"""Levels of parentheses and of `not`."""

_GRAMMAR = r"""
    ?start: any_of
    any_of: all_of (_OR all_of)*
    all_of: _condition (_AND _condition)*
    _condition: negated | _LEFT any_of _RIGHT | _test
    negated: _NOT _condition
    _test: comparison | among | not_among | like | not_like | is_null | is_not_null
        | between | not_between

    comparison: column OPERATOR value (_COMMA value)*
    among: column _IN _LEFT value (_COMMA value)* _RIGHT
    not_among: column _NOT _IN _LEFT value (_COMMA value)* _RIGHT
    like: column LIKE value
    not_like: column _NOT LIKE value
    is_null: column _IS _NULL
    is_not_null: column _IS _NOT _NULL
    between: column _BETWEEN value _AND value
    not_between: column _NOT _BETWEEN value _AND value
    column: WORD | QUOTED
    value: WORD | QUOTED | STRING

    OPERATOR: "==" | "!=" | "<>" | "<=" | ">=" | "=" | "<" | ">"
    _LEFT: "("
    _RIGHT: ")"
    _COMMA: ","
    _OR.2: /or(?![^\s,()'"=<>!])/i
    _AND.2: /and(?![^\s,()'"=<>!])/i
    _NOT.2: /not(?![^\s,()'"=<>!])/i
    _IN.2: /in(?![^\s,'"=<>!)])/i
    _IS.2: /is(?![^\s,()'"=<>!])/i
    _NULL.2: /null(?![^\s,()'"=<>!])/i
    _BETWEEN.2: /between(?![^\s,()'"=<>!])/i
    LIKE.2: /i?like(?![^\s,()'"=<>!])/i
    WORD: /[^\s,()'"=<>!]+/
    STRING: /'([^']|'')*'/
    QUOTED: /"([^"]|"")*"/
    %ignore /\s+/
"""

_WORDS = {
    "STRING": "a value",
    "WORD": "the name of a column",
    "OPERATOR": "a comparison such as = or >=",
    "_AND": "and",
    "_OR": "or",
    "_RIGHT": ")",
    "_NULL": "null",
    "_LEFT": "(",
}
"""What the grammar may expect, for messages; the first is named. `value` takes WORD too."""


def parsed(text: str) -> Condition:
    """Return the condition that the text says. Raises BadInput, which names the place."""
    _check_depth(text)
    try:
        return cast(Condition, _parser().parse(text))
    except UnexpectedInput as error:
        raise BadInput(
            f"cannot read the filter '{text}' {_place(text, error)}; write for example "
            "label = cat, or taken >= 2024-05-01 and camera like 'Pixel%'"
        ) from None


@cache
def _parser() -> Any:
    return Lark(_GRAMMAR, parser="lalr", transformer=_Conditions())


@v_args(inline=True)
class _Conditions(Transformer[Any, Any]):
    """Makes conditions of what the parser finds."""

    def any_of(self, *conditions: Condition) -> Condition:
        return conditions[0] if len(conditions) == 1 else AnyOf(conditions)

    def all_of(self, *conditions: Condition) -> Condition:
        return conditions[0] if len(conditions) == 1 else AllOf(conditions)

    def negated(self, condition: Condition) -> Condition:
        return Not(condition)

    def comparison(self, column: str, operator: str, *values: Value) -> Condition:
        operator = {"==": "=", "<>": "!="}.get(operator, str(operator))
        if len(values) > 1 and operator not in ("=", "!="):
            raise BadInput(
                f"the filter compares {column} {operator} {len(values)} values; give one"
            )
        return ColumnComparison(column, operator, values)

    def among(self, column: str, *values: Value) -> Condition:
        return ColumnComparison(column, "=", values)

    def not_among(self, column: str, *values: Value) -> Condition:
        return ColumnComparison(column, "!=", values)

    def like(self, column: str, word: str, pattern: Value) -> Condition:
        return Like(column, pattern.text, word.lower() == "ilike")

    def not_like(self, column: str, word: str, pattern: Value) -> Condition:
        return Not(self.like(column, word, pattern))

    def is_null(self, column: str) -> Condition:
        return IsNull(column)

    def is_not_null(self, column: str) -> Condition:
        return Not(IsNull(column))

    def between(self, column: str, first: Value, last: Value) -> Condition:
        return Between(column, first, last)

    def not_between(self, column: str, first: Value, last: Value) -> Condition:
        return Not(Between(column, first, last))

    def column(self, name: str) -> str:
        return _unquoted(name)

    def value(self, text: str) -> Value:
        return Value(_unquoted(text), is_quoted=text[0] in "'\"")


def _unquoted(text: str) -> str:
    """Return the text of a word, or of a quoted text, in which a doubled quote is one."""
    quote = text[0]
    return str(text) if quote not in "'\"" else text[1:-1].replace(2 * quote, quote)


def _place(text: str, error: UnexpectedInput) -> str:
    """Say where the text stopped being an expression, and what was expected there."""
    at, expected = len(text), frozenset[str]()
    if isinstance(error, UnexpectedToken):
        at = len(text) if error.token.type == "$END" else int(error.token.start_pos or 0)
        expected = frozenset(error.accepts or error.expected)
    elif isinstance(error, UnexpectedCharacters):
        at, expected = int(error.pos_in_stream or 0), frozenset(error.allowed or ())
    where = "at its end" if at >= len(text) else f"at '{shortened(text[at:])}'"
    wanted = next((word for name, word in _WORDS.items() if name in expected), None)
    return where if wanted is None else f"{where}, where {wanted} should stand"


def _check_depth(text: str) -> None:
    """Raise BadInput for an expression whose conditions are nested too deep."""
    bare = re.sub(r"""'[^']*'|"[^"]*\"""", "", text)
    depth = max(bare.count("("), len(re.findall(r"\bnot\b", bare, re.IGNORECASE)))
    if depth > MAX_DEPTH:
        raise BadInput(f"the filter has more than {MAX_DEPTH} levels; write a shorter one")
