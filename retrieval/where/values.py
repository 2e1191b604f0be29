"""Values of filters: text in its Unicode forms, numbers, and times as intervals."""

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from unicodedata import normalize

import pyarrow as pa

from retrieval.errors import BadInput
from retrieval.storage.names import storable

MAX_WHOLE = 2**63 - 1
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d+")
_TIME = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2})(?:[T ](\d{1,2}):(\d{2})(?::(\d{2}))?)?)?)?")


class Interval(NamedTuple):
    """Times from `start` to before `end`."""

    start: datetime
    end: datetime


def forms(value: str) -> tuple[str, ...]:
    """Return the text as typed and as names are stored, each in Unicode NFC and NFD.

    macOS writes file names in NFD.
    """
    typed = value.encode("utf-8", "backslashreplace").decode()
    each = (normalize(form, text) for text in (typed, storable(value)) for form in ("NFC", "NFD"))
    return tuple(dict.fromkeys(each))


def number_of(text: str) -> int | float | None:
    """Return the number that the text says; None if it says none."""
    if not text.isascii() or not _NUMBER.fullmatch(text):
        return None
    if _WHOLE.fullmatch(text) and len(text) < 30 and abs(int(text)) <= MAX_WHOLE:
        return int(text)
    return float(text)


def truth_of(text: str) -> bool | None:
    """Return true or false; None for other text."""
    return {"true": True, "false": False}.get(text.lower())


def interval_of(text: str, kind: pa.TimestampType) -> Interval:
    """Return the interval that the text names: `2024`, `2024-05`, `2024-05-01`, or a minute or
    second such as `2024-05-01T13:45`.

    It is in the local time of this machine. For a column of times with a zone, it is converted.

    Raises BadInput for other text.
    """
    found = _TIME.fullmatch(text) if text.isascii() else None
    if found is None:
        raise _no_time(text)
    year, month, day, hour, minute, second = (
        None if part is None else int(part) for part in found.groups()
    )
    try:
        start = datetime(year or 0, month or 1, day or 1, hour or 0, minute or 0, second or 0)
        if month is None:
            end = start.replace(year=start.year + 1)
        elif day is None:
            end = (start + timedelta(days=31)).replace(day=1)
        elif minute is None:
            end = start + timedelta(days=1)
        else:
            end = start + (timedelta(minutes=1) if second is None else timedelta(seconds=1))
        if kind.tz is None:
            return Interval(start, end)
        return Interval(start.astimezone(UTC), end.astimezone(UTC))
    except (ValueError, OverflowError):
        raise _no_time(text) from None


def _no_time(text: str) -> BadInput:
    return BadInput(f"'{text}' is not a time; write a date such as 2024-05-01, or 2024-05-01T13:45")
