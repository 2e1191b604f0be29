"""Values from Python callers: each is of the right type, or refused in plain words."""

import operator
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from retrieval.choices import MAX_SHOWN_CHARACTERS, resolve_choices
from retrieval.errors import BadInput

WORDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}


def whole_number(value: Any, what: str) -> int:
    """Return an integer of Python or numpy as `int`. Raises BadInput for anything else.

    what: the word for the value in the error.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise BadInput(f"{what} is {shown(value)}; give a whole number") from None


def named_options(options: Any) -> Mapping[str, object]:
    """Return the options; {} for None. Raises BadInput if they are not a mapping."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise BadInput(f"options are {shown(options)}; give a mapping of names to values")
    return options


def resolve_options(settings: Any) -> None:
    """Check the options of a backend, a frozen dataclass, and turn names into members.

    It is for `__post_init__`. Fields may hold whole numbers, numbers, booleans, text, enumerations
    and None, as they are annotated. Raises BadInput for a value of another type, and what
    `resolve_choices` raises.
    """
    resolve_choices(settings)
    for field in fields(settings):
        union = isinstance(field.type, types.UnionType)
        kinds = typing.get_args(field.type) if union else (field.type,)
        value = _converted(getattr(settings, field.name), kinds)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            none = " or None" if type(None) in kinds else ""
            raise BadInput(f"option {field.name} is {shown(value)}; give it {words(kinds)}{none}")
        object.__setattr__(settings, field.name, value)


def words(kinds: Iterable[type]) -> str:
    """Return the types as an error names them: `a whole number or text`."""
    return " or ".join(WORDS[kind] for kind in kinds if kind in WORDS)


def shown(value: object) -> str:
    """Return the value as an error shows it, cut to a few characters of one line."""
    return shortened(" ".join(repr(value).split()))


def shortened(text: str) -> str:
    """Return the text, cut to MAX_SHOWN_CHARACTERS."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"


def _converted(value: Any, kinds: tuple[Any, ...]) -> Any:
    """Return numpy's integers as `int`, and integers as `float` if a float is wanted."""
    if isinstance(value, bool | str) or value is None:
        return value
    if int in kinds and hasattr(value, "__index__"):
        return operator.index(value)
    if float in kinds and hasattr(value, "__float__"):
        return float(value)
    return value
