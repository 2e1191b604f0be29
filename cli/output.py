"""Output of commands: sentences and tables for people, or one JSON document."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor, log10
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from retrieval.contracts import Json


MIN_DECIMALS, MAX_DECIMALS = 4, 10  # of distances
MIN_FIXED, MAX_FIXED = 1e-6, 1e9  # distances that are written without an exponent
FLOAT32_DIGITS = 9  # significant digits, different for any two numbers of float32


@dataclass(frozen=True, slots=True)
class Output:
    """Printer of a command's results: for people, as JSON, or not at all.

    debug: show the tracebacks of errors and the output of libraries.
    """

    json: bool = False
    quiet: bool = False
    debug: bool = False

    @property
    def for_people(self) -> bool:
        """Return whether sentences and tables are wanted."""
        return not (self.json or self.quiet)

    def document(self, document: "Json") -> None:
        """Print the JSON document if --json is given."""
        if self.json:
            print(_as_json(document), flush=True)

    def say(self, text: str = "") -> None:
        """Print text for people."""
        if not self.for_people:
            return
        text = "\n".join(map(one_line, text.split("\n")))
        _above_bars(text, sys.stdout)
        sys.stdout.flush()

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
        """Print rows under a header, the first `left` columns to the left, others to the right."""
        if not self.for_people:
            return
        rows = [[_encodable(one_line(cell)) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            return "  ".join(
                cell.ljust(width) if i < left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()

        print(line(header))
        print("  ".join("─" * width for width in widths))
        for row in rows:
            print(line(row))

    def paths(self, paths: Iterable[str], null: bool) -> None:
        """Print only paths, for other programs, each ended by a newline or by a NUL."""
        end = b"\0" if null else b"\n"
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(os.fsencode(path) + end for path in paths))

    def hint(self, text: str) -> None:
        """Print to stderr what people may want to know about the run."""
        if self.for_people:
            _above_bars(one_line(text), sys.stderr)

    def warn(self, text: str) -> None:
        """Print a warning to stderr: also with --json, whose document stays alone on stdout."""
        if not self.quiet:
            _above_bars(f"warning: {one_line(text)}", sys.stderr)

    @contextmanager
    def progress(self, what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a function that draws the progress (done, total) on stderr if it is a terminal."""
        from tqdm import tqdm

        hidden = True if not self.for_people else None  # None: hidden unless on a terminal
        bar = tqdm(desc=what, unit=unit, disable=hidden, leave=False)

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            yield show
        finally:
            bar.close()

    @contextmanager
    def steps(self) -> Iterator[Callable[[str], None]]:
        """Yield a function that shows the current step on stderr if it is a terminal."""
        from shutil import get_terminal_size

        from tqdm import tqdm

        hidden = True if not self.for_people else None
        bar = tqdm(bar_format="{elapsed} {desc}", disable=hidden, leave=False)

        def show(step: str) -> None:
            width = get_terminal_size().columns - len("00:00 ")
            bar.set_description_str(step if len(step) < width else step[: width - 2] + "…")

        try:
            yield show
        finally:
            bar.close()


def _above_bars(text: str, stream: TextIO) -> None:
    """Print the text, above a progress bar if there is one."""
    bars = sys.modules.get("tqdm")
    if bars is None:
        print(text, file=stream)
    else:
        bars.tqdm.write(text, file=stream)


_SURROGATES = range(0xD800, 0xE000)  # bytes of names that are not UTF-8
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), *_SURROGATES)}
_CONTROLS_IN_JSON = {code: f"\\u{code:04x}" for code in range(127, 160)}


def _as_json(document: "Json") -> str:
    """Return the document on one line; in ASCII if stdout cannot show all characters."""
    from retrieval.storage.names import escaped

    text = escaped(json.dumps(document, ensure_ascii=False)).translate(_CONTROLS_IN_JSON)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(document)
    return text


def _encodable(text: str) -> str:
    """Return the text as stdout will show it, so that columns have its width."""
    encoding, errors = sys.stdout.encoding or "utf-8", sys.stdout.errors or "strict"
    return text.encode(encoding, errors).decode(encoding)


def one_line(text: str) -> str:
    r"""Return the text with control characters and lone surrogates escaped: `\n`, `\x1b`.

    Names of files and labels may hold them. A terminal would obey the first and fail to show the
    second.
    """
    return text.translate(_CONTROLS)


def distinguishable(distances: Sequence[float]) -> list[str]:
    """Return the distances as text, with the same number of digits: enough to tell them apart.

    Distances that differ as float32 look different, and none but zero looks like zero. There are at
    least 4 decimals, and 4 significant digits of the largest.
    """
    import numpy as np

    numbers = np.asarray(distances, np.float32).tolist()
    different = {*numbers, 0.0}
    written: dict[float, str] = {}
    for form in _number_formats(max(map(abs, different))):
        written = {number: format(number, form) for number in different}
        if len({*written.values()}) == len(different):
            break
    return [written[number] for number in numbers]


def _number_formats(largest: float) -> Iterator[str]:
    """Yield number formats with more and more digits, first without exponents if that is readable.

    The last one separates any two numbers of float32.
    """
    if largest == 0 or MIN_FIXED <= largest < MAX_FIXED:
        digits = 0 if largest == 0 else 3 - floor(log10(largest))
        for decimals in range(max(MIN_DECIMALS, digits), MAX_DECIMALS + 1):
            yield f"z.{decimals}f"
    for digits in range(4, FLOAT32_DIGITS + 1):
        yield f"z.{digits}g"


def plural(n: int, noun: str) -> str:
    """Return the count with its noun: `1 image`, `2 images`, `2,000 images`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
