"""Search several indices as one."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from retrieval.contracts import Hits, Index, Json, Mask, Vectors
from retrieval.hits import Found, merged
from retrieval.index.renumbering import plain
from retrieval.runtime.threads import usable_cores

MAX_QUERIES = 16
"""Queries up to which segments are searched side by side. Each segment divides more of them among
the cores itself."""


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
        cores = min(usable_cores(), len(self.parts))
        if cores == 1 or len(queries) > MAX_QUERIES:
            return Hits(*merged(self._found(range(len(self.parts)), queries, k, among), k))
        groups = np.array_split(np.arange(len(self.parts)), cores)
        found = [
            self._threads.submit(self._found, group, queries, k, among) for group in groups[1:]
        ]
        here = self._found(groups[0], queries, k, among)
        return Hits(*merged([*here, *chain.from_iterable(each.result() for each in found)], k))

    def _found(
        self, numbers: Iterable[int], queries: Vectors, k: int, among: Mask | None
    ) -> list[Found]:
        """Return the hits of these segments, with the rows of the whole index."""
        found = []
        for number in numbers:
            start, end = self._starts[number : number + 2]
            hits = self.parts[number].search(
                queries, k, None if among is None else among[start:end]
            )
            found.append((np.where(hits.rows < 0, -1, hits.rows + start), hits.distances))
        return found

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(usable_cores(), thread_name_prefix="segments")

    def save(self, folder: Path) -> None:
        """Write each segment into a folder of its own, 0, 1, …"""
        for number, part in enumerate(self.parts):
            inside = folder / str(number)
            inside.mkdir()
            part.save(inside)


def segments_of(index: Index) -> Sequence[Index]:
    """Return the libraries' indices of the segments, or of the index itself."""
    return [plain(each) for each in (index.parts if isinstance(index, SegmentedIndex) else [index])]
