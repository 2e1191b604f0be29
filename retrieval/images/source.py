"""Sources of images: items in a fixed order, each one image that is not yet decoded.

Every kind of source lives in a file of its own and satisfies `Source`; `open_source` tells
which kind a name or a path is.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from retrieval.contracts import Images
from retrieval.errors import BadImage, BadInput
from retrieval.storage.names import nfc, storable
from retrieval.storage.places import Place

CHUNK_ITEMS = 256
"""Number of images that a container reads at a time, to bound memory."""


Note = Callable[[str], None]
"""Called with each sentence about the files that a source took or left out."""


def no_note(sentence: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One image of a source, not yet decoded.

    id: unique and stable: `test/00042` in data sets, else the POSIX path below the source's root,
        as `text` writes it.
    label: the name of its class in Unicode NFC; None if unknown.
    path: where `read_image` finds it again: an absolute file, `FILE#ROW` in a container of
        images, `FILE#COLUMN#ROW` where the column of images was chosen, `digits#ROW`, or a URL of
        these in a store. A byte of it that is not UTF-8 is a lone surrogate, as Python has it
        everywhere.
    content: encoded bytes, a file yet to be opened, pixels: (h, w, 3) RGB or (h, w) gray, or the
        error of the image.
    stamp: of an image that is a file, what tells whether it has changed.
    """

    id: str
    label: str | None
    path: str
    content: bytes | Place | Images | BadImage
    stamp: int | None = None

    def __post_init__(self) -> None:
        if self.label is not None and not self.label.isascii():
            object.__setattr__(self, "label", nfc(self.label))


class Source(Protocol):
    """Images in a fixed order. It is a stream: its length costs no memory."""

    @property
    def name(self) -> str:
        """The name that manifests record: `cifar10/train`, or the absolute path."""

    @property
    def fingerprint(self) -> str:
        """The sha256, in hexadecimal, of facts that decide the images and their order.

        For a data set, the facts are names and sizes of its files, so that a copy has the same
        fingerprint. For other files, the time of their last change is one too.
        """

    def __len__(self) -> int:
        """Return the number of items, unreadable images included."""

    def items(self, start: int = 0) -> Iterator[Item]:
        """Return the items from position `start` on."""


@dataclass(frozen=True, slots=True, eq=False)
class First:
    """The first `limit` ≥ 1 items of a source, or all if it has fewer."""

    source: Source
    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise BadInput(f"limit is {self.limit}; give 1 or more")

    @property
    def name(self) -> str:
        """The name of the whole source."""
        return self.source.name

    @property
    def fingerprint(self) -> str:
        """The sha256 of the whole source's fingerprint and the limit."""
        return digest(["first", self.limit, self.source.fingerprint])

    def __len__(self) -> int:
        return min(self.limit, len(self.source))

    def items(self, start: int = 0) -> Iterator[Item]:
        """Return the items from position `start` to the limit."""
        return islice(self.source.items(start), max(0, self.limit - start))


def digest(facts: Iterable[object]) -> str:
    """Return the sha256, in hexadecimal, of the facts as ASCII text, in their order."""
    total = hashlib.sha256()
    for fact in facts:
        total.update(ascii(fact).encode() + b"\n")
    return total.hexdigest()


def name_and_size(file: Place) -> tuple[str, int]:
    """Return the name and the size in bytes, which a copy of the file shares."""
    return file.name, file.stat().st_size


def natural(name: str) -> tuple[tuple[str | int, ...], str]:
    """Return a key that sorts `2` before `10`, and `01` and `1`, whose numbers are the same, by
    text.
    """
    parts = re.split("([0-9]+)", name)
    return tuple(int(part) if odd % 2 else part for odd, part in enumerate(parts)), name


def text(path: str | Place) -> str:
    """Return the path as text that can be stored and printed; see `retrieval.storage.names`."""
    return storable(str(path))
