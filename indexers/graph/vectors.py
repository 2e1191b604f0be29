"""The vectors that a walk ranks its candidates by: whole, or rounded to 8 bits a number.

A compact vector is `origin + scale * numbers`, with integers from -127 to 127 and a scale of its
own, so that one long vector takes no precision from the others. So does the first level of LVQ
(Aguerrebere et al., Similarity search in the blink of an eye with compressed indices, VLDB 2023).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from indexers.faiss import bridge
from indexers.graph.coding import PART_ROWS, parts
from retrieval.choices import choice
from retrieval.contracts import Metric, Rows, Vectors
from retrieval.errors import BadData
from retrieval.storage.files import write_whole

FILE = "compact.npy"
LARGEST, LARGEST_BYTE = 127, 255
SCALE_BYTES = 4  # a float32 at the end of each compact vector
NO_NUMBERS = np.empty(0, np.float32)

Arrays = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]


class RankedVectors(Protocol):
    """The distinct vectors (n, dim) of an index."""

    @property
    def dim(self) -> int:
        """Number of dimensions."""

    is_mapped: bool
    """Whether the vectors lie in the file."""

    @property
    def arrays(self) -> Arrays:
        """The arguments `vectors`, `scales` and `origin` of `indexers.graph.walk.search`."""

    def __len__(self) -> int:
        """Return the number of vectors."""

    def fetch(self, rows: Rows | slice) -> Vectors:
        """Return the vectors (m, dim) of rows (m,)."""

    def rounded(self, vectors: Vectors) -> Vectors:
        """Return other vectors (m, dim) as `fetch` returns them once they are added."""

    def grown(self, vectors: Vectors) -> "RankedVectors":
        """Return these vectors followed by others (m, dim)."""


def blocks_of(vectors: RankedVectors) -> Iterator[Vectors]:
    """Yield all vectors in blocks (m, dim)."""
    for start in range(0, len(vectors), PART_ROWS):
        yield vectors.fetch(slice(start, start + PART_ROWS))


class WholeVectors:
    """Exact vectors, in an index of faiss, where they are used in place.

    They are in float32, or in bytes if all numbers are whole ones from 0 to 255: pixels, for
    example. These take a quarter of the memory, and of the time to read them.
    """

    def __init__(self, stored: Any, is_mapped: bool = False) -> None:
        """stored: an IndexFlat, or an IndexScalarQuantizer of bytes. is_mapped: whether the vectors
        lie in the file.
        """
        self.stored = stored
        self.is_mapped = is_mapped
        self.in_bytes = isinstance(stored, faiss.IndexScalarQuantizer)
        self.vectors = _numbers(stored)

    @classmethod
    def of(cls, blocks: Iterable[Vectors], rows: int, dim: int, metric: Metric | str) -> Self:
        """Return the vectors in blocks (m, dim), `rows` in all, of a graph with this metric."""
        stored = _empty(dim, bridge.METRICS[choice(Metric, metric)], rows, in_bytes=True)
        for block in blocks:
            stored = _added(stored, block, rows)
        return cls(stored)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self.stored.d)

    @property
    def arrays(self) -> Arrays:
        """See `RankedVectors`."""
        return self.vectors, NO_NUMBERS, NO_NUMBERS

    def __len__(self) -> int:
        return int(self.stored.ntotal)

    def fetch(self, rows: Rows | slice) -> Vectors:
        """See `RankedVectors`."""
        return self.vectors[rows].astype(np.float32, copy=False)

    def rounded(self, vectors: Vectors) -> Vectors:
        """Return the vectors unchanged."""
        return vectors

    def grown(self, vectors: Vectors) -> Self:
        """Return these vectors followed by others (m, dim)."""
        rows, stored = len(self) + len(vectors), self.stored
        if self.is_mapped:  # a mapped file has no room for more
            stored = _copied(stored, rows, self.in_bytes)
        return type(self)(_added(stored, vectors, rows))


class CompactVectors:
    """Vectors in 8 bits a number, each moved by about 1% of its distance from the center.

    numbers: (n, width) int8, of each vector its integers, zeros up to a multiple of 4, and its
    scale in float32. origin: (dim,).
    """

    def __init__(
        self, numbers: NDArray[np.int8], origin: NDArray[np.float32], is_mapped: bool = False
    ) -> None:
        self.numbers = numbers
        self.origin = origin
        self.is_mapped = is_mapped
        self.scales = numbers[:, -SCALE_BYTES:].view(np.float32)[:, 0]

    @classmethod
    def of(cls, blocks: Iterable[Vectors], rows: int, origin: NDArray[np.float32]) -> Self:
        """Return the vectors in blocks (m, dim), `rows` in all, rounded."""
        numbers = np.zeros((rows, _width(len(origin))), np.int8)
        start = 0
        for block in blocks:
            for some in parts(block):
                _round(some, origin, numbers[start : start + len(some)])
                start += len(some)
        return cls(numbers, origin)

    @classmethod
    def load(cls, folder: Path, rows: int, origin: NDArray[np.float32], mapped: bool) -> Self:
        """Return the vectors in `FILE`. Raises BadData unless it has `rows` of them.

        mapped: leave them in the file, as memory-mapped pages.
        """
        path = folder / FILE
        try:
            numbers: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, EOFError, SyntaxError, TokenError) as problem:
            raise BadData(f"{path} is damaged ({problem}); build the index again") from None
        shape = rows, _width(len(origin))
        if numbers.dtype != np.int8 or numbers.shape != shape or not numbers.flags.c_contiguous:
            raise BadData(
                f"{path} has {numbers.dtype} of shape {numbers.shape}, wanted int8 of {shape}; "
                "build the index again"
            )
        if not mapped:
            numbers = numbers.copy()
        loaded = cls(np.asarray(numbers), origin, mapped)
        if not (np.isfinite(loaded.scales) & (loaded.scales >= 0)).all():
            raise BadData(f"{path} is damaged (a scale is out of range); build the index again")
        return loaded

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.origin)

    @property
    def arrays(self) -> Arrays:
        """See `RankedVectors`."""
        return self.numbers, self.scales, self.origin

    def __len__(self) -> int:
        return len(self.numbers)

    def fetch(self, rows: Rows | slice) -> Vectors:
        """See `RankedVectors`."""
        numbers = self.numbers[rows, : self.dim].astype(np.float32)
        numbers *= self.scales[rows, None]
        numbers += self.origin
        return numbers

    def rounded(self, vectors: Vectors) -> Vectors:
        """Return the vectors (m, dim), rounded."""
        return self.of([vectors], len(vectors), self.origin).fetch(slice(None))

    def grown(self, vectors: Vectors) -> Self:
        """Return these vectors followed by others (m, dim)."""
        more = self.of([vectors], len(vectors), self.origin)
        return type(self)(np.concatenate([self.numbers, more.numbers]), self.origin)

    def save(self, folder: Path) -> None:
        """Write `FILE` into the folder."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, self.numbers, allow_pickle=False)

        write_whole(folder / FILE, write)


def _numbers(stored: Any) -> NDArray[Any]:
    """Return a view of the vectors (n, dim) in an index of faiss."""
    kind = np.uint8 if isinstance(stored, faiss.IndexScalarQuantizer) else np.float32
    return bridge.view_of(stored.codes).view(kind).reshape(-1, stored.d)


def _added(stored: Any, vectors: Vectors, rows: int) -> Any:
    """Add vectors to an index of faiss; return it, or one in float32 if bytes cannot hold them.

    rows: number of rows that this one gets room for.
    """
    if isinstance(stored, faiss.IndexScalarQuantizer) and not _fit_bytes(vectors):
        stored = _copied(stored, rows, in_bytes=False)
    stored.add(vectors)
    return stored


def _empty(dim: int, kind: int, rows: int, in_bytes: bool) -> Any:
    """Return an index of faiss with room for `rows`; kind: faiss's metric."""
    index: Any = faiss.IndexFlat(dim, kind)
    if in_bytes:
        direct = faiss.ScalarQuantizer.QT_8bit_direct
        index = faiss.IndexScalarQuantizer(dim, direct, kind)
    bridge.reserve(index.codes, rows * index.code_size)
    return index


def _copied(stored: Any, rows: int, in_bytes: bool) -> Any:
    """Return a copy of an index of faiss, with room for `rows`."""
    copy = _empty(stored.d, stored.metric_type, rows, in_bytes)
    for some in parts(_numbers(stored)) if stored.ntotal else ():
        copy.add(some.astype(np.float32))
    return copy


def _fit_bytes(vectors: Vectors) -> bool:
    """Return whether all numbers are whole ones from 0 to 255."""
    if not len(vectors):
        return True
    if vectors.min() < 0 or vectors.max() > LARGEST_BYTE:
        return False
    return all(np.array_equal(some, np.rint(some)) for some in parts(vectors))


def _width(dim: int) -> int:
    return -(-dim // SCALE_BYTES) * SCALE_BYTES + SCALE_BYTES


def _round(vectors: Vectors, origin: NDArray[np.float32], numbers: NDArray[np.int8]) -> None:
    """Write the compact form of vectors (m, dim) into `numbers` (m, width)."""
    differences = vectors - origin
    scales = np.abs(differences).max(axis=1) / np.float32(LARGEST)
    differences /= np.where(scales > 0, scales, 1)[:, None]
    numbers[:, : len(origin)] = np.rint(differences)
    numbers[:, -SCALE_BYTES:].view(np.float32)[:, 0] = scales
