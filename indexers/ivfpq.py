"""Inverted lists of 4-bit product codes that are scanned in registers, refined by the vectors.

Jégou, Douze, Schmid, Product Quantization for Nearest Neighbor Search (TPAMI 2011), and André,
Kermarrec, Le Scouarnec, Cache locality is not enough: High-Performance Nearest Neighbor Search with
Product Quantization Fast Scan (VLDB 2015): faiss's IndexIVFPQFastScan in an IndexRefineFlat.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from indexers import faiss_bridge
from indexers.faiss_index import FaissIndex
from indexers.lists import list_count, training_rows
from indexers.options import PROBES, check_range
from indexers.projection import fewer_axes, projection
from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Blocks, Index, Json, Metric, Vectors
from retrieval.errors import BadInput
from retrieval.hits import InMemory, checked_blocks

METRICS = frozenset({Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT})
CODES = 16  # of 4 bits


@dataclass(frozen=True)
class IvfPq:
    """`ivfpq`: scans the codes of the `n_probe` nearest lists, and ranks the best by the vectors.

    n_lists: None for 4·√rows, but no more than leave 39 rows per list; never more than rows.
    n_probe: lists scanned per query; more cost time and raise recall.
    axes: principal axes that codes are made of, raised to a multiple of 16; None for the fewest
    along which neighbors stay near, see `indexers.projection`; the vectors' own dimensions where
    these are no more.
    per_code: numbers that share a code of 4 bits; it should divide the axes, or else fewer share.
    refine: candidates for each neighbor that is asked for, which are compared as they are; more
    cost time and raise recall.
    seed: draws the training rows, the first centroids, and how the axes are mixed.
    """

    metric: Metric = Metric.COSINE
    n_lists: int | None = None
    n_probe: int = 32
    axes: int | None = None
    per_code: int = 2
    refine: int = 10
    seed: int = 0
    search_options: ClassVar[frozenset[str]] = frozenset({"n_probe", "refine"})

    def __post_init__(self) -> None:
        resolve_choices(self)
        if self.metric not in METRICS:
            raise BadInput(
                f"faiss has no product codes for {self.metric} distance; use the backend exact or "
                "ivf for it"
            )
        if self.n_lists is not None:
            check_range("n_lists", self.n_lists, 1)
        check_range("n_probe", self.n_probe, 1)
        if self.axes is not None:
            check_range("axes", self.axes, 1)
        check_range("per_code", self.per_code, 1)
        check_range("refine", self.refine, 1, 10_000)
        check_range("seed", self.seed, 0, 2**31 - 1)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["IvfPq"]:
        """Codes of all axes and of fewer."""
        metric = choice(Metric, metric)
        return [cls(metric, axes=axes, seed=seed) for axes in fewer_axes(dim) if metric in METRICS]

    def ladders(self) -> list[list["IvfPq"]]:
        """By `n_probe`, for each of several `refine`."""
        return [
            [replace(self, refine=refine, n_probe=n_probe) for n_probe in PROBES]
            for refine in (2, 4, 8, 16)
        ]

    def apply(self, index: Index) -> None:
        """Set `n_probe` and `refine`."""
        assert isinstance(index, FaissIndex)
        self._set(index.index)

    def build(self, vectors: Vectors) -> FaissIndex:
        """An index of the vectors (n, dim), n ≥ 1, in copies. Raises BadInput for others."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> FaissIndex:
        """The same from blocks, as `Streaming` says."""
        rows, dim = blocks.rows, blocks.dim
        lists = list_count(rows, self.n_lists)
        metric = faiss_bridge.METRICS[self.metric]
        # Codes want more training rows than few lists do.
        sample = training_rows(blocks, max(lists, CODES), self.seed, self.metric)
        turn = projection(sample, self.metric, self.axes, mixed=True, seed=self.seed)
        kept = dim if turn is None else turn.d_out
        codes = kept // max(n for n in range(1, min(self.per_code, kept) + 1) if kept % n == 0)
        base = faiss.IndexIVFPQFastScan(
            faiss.IndexFlat(kept, metric), kept, lists, codes, 4, metric
        )
        for training in (base.cp, base.pq.cp):
            training.seed = self.seed
            training.min_points_per_centroid = 1  # below 39 by the caller's choice: no warning
        index = faiss.IndexRefineFlat(base if turn is None else faiss.IndexPreTransform(turn, base))
        if len(sample) < CODES:
            sample = np.resize(sample, (CODES, dim))  # faiss wants a row for each code
        index.train(sample)
        del sample
        faiss_bridge.reserve_vectors(index, rows)
        for _, block in checked_blocks(blocks, self.metric):
            index.add(block)
        return self._searched(index)

    def load(self, folder: Path) -> FaissIndex:
        """The index saved in the folder, to be searched with this `n_probe` and `refine`.

        Raises BadData if it is not there or damaged.
        """
        return self._searched(
            faiss_bridge.load_refined(folder, faiss.IndexIVFPQFastScan, self.metric)
        )

    def _searched(self, index: Any) -> FaissIndex:
        lists = self._set(index)
        details: dict[str, Json] = {
            "lists": lists.nlist,
            "axes": lists.d,
            "bits": 4 * lists.pq.M,
        }
        return FaissIndex(index, self.metric, details)

    def _set(self, index: Any) -> Any:
        """The lists of faiss's index, with these search options."""
        lists = faiss_bridge.inside(index)
        lists.nprobe = min(self.n_probe, lists.nlist)
        index.k_factor = self.refine
        return lists
