"""Read JSON documents into frozen dataclasses, with the type of every value checked.

The types are those of the dataclass's fields: text, numbers, true or false, enumerations, other
dataclasses, lists (as tuples too) and objects of these, and `Json` for any value. A field with a
default may be missing; a field that the dataclass lacks is an error.
"""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from retrieval.contracts import Json
from retrieval.errors import BadData
from retrieval.storage.files import read_sealed
from retrieval.storage.places import Place
from retrieval.values import WORDS, shown

_Document = TypeVar("_Document")


def read_document(
    path: Place, cls: type[_Document], form: str, version: int, remedy: str
) -> _Document:
    """Return the document in the file, as `write_sealed` wrote it from an object of `cls`.

    form, version: see `read_sealed`. remedy: what the user can do about a damaged file. Raises
    BadData, naming the file and the field.
    """
    document = read_sealed(path, form, version, remedy)
    del document["format"], document["version"]
    return parsed(document, cls, path, remedy)


def parsed(document: object, cls: type[_Document], where: object, remedy: str) -> _Document:
    """Return the JSON document as an object of the dataclass.

    where: the document's name in errors. Raises BadData, naming the field.
    """
    try:
        found: _Document = _instance(document, cls, "")
    except _WrongField as error:
        raise BadData(f"{where}: {error}; {remedy}") from None
    return found


def fields_of(document: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Return the entries of the document that are fields of the dataclass."""
    return {each.name: document[each.name] for each in fields(cls) if each.name in document}


def check_at_least(least: int, counts: Mapping[str, int], where: object, remedy: str) -> None:
    """Raise BadData, naming the field, unless each number is `least` or more."""
    for name, number in counts.items():
        if number < least:
            raise BadData(
                f"{where}: field {name!r} must be {least} or more, not {number}; {remedy}"
            )


class _WrongField(Exception):
    """A field is missing, unknown or of a wrong type."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"field {name!r} {problem}" if name else f"the document {problem}")


def _instance(value: object, cls: Any, name: str) -> Any:
    """Return the object of a dataclass; one that is there already is kept."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise _must_be("an object", value, name)
    known = {field.name: field for field in fields(cls)}
    for key in value:
        if key not in known:
            raise _WrongField(_below(name, key), "is unknown")
    found = {}
    for field in known.values():
        path = _below(name, field.name)
        if field.name in value:
            found[field.name] = _value(value[field.name], field.type, path)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _WrongField(path, "is missing")
    return cls(**found)


def _value(value: Any, kind: Any, name: str) -> Any:
    """Return the JSON value as one of this type."""
    if kind == Json:
        return value
    if isinstance(kind, UnionType):
        return _one_of(value, get_args(kind), name)
    origin, of = get_origin(kind) or kind, get_args(kind)
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise _must_be("a list", value, name)
        return origin(_value(each, of[0], _below(name, i)) for i, each in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise _must_be("an object", value, name)
        return {key: _value(each, of[1], _below(name, key)) for key, each in value.items()}
    if is_dataclass(kind):
        return _instance(value, kind, name)
    if issubclass(kind, StrEnum):
        if value not in [*kind]:
            raise _must_be(f"one of {', '.join(kind)}", value, name)
        return kind(value)
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is not kind:
        raise _must_be(WORDS[kind], value, name)
    return value


def _one_of(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    """Return the value as one of these types: None, or the dataclass that has its fields."""
    if value is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    if len(others) > 1 and isinstance(value, dict):
        others.sort(key=lambda kind: {each.name for each in fields(kind)} != value.keys())
    return _value(value, others[0], name)


def _must_be(wanted: str, value: object, name: str) -> _WrongField:
    return _WrongField(name, f"must be {wanted}, not {shown(value)}")


def _below(name: str, key: object) -> str:
    return f"{name}.{key}" if name else f"{key}"
