"""Search several indices as one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from retrieval.contracts import Hits, Index, Json, Mask, Vectors
from retrieval.hits import merged
from retrieval.index.renumbering import plain


class SegmentedIndex:
    """Index of the rows of all its segments, in their order.

    The k nearest rows of all are among the k nearest of each segment. So exact search has the same
    hits as in a single index.
    """

    def __init__(self, parts: Sequence[Index]) -> None:
        """Join at least one segment, all of the same dimension and metric."""
        self.parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    @property
    def dim(self) -> int:
        """Return the dimension of a vector."""
        return self.parts[0].dim

    @property
    def details(self) -> Mapping[str, Json]:
        """Return the number of segments, as `parts`, and the details of the first segment."""
        return {"parts": len(self.parts), **self.parts[0].details}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows of all segments; see `Index`."""
        rows, distances = [], []
        for start, end, part in zip(self._starts, self._starts[1:], self.parts, strict=False):
            hits = part.search(queries, k, None if among is None else among[start:end])
            rows.append(np.where(hits.rows < 0, -1, hits.rows + start))
            distances.append(hits.distances)
        return Hits(*merged([*zip(rows, distances, strict=True)], k))

    def save(self, folder: Path) -> None:
        """Write each segment into a folder of its own, 0, 1, …"""
        for number, part in enumerate(self.parts):
            inside = folder / str(number)
            inside.mkdir()
            part.save(inside)


def segments_of(index: Index) -> Sequence[Index]:
    """Return the libraries' indices of the segments, or of the index itself."""
    return [plain(each) for each in (index.parts if isinstance(index, SegmentedIndex) else [index])]
