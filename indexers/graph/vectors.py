"""The vectors that a walk ranks its candidates by: whole, or rounded to 8 bits a number.

A compact vector is `origin + scale * numbers`, with integers from -127 to 127 and a scale of its
own, so that one long vector takes no precision from the others. So does the first level of LVQ
(Aguerrebere et al., Similarity search in the blink of an eye with compressed indices, VLDB 2023).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from indexers.faiss import bridge
from retrieval.choices import choice
from retrieval.contracts import Metric, Rows, Vectors
from retrieval.errors import BadData
from retrieval.storage.files import write_whole

FILE = "compact.npy"
LARGEST = 127
PART_ROWS = 1_024  # converted at a time
SCALE_BYTES = 4  # a float32 at the end of each compact vector
NO_NUMBERS = np.empty(0, np.float32)

Arrays = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]


class RankedVectors(Protocol):
    """The distinct vectors (n, dim) of an index."""

    @property
    def dim(self) -> int:
        """Number of dimensions."""

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
    """Vectors in float32, in a flat index of faiss, where they are used in place."""

    def __init__(self, flat: faiss.IndexFlat, is_mapped: bool = False) -> None:
        """is_mapped: whether the vectors lie in the file."""
        self.flat: Any = flat
        self.is_mapped = is_mapped
        self.vectors = bridge.vectors_of(flat)

    @classmethod
    def of(cls, blocks: Iterable[Vectors], rows: int, dim: int, metric: Metric | str) -> Self:
        """Return the vectors in blocks (m, dim), `rows` in all, of a graph with this metric."""
        metric = choice(Metric, metric)
        flat: Any = faiss.IndexFlat(dim, bridge.METRICS[metric])
        bridge.reserve(flat.codes, rows * flat.code_size)
        for block in blocks:
            flat.add(block)
        return cls(flat)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self.flat.d)

    @property
    def arrays(self) -> Arrays:
        """See `RankedVectors`."""
        return self.vectors, NO_NUMBERS, NO_NUMBERS

    def __len__(self) -> int:
        return int(self.flat.ntotal)

    def fetch(self, rows: Rows | slice) -> Vectors:
        """See `RankedVectors`."""
        return self.vectors[rows]

    def rounded(self, vectors: Vectors) -> Vectors:
        """Return the vectors unchanged."""
        return vectors

    def grown(self, vectors: Vectors) -> Self:
        """Return these vectors followed by others (m, dim)."""
        flat = self.flat
        if self.is_mapped:  # a mapped file has no room for more
            flat = faiss.IndexFlat(self.dim, flat.metric_type)
            bridge.reserve(flat.codes, (len(self) + len(vectors)) * flat.code_size)
            flat.add(self.vectors)
        flat.add(vectors)
        return type(self)(flat)


class CompactVectors:
    """Vectors in 8 bits a number, with a relative error of up to about 1%.

    numbers: (n, width) int8, of each vector its integers, zeros up to a multiple of 4, and its
    scale in float32. origin: (dim,).
    """

    def __init__(self, numbers: NDArray[np.int8], origin: NDArray[np.float32]) -> None:
        self.numbers = numbers
        self.origin = origin
        self.scales = numbers[:, -SCALE_BYTES:].view(np.float32)[:, 0]

    @classmethod
    def of(cls, blocks: Iterable[Vectors], rows: int, origin: NDArray[np.float32]) -> Self:
        """Return the vectors in blocks (m, dim), `rows` in all, rounded."""
        numbers = np.zeros((rows, _width(len(origin))), np.int8)
        start = 0
        for block in blocks:
            for part in range(0, len(block), PART_ROWS):
                some = block[part : part + PART_ROWS]
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
            numbers = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as problem:
            raise BadData(f"{path} is damaged ({problem}); build the index again") from None
        shape = rows, _width(len(origin))
        if numbers.dtype != np.int8 or numbers.shape != shape or not numbers.flags.c_contiguous:
            raise BadData(
                f"{path} has {numbers.dtype} of shape {numbers.shape}, wanted int8 of {shape}; "
                "build the index again"
            )
        loaded = cls(np.asarray(numbers), origin)
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


def _width(dim: int) -> int:
    return -(-dim // SCALE_BYTES) * SCALE_BYTES + SCALE_BYTES


def _round(vectors: Vectors, origin: NDArray[np.float32], numbers: NDArray[np.int8]) -> None:
    """Write the compact form of vectors (m, dim) into `numbers` (m, width)."""
    differences = vectors - origin
    scales = np.abs(differences).max(axis=1) / np.float32(LARGEST)
    differences /= np.where(scales > 0, scales, 1)[:, None]
    numbers[:, : len(origin)] = np.rint(differences)
    numbers[:, -SCALE_BYTES:].view(np.float32)[:, 0] = scales
