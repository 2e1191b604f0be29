"""Find exact copies by the hashes of their bytes, which sets of embeddings hold.

No image is read, but for files that were changed since they were encoded: these are hashed again.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from retrieval.contracts import Rows
from retrieval.errors import BadImage
from retrieval.images.pixels.decoding import read_item
from retrieval.images.source import Item
from retrieval.pairs.stored import is_unchanged
from retrieval.runtime.threads import usable_cores
from retrieval.storage.names import restored
from retrieval.storage.sets.embeddings import Embeddings


def current_contents(sets: Sequence[Embeddings]) -> list[list[bytes | None]]:
    """Return, for each set, the hash of each image's bytes; None if it is not known.

    A hash that occurs once in all sets may be that of a file which has changed since.
    """
    files = [each.files() for each in sets]
    contents: list[list[bytes | None]] = [table["content"].to_pylist() for table in files]
    seen: set[bytes] = set()
    shared: set[bytes] = set()
    for content in (each for column in contents for each in column if each is not None):
        (shared if content in seen else seen).add(content)
    for embeddings, table, column in zip(sets, files, contents, strict=True):
        rows = [row for row, content in enumerate(column) if content in shared]
        if rows:
            described = embeddings.rows().take(rows)
            stamps = table["stamp"].take(rows).to_pylist()
            ids, paths = described["id"].to_pylist(), described["path"].to_pylist()
            with ThreadPoolExecutor(usable_cores()) as threads:
                known = [column[row] for row in rows]
                now = threads.map(_current, ids, paths, stamps, known)
                for row, current in zip(rows, now, strict=True):
                    column[row] = current
    return contents


def _current(id_: str, path: str | None, stored: int, content: bytes) -> bytes | None:
    """Return the hash of the file's bytes; None for a file that cannot be read.

    It is `content` if the file has the stored stamp. A file in a store is not asked.
    """
    if path is None or is_unchanged(id_, path, stored):
        return content
    place = restored(path)
    try:
        return read_item(Item(id_, None, place, Path(place)))[1]
    except BadImage:
        return None


@dataclass(frozen=True, eq=False)
class Distinct:
    """The distinct images of one set or two: exact copies are one image.

    of_rows: for each set, the number (n,) of each row's image. Numbers count the images in the
    order of their first rows, those of the first set first.
    """

    of_rows: tuple[Rows, ...]

    @classmethod
    def of(cls, contents: Sequence[Sequence[bytes | None]]) -> Self:
        """Number the images of sets by their hashes. An image without hash is its own."""
        numbers: dict[bytes, int] = {}
        count = 0
        columns = []
        for column in contents:
            found = np.empty(len(column), np.int64)
            for row, content in enumerate(column):
                number = count if content is None else numbers.setdefault(content, count)
                count += number == count
                found[row] = number
            columns.append(found)
        return cls(tuple(columns))

    def __len__(self) -> int:
        return 1 + max(int(numbers.max(initial=-1)) for numbers in self.of_rows)

    @cached_property
    def rows(self) -> tuple[list[list[int]], ...]:
        """Return, for each set, the rows of each image."""
        found: tuple[list[list[int]], ...] = tuple(
            [[] for _ in range(len(self))] for _ in self.of_rows
        )
        for numbers, rows in zip(self.of_rows, found, strict=True):
            for row, number in enumerate(numbers.tolist()):
                rows[number].append(row)
        return found

    def firsts(self) -> list[tuple[int, int]]:
        """Return the set and the row of each image's first row."""
        return [
            next((part, rows[number][0]) for part, rows in enumerate(self.rows) if rows[number])
            for number in range(len(self))
        ]
