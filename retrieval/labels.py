"""Labels and ids of any kind, as text.

Two labels are the same if their texts are, whatever they were given as:

- A whole number is written without a point: 1, 1.0 and "1" are one label.
- Other numbers are written as their type prints them: 0.1 of float32 and of float64 are one label.
- True and False are the labels "True" and "False", and not 1 and 0.
- Bytes are read as UTF-8. Text is compared in Unicode NFC.
- None, NaN, NaT and NA are no label: the label is unknown.
- Any other object is written as `str` has it.
"""

import math
from collections.abc import Iterable
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, cast

import numpy as np

from retrieval.errors import BadInput
from retrieval.storage.names import nfc


def as_labels(labels: Iterable[Any]) -> list[str | None]:
    """Return the labels as text; None for an unknown label.

    labels: a list, or a one-dimensional array of numpy, pandas, Arrow, torch or the like.

    Raises BadInput for an array of more dimensions, and for a label that cannot be compared, such
    as a list.
    """
    return [_label(value, row) for row, value in enumerate(_values(labels, "labels"))]


def label_set(labels: Iterable[Any]) -> set[str]:
    """Return the distinct known labels. Raises the errors of `as_labels`."""
    return {label for label in as_labels(labels) if label is not None}


def as_ids(ids: Iterable[Any]) -> list[str]:
    """Return the ids as text, by the same rules but for Unicode NFC: two files may differ by it.

    Raises the errors of `as_labels`, and BadInput for an id that is missing.
    """
    return [_id(value, row) for row, value in enumerate(_values(ids, "ids"))]


def is_number(name: str) -> bool:
    """Return whether an id is a whole number, which counts rows and names no item."""
    return name.removeprefix("-").isdecimal()


def _values(given: Iterable[Any], what: str) -> Iterable[Any]:
    """Return the values one by one."""
    if hasattr(given, "to_pylist"):  # Arrow's
        return list(given.to_pylist())
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        kind = type(given).__name__
        raise BadInput(f"{what} are a single {kind}; give a list, one for each vector")
    if not hasattr(given, "__array__"):
        return given
    array = np.asarray(given)
    if isinstance(given, np.ma.MaskedArray):
        array = np.where(np.ma.getmaskarray(given), cast(Any, None), array)
    if array.ndim != 1:
        raise BadInput(f"{what} have shape {array.shape}; give (n,), one for each vector")
    return array


def _label(value: Any, row: int) -> str | None:
    text = _text(value, "label", row)
    return text if text is None or text.isascii() else nfc(text)


def _id(value: Any, row: int) -> str:
    text = _text(value, "id", row)
    if text is None:
        raise BadInput(f"the id of row {row} is missing; give each row an id of its own")
    return text


def _text(value: Any, what: str, row: int) -> str | None:
    """Return the text of one label or id; None if it is missing."""
    if isinstance(value, str):
        return str.__str__(value)  # also for numpy's text and for enumerations
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        value = np.asarray(value)[()]  # torch hands out its numbers as arrays
    try:
        hash(value)
    except TypeError:
        kind = type(value).__name__
        raise BadInput(f"the {what} of row {row} is a {kind}; give text or a number") from None
    if value is None or _is_missing(value):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real | Decimal) and math.isfinite(value):
        whole = int(cast(Any, value))
        return str(whole) if whole == value else str(value)
    return str(value)


def _is_missing(value: Any) -> bool:
    """Return whether the value differs from itself, as NaN does, or cannot say so, as NA."""
    try:
        return bool(value != value)
    except TypeError:
        return True
