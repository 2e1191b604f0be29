"""What commands print: sentences and tables for people, or one JSON document."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval.contracts import Json


@dataclass(frozen=True, slots=True)
class Output:
    """Standard output in one of three moods: for people, `json`, or `quiet`."""

    json: bool = False
    quiet: bool = False

    @property
    def for_people(self) -> bool:
        """Whether sentences and tables are wanted."""
        return not (self.json or self.quiet)

    def document(self, document: "Json") -> None:
        """Print the JSON document, where JSON is wanted."""
        from retrieval.storage.names import escaped

        if self.json:
            text = escaped(json.dumps(document, ensure_ascii=False))
            print(text.translate(_CONTROLS_IN_JSON), flush=True)

    def say(self, text: str = "") -> None:
        """Print a sentence for people."""
        if not self.for_people:
            return
        text = "\n".join(map(one_line, text.split("\n")))
        bars = sys.modules.get("tqdm")
        if bars is None:
            print(text)
        else:
            bars.tqdm.write(text)  # above a bar that is being drawn
        sys.stdout.flush()

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
        """Print rows under a header, the first `left` columns to the left, others to the right."""
        if not self.for_people:
            return
        rows = [[one_line(cell) for cell in row] for row in rows]
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

    def warn(self, text: str) -> None:
        """Print a warning to stderr: also with --json, whose document stays alone on stdout."""
        if not self.quiet:
            print(f"warning: {one_line(text)}", file=sys.stderr)

    @contextmanager
    def progress(self, what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """A function that draws the progress (done, total) on stderr, if that is a terminal."""
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
        """A function that says on stderr, if that is a terminal, which step is under way."""
        from tqdm import tqdm

        hidden = True if not self.for_people else None
        bar = tqdm(bar_format="{elapsed} {desc}", disable=hidden, leave=False)
        try:
            yield bar.set_description_str
        finally:
            bar.close()


_SURROGATES = range(0xD800, 0xE000)  # bytes of names that are not UTF-8, which cannot be printed
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), *_SURROGATES)}
_CONTROLS_IN_JSON = {code: f"\\u{code:04x}" for code in range(127, 160)}  # the others, json escapes


def one_line(text: str) -> str:
    r"""The text with control characters written out, `\n` or `\x1b`, and lone surrogates.

    Names of files and labels may have them, and a terminal would obey or cannot show them.
    """
    return text.translate(_CONTROLS)


def duration(seconds: float) -> str:
    """The time as people say it: 0.42 s, 12.3 s, 2 min 5 s."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def size(n_bytes: float) -> str:
    """The number of bytes as people say it: 512 B, 24.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def plural(n: int, noun: str) -> str:
    """`1 image`, `2 images`, `2,000 images`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
