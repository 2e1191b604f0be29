"""Choices given by name: `"cosine"` for `Metric.COSINE`.

Each public function and class that takes an enumeration passes it through here first, so that
the code inside compares members and nothing else.
"""

import typing
from dataclasses import fields
from enum import StrEnum
from typing import Any, TypeVar

from retrieval.errors import UnknownName

Choice = TypeVar("Choice", bound=StrEnum)

MAX_SHOWN_CHARACTERS = 60  # longer values are cut in errors


def choice(kind: type[Choice], value: object, what: str | None = None) -> Choice:
    """Return the member of `kind` that `value` is, or whose name it is.

    what: the word for the choice in an error; by default the name of the class in lower case.

    Raises UnknownName, which lists the names, for any other value.
    """
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            pass
    raise UnknownName(what or kind.__name__.lower(), str(value)[:MAX_SHOWN_CHARACTERS], kind)


def resolve_choices(settings: Any) -> None:
    """Turn names into members in the fields of a frozen dataclass that hold an enumeration.

    It is for `__post_init__`. A field that may be None may stay so. Raises UnknownName.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        kinds = typing.get_args(field.type) or (field.type,)
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, StrEnum)):
                continue
            if not (value is None and type(None) in kinds):
                object.__setattr__(settings, field.name, choice(kind, value, field.name))
