"""HNSW over vectors that are turned onto principal axes and kept in bytes, refined by the vectors.

A walk compares a query with hundreds of vectors, and waits for memory most of the time: with a
quarter of the bytes a number, on a part of the numbers, it is over sooner, and the loss is made
good by comparing the best candidates with the query as they are. The parts are faiss's:
IndexHNSWSQ (Malkov & Yashunin, TPAMI 2020) of 8-bit numbers behind a LinearTransform, in an
IndexRefineFlat.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from indexers import faiss_bridge
from indexers.faiss_index import FaissIndex
from indexers.options import EFFORTS, check_range
from indexers.projection import fewer_axes, projection
from retrieval.contracts import Blocks, Json, Metric, Vectors
from retrieval.errors import BadInput
from retrieval.hits import BLOCK, InMemory, checked_blocks

EIGHT_BITS: Any = faiss.ScalarQuantizer.QT_8bit
METRICS = frozenset({Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT})


@dataclass(frozen=True)
class HnswSq:
    """`hnsw-sq`: walks a graph of compressed vectors, and ranks what it found by the vectors.

    axes: principal axes that are kept, raised to a multiple of 16; None for those that keep 95% of
    the variance; the vectors' own dimensions where these are no more.
    m: links per vector and layer; more cost memory and raise recall.
    ef_construction: candidates kept while a vector is linked; more cost build time.
    ef: candidates kept while a query walks; more cost time and raise recall.
    refine: candidates for each neighbor that is asked for, which are compared as they are; more
    cost time and raise recall, the more so the fewer axes there are.
    build_threads: threads that link; 0 for all cores. How threads take turns shows in the graph:
    only 1 builds the same graph every time.
    """

    metric: Metric = Metric.COSINE
    axes: int | None = None
    m: int = 16
    ef_construction: int = 200
    ef: int = 64
    refine: int = 4
    build_threads: int = 0
    search_options: ClassVar[frozenset[str]] = frozenset({"ef", "refine"})

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise BadInput(
                f"faiss has no graph of bytes for {self.metric} distance; use the backend exact or "
                "ivf for it"
            )
        if self.axes is not None:
            check_range("axes", self.axes, 1)
        check_range("m", self.m, 2, 1024)
        check_range("ef_construction", self.ef_construction, 1, 2**31 - 1)
        check_range("ef", self.ef, 1, 2**31 - 1)
        check_range("refine", self.refine, 1, 10_000)
        check_range("build_threads", self.build_threads, 0, 1024)

    @classmethod
    def candidates(cls, metric: Metric, rows: int, dim: int, seed: int) -> list["HnswSq"]:
        """Graphs of usual and of many links, over all axes and over fewer."""
        return [
            cls(metric, axes=axes, m=m)
            for axes in fewer_axes(dim)
            for m in (16, 32)
            if metric in METRICS
        ]

    def ladders(self) -> list[list["HnswSq"]]:
        """By `ef`, for each of several `refine`."""
        return [
            [replace(self, refine=refine, ef=ef) for ef in EFFORTS]
            for refine in (1, 2, 3, 4, 6, 10)
        ]

    def build(self, vectors: Vectors) -> FaissIndex:
        """An index of the vectors (n, dim), n ≥ 1, in copies. Raises BadInput for others."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> FaissIndex:
        """The same from blocks, as `Streaming` says."""
        metric = faiss_bridge.METRICS[self.metric]
        sample = _sample(blocks, max(1, blocks.rows // BLOCK), self.metric)
        turn = projection(sample, self.metric, self.axes)
        kept = blocks.dim if turn is None else turn.d_out
        graph = faiss.IndexHNSWSQ(kept, EIGHT_BITS, self.m, metric)
        graph.hnsw.efConstruction = self.ef_construction
        base = graph if turn is None else faiss.IndexPreTransform(turn, graph)
        index = faiss.IndexRefineFlat(base)
        index.train(sample)
        faiss_bridge.reserve_vectors(index, blocks.rows)
        with faiss_bridge.threads(self.build_threads):
            for _, block in checked_blocks(blocks, self.metric):
                index.add(block)
        return self._searched(index)

    def load(self, folder: Path) -> FaissIndex:
        """The index saved in the folder, to be searched with this `ef` and `refine`.

        Raises BadData if it is not there or damaged.
        """
        return self._searched(faiss_bridge.load_refined(folder, faiss.IndexHNSWSQ, self.metric))

    def _searched(self, index: Any) -> FaissIndex:
        graph = faiss_bridge.inside(index)
        graph.hnsw.efSearch = min(self.ef, max(1, index.ntotal))  # faiss makes room for as many
        index.k_factor = self.refine
        details: dict[str, Json] = {"axes": graph.d}
        return FaissIndex(index, self.metric, details)


def _sample(blocks: Blocks, every: int, metric: Metric) -> Vectors:
    """Every so manieth of the vectors, prepared."""
    return np.concatenate(
        [block[-start % every :: every] for start, block in checked_blocks(blocks, metric)]
    )
