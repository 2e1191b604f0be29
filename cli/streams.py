"""Standard streams that can be closed, full, or unable to encode a character.

A failed write to stdout raises an error type of its own, so that no other code confuses it with a
failed write of a file. A failed write to stderr is ignored.
"""

import codecs
import errno
import io
import os
import sys
from typing import Any, TextIO

READABLE = "retr-readable"
"""The codec error handler that writes characters outside the encoding in ASCII."""

_IN_ASCII = {
    "─": "-", "–": "-", "−": "-", "·": "-", "├": "|", "└": "`", "…": "...", "×": "x", "±": "+-",
    "≤": "<=", "≥": ">=", "½": "1/2", "²": "^2", "√": "sqrt ",
}  # fmt: skip


class OutputLost(Exception):
    """Text could not be written to stdout."""


class ReaderGone(OutputLost):
    """The reader of stdout has closed it, as `head` does."""


class CannotPrint(OutputLost):
    """Stdout is closed, or its disk is full."""


class _Stdout(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            reason = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise CannotPrint(
                f"cannot write to the standard output ({reason}); redirect it to a writable file"
            ) from None


class _Stderr(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def open_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr` by the streams of this module.

    Closed descriptors are opened first. Otherwise a file could get such a descriptor, and a library
    that prints would overwrite it. A closed stdout is opened for reading only, so that writes to it
    still fail.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        if not _is_open(number):
            os.set_inheritable(os.open(os.devnull, mode), True)
    codecs.register_error(READABLE, _readable)
    sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.stderr, line_buffering=True)


def error_stream(descriptor: int) -> TextIO:
    """Return a stream like `sys.stderr` to this descriptor, which it closes."""
    return _text(_Stderr(descriptor, "w"), sys.stderr, line_buffering=True)


def discard_stdout() -> None:
    """Discard all that was or will be written to stdout."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.close(sink)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _text(raw: io.FileIO, before: TextIO | None, line_buffering: bool = False) -> TextIO:
    """Return a text stream over `raw`, with the encoding of the one before it."""
    kept = before is not None and before.errors not in ("strict", "surrogateescape")
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8" if before is None else before.encoding,
        errors=before.errors if before is not None and kept and not line_buffering else READABLE,
        line_buffering=line_buffering or raw.isatty(),
    )


def _readable(error: UnicodeError) -> tuple[str, int]:
    """Return the characters of the error in ASCII, and the position after them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _IN_ASCII.get(character) or character.encode("ascii", "backslashreplace").decode()
