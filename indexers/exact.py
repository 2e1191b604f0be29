"""Exact search: every vector is compared with every query, by faiss."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import faiss
import numpy as np

from indexers.faiss import bridge, gpu
from retrieval.choices import choice
from retrieval.contracts import Blocks, Hits, Index, Json, Mask, Metric, Rows, Vectors
from retrieval.hits import (
    Found,
    InMemory,
    answer,
    checked_additions,
    checked_blocks,
    prepared,
    prepared_blocks,
    sort,
)
from retrieval.values import resolve_options

TIED_CELLS = 2**24  # distances that are held at once while ties are settled


@dataclass(frozen=True)
class Exact:
    """`exact`: the true neighbors, at the price of one comparison per row and query.

    device: auto searches on a GPU where faiss sees one, and on the CPU otherwise. Manhattan
    distance is the CPU's alone.
    """

    metric: Metric = Metric.COSINE
    device: str = "auto"
    search_options: ClassVar[frozenset[str]] = frozenset({"device"})

    def __post_init__(self) -> None:
        resolve_options(self)
        gpu.check_device(self.device, self.metric)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["Exact"]:
        """There is one."""
        return [cls(choice(Metric, metric))]

    def ladders(self) -> list[list["Exact"]]:
        """There is nothing to choose."""
        return [[self]]

    def apply(self, index: Index) -> None:
        """Nothing: it always compares all."""

    def build(self, vectors: Vectors) -> "ExactIndex":
        """An index of the vectors (n, dim), n ≥ 1, in a copy. Raises BadInput for others."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> "ExactIndex":
        """The same from blocks, as `Streaming` says."""
        index = faiss.IndexFlat(blocks.dim, bridge.METRICS[self.metric])
        bridge.reserve(index.codes, blocks.rows * index.code_size)
        for _, block in checked_blocks(blocks, self.metric):
            index.add(block)
        return self._searched(index)

    def load(self, folder: Path) -> "ExactIndex":
        """The index saved in the folder.

        Raises BadData if it is not there or damaged, BadInput for device=cuda without a GPU.
        """
        return self._searched(bridge.load(folder, faiss.IndexFlat, self.metric))

    def _searched(self, index: faiss.IndexFlat) -> "ExactIndex":
        there = gpu.on_gpu(self.device, self.metric)
        return ExactIndex(index, self.metric, gpu.Gpu(index, index.ntotal) if there else None)


class ExactIndex:
    """faiss's flat index. Of rows equally far away, it finds the lowest."""

    def __init__(self, index: faiss.IndexFlat, metric: Metric | str, there: gpu.Gpu | None) -> None:
        self.index = index
        self.metric = choice(Metric, metric)
        self.gpu = there

    @property
    def details(self) -> Mapping[str, Json]:
        """The device that the index was made for, and the memory that it was planned to take."""
        return gpu.details(self.gpu)

    @property
    def dim(self) -> int:
        """How many numbers a vector has."""
        return self.index.d

    def __len__(self) -> int:
        return self.index.ntotal

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """The k nearest rows, as `Index` and `Hits` say.

        With float32 and many queries faiss computes |q|² + |x|² - 2qx: a Euclidean distance is
        then off by up to a few thousandths of the vectors' length where it is near 0.

        With a GPU, searches with a mask, and for more than 2047 rows, run on the CPU.
        """
        return answer(self._nearest, queries, k, among, dim=self.dim, rows=len(self))

    def add(self, vectors: Vectors) -> None:
        """Add rows, as `Growing` says."""
        vectors = checked_additions(vectors, self.dim, self.metric)
        if self.gpu is not None:
            self.gpu.check_room(len(vectors))
        for _, block in prepared_blocks(vectors, self.metric):
            self.index.add(block)
        self._to_gpu()

    def delete(self, rows: Rows) -> None:
        """Delete rows, as `Shrinking` says."""
        self.index.remove_ids(rows)  # type: ignore[arg-type]
        self._to_gpu()

    def stored(self) -> Blocks:
        """Return the vectors of all rows."""
        return InMemory(bridge.vectors_of(self.index))

    def save(self, folder: Path) -> None:
        """Write index.faiss, for `faiss.read_index`; cosine's vectors are of length 1."""
        bridge.save(self.index, folder)

    def _to_gpu(self) -> None:
        if self.gpu is not None:
            self.gpu = None  # the GPU need not have room for both
            self.gpu = gpu.Gpu(self.index, len(self))

    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        queries = prepared(queries, self.metric)
        parameters = None
        if among is not None:
            parameters = faiss.SearchParameters(sel=bridge.selector(among))  # type: ignore[call-arg]
        matching = len(self) if among is None else int(np.count_nonzero(among))

        def nearest(queries: Vectors, count: int) -> Found:
            if self.gpu is not None and parameters is None and count <= gpu.LIMIT:
                rows, scores = self.gpu.search(queries, count)
            else:
                scores, rows = self.index.search(queries, count, params=parameters)
            return rows, bridge.to_distances(scores, self.metric)

        if count == matching:
            return nearest(queries, count)
        # faiss keeps any of the rows that are equally far away at rank k. One more row shows
        # where that happens; there, more are fetched until all the equals are at hand.
        rows, distances = nearest(queries, count + 1)
        tied = np.flatnonzero(distances[:, count - 1] == distances[:, count])
        rows = np.ascontiguousarray(rows[:, :count])
        distances = np.ascontiguousarray(distances[:, :count])
        at_once = max(1, TIED_CELLS // matching)
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
