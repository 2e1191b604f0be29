"""Exact search: every vector is compared with every query, by faiss."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import faiss
import numpy as np

from indexers.faiss import bridge, gpu
from indexers.faiss.uncoded import UncodedIndex
from retrieval.choices import choice
from retrieval.contracts import Blocks, Index, Mask, Metric, Vectors
from retrieval.hits import (
    Found,
    InMemory,
    checked_blocks,
    prepared,
    sort,
)
from retrieval.values import resolve_options

MAX_TIED_DISTANCES = 2**24  # in memory while ties are settled


@dataclass(frozen=True)
class Exact:
    """`exact`: compare a query with every row, and so find its true neighbors.

    device: auto searches on a GPU if faiss sees one, and on the CPU otherwise. Manhattan distance
    runs on the CPU only.
    """

    metric: Metric = Metric.COSINE
    device: str = "auto"
    search_options: ClassVar[frozenset[str]] = frozenset({"device"})

    def __post_init__(self) -> None:
        resolve_options(self)
        gpu.check_device(self.device, self.metric)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["Exact"]:
        """Return the only candidate."""
        return [cls(choice(Metric, metric))]

    def ladders(self) -> list[list["Exact"]]:
        """Return one ladder of one rung: there are no search options to choose."""
        return [[self]]

    def apply(self, index: Index) -> None:
        """Do nothing: there are no search options to set."""

    def build(self, vectors: Vectors) -> "ExactIndex":
        """Build an index of a copy of vectors (n, dim), n ≥ 1. Raises BadInput for others."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> "ExactIndex":
        """Build an index from blocks of vectors; see `Streaming`."""
        index = faiss.IndexFlat(blocks.dim, bridge.METRICS[self.metric])
        bridge.reserve(index.codes, blocks.rows * index.code_size)
        for _, block in checked_blocks(blocks, self.metric):
            index.add(block)
        return self._searched(index)

    def load(self, folder: Path) -> "ExactIndex":
        """Load the index saved in the folder.

        Raises BadData if it is missing or damaged, BadInput for device=cuda without a GPU.
        """
        return self._searched(bridge.load(folder, faiss.IndexFlat, self.metric))

    def _searched(self, index: faiss.IndexFlat) -> "ExactIndex":
        there = gpu.on_gpu(self.device, self.metric)
        return ExactIndex(index, self.metric, gpu.Gpu(index, index.ntotal) if there else None)


class ExactIndex(UncodedIndex):
    """faiss's flat index. Among rows at equal distance it finds the lowest.

    For many queries in float32 faiss computes |q|² + |x|² - 2qx. A Euclidean distance near 0 is
    then wrong by up to a few thousandths of the vectors' length.

    With a GPU, searches with a mask, and for more than 2047 rows, run on the CPU.
    """

    def stored(self) -> Blocks:
        """Return the vectors of all rows."""
        return InMemory(bridge.vectors_of(self.index))

    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        queries = prepared(queries, self.metric)
        parameters = None
        if among is not None:
            parameters = faiss.SearchParameters(sel=bridge.selector(among))  # type: ignore[call-arg]
        matching = len(self) if among is None else int(np.count_nonzero(among))

        def nearest(queries: Vectors, count: int) -> Found:
            if self.gpu is not None and parameters is None and count <= gpu.MAX_K_OR_PROBES:
                rows, scores = self.gpu.search(queries, count)
            else:
                scores, rows = self.index.search(queries, count, params=parameters)
            return rows, bridge.to_distances(scores, self.metric)

        if count == matching:
            return nearest(queries, count)
        # faiss keeps any of the rows that tie at rank k. One more row shows where there are ties.
        # For these queries, more rows are fetched until all tied rows are known.
        rows, distances = nearest(queries, count + 1)
        tied = np.flatnonzero(distances[:, count - 1] == distances[:, count])
        rows = np.ascontiguousarray(rows[:, :count])
        distances = np.ascontiguousarray(distances[:, :count])
        at_once = max(1, MAX_TIED_DISTANCES // matching)
        for start in range(0, len(tied), at_once):
            lines, wide = tied[start : start + at_once], count + 1
            while len(lines):
                wide = min(2 * wide, matching)
                more_rows, more_distances = nearest(queries[lines], wide)
                whole = (more_distances[:, count - 1] < more_distances[:, -1]) | (wide == matching)
                more_rows, more_distances = more_rows[whole], more_distances[whole]
                sort(more_rows, more_distances)
                rows[lines[whole]] = more_rows[:, :count]
                distances[lines[whole]] = more_distances[:, :count]
                lines = lines[~whole]
        return rows, distances
