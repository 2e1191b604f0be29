"""Inverted lists of 4-bit product codes, scanned in registers and refined by the vectors.

Jégou, Douze, Schmid, Product Quantization for Nearest Neighbor Search (TPAMI 2011), and André,
Kermarrec, Le Scouarnec, Cache locality is not enough: High-Performance Nearest Neighbor Search with
Product Quantization Fast Scan (VLDB 2015): faiss's IndexIVFPQFastScan in an IndexRefineFlat.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import faiss
import numpy as np

from indexers.copies import Copies
from indexers.faiss import bridge
from indexers.faiss.index import FaissIndex
from indexers.faiss.lists import (
    NEIGHBORS,
    drawn_rows,
    list_count,
    probes_needed,
    training_rows,
)
from indexers.options import PROBES, check_range
from indexers.projection import fewer_axes, projection
from retrieval.choices import choice
from retrieval.contracts import Blocks, Hits, Index, Json, Metric, Rows, Vectors
from retrieval.errors import BadInput
from retrieval.hits import InMemory, checked_blocks, without_own
from retrieval.quality.metrics import index_recall_at
from retrieval.values import resolve_options

METRICS = frozenset({Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT})
CODES = 16  # of 4 bits
REFINE_DEFAULTS = (10, 20, 40, 80, 160, 320, 640)
"""Candidates for each neighbor that the default is chosen from."""

RECALL_MARGIN = 0.005  # gain of recall that is worth more candidates
REFINE_TRIED = (2, 4, 8, 16, 64)
"""Candidates for each neighbor that `auto` tries."""

TARGET_RECALL = 0.98
"""Recall@10 of the default for rows of the index; for other queries it may be a little less."""


@dataclass(frozen=True)
class IvfPq:
    """`ivfpq`: scan the codes of the `n_probe` nearest lists, and rank the best by the vectors.

    n_lists: None for 4·√rows, or fewer so that a list has 39 rows on average; never more than rows.
    n_probe: lists scanned per query; more cost time and raise recall. None for 32, or for more
    if the 10 nearest neighbors of a sample of the rows lie in more lists.
    axes: number of principal axes for codes, rounded up to a multiple of 16; None for the fewest
    along which neighbors stay near, see `indexers.projection`. The vectors' own dimensions if they
    are fewer.
    per_code: numbers that share a code of 4 bits; should divide the axes, or else fewer share one.
    refine: candidates per requested neighbor, whose vectors are compared; more cost time and raise
    recall. None for 10, or for more if a sample of the rows needs more.
    seed: of the draw of training rows, first centroids, and rotation of the axes.

    Copies of a vector have one code, and all copies are found; see `indexers.copies`.
    """

    metric: Metric = Metric.COSINE
    n_lists: int | None = None
    n_probe: int | None = None
    axes: int | None = None
    per_code: int = 2
    refine: int | None = None
    seed: int = 0
    search_options: ClassVar[frozenset[str]] = frozenset({"n_probe", "refine"})

    def __post_init__(self) -> None:
        resolve_options(self)
        if self.metric not in METRICS:
            raise BadInput(
                f"faiss has no product codes for {self.metric} distance; use the backend exact or "
                "ivf"
            )
        if self.n_lists is not None:
            check_range("n_lists", self.n_lists, 1)
        if self.n_probe is not None:
            check_range("n_probe", self.n_probe, 1)
        if self.axes is not None:
            check_range("axes", self.axes, 1)
        check_range("per_code", self.per_code, 1)
        if self.refine is not None:
            check_range("refine", self.refine, 1, 10_000)
        check_range("seed", self.seed, 0, 2**31 - 1)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["IvfPq"]:
        """Return codes of all axes and of fewer."""
        metric = choice(Metric, metric)
        most = {"n_probe": PROBES[-1], "refine": REFINE_TRIED[-1]}
        return [
            cls(metric, axes=axes, seed=seed, **most)
            for axes in fewer_axes(dim)
            if metric in METRICS
        ]

    def ladders(self) -> list[list["IvfPq"]]:
        """Return ladders by ascending `n_probe`, one for each of several `refine`."""
        return [
            [replace(self, refine=refine, n_probe=n_probe) for n_probe in PROBES]
            for refine in REFINE_TRIED
        ]

    def apply(self, index: Index) -> None:
        """Set `n_probe` and `refine` of the index, unless they are None."""
        assert isinstance(index, FaissIndex)
        self._set(index.index)

    def settled(self, index: Index) -> "IvfPq":
        """Return these options, with the index's own in place of those that are None."""
        assert isinstance(index, FaissIndex)
        return replace(
            self,
            n_probe=self.n_probe or bridge.inside(index.index).nprobe,
            refine=self.refine or int(cast(Any, index.index).k_factor),
        )

    def build(self, vectors: Vectors) -> FaissIndex:
        """Build an index of vectors (n, dim), n ≥ 1, which are not changed. Raises BadInput."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> FaissIndex:
        """Build an index from blocks of vectors; see `Streaming`."""
        copies = Copies.find(blocks, self.metric)
        blocks = copies.distinct(blocks)
        rows, dim = blocks.rows, blocks.dim
        lists = list_count(rows, self.n_lists)
        metric = bridge.METRICS[self.metric]
        # Codes need more training rows than few lists do.
        sample = training_rows(blocks, max(lists, CODES), self.seed, self.metric)
        turn = projection(sample, self.metric, self.axes, mixed=True, seed=self.seed)
        kept = dim if turn is None else turn.d_out
        codes = kept // max(n for n in range(1, min(self.per_code, kept) + 1) if kept % n == 0)
        base = faiss.IndexIVFPQFastScan(
            faiss.IndexFlat(kept, metric), kept, lists, codes, 4, metric
        )
        # Codes of what sets a vector apart from its centroid say more. Products of them cost no
        # more than those of vectors; squares would want a table for each list that is probed.
        base.by_residual = metric == faiss.METRIC_INNER_PRODUCT
        for training in (base.cp, base.pq.cp):
            training.seed = self.seed
            training.min_points_per_centroid = 1  # no warning: the caller chose fewer than 39
        index = faiss.IndexRefineFlat(base if turn is None else faiss.IndexPreTransform(turn, base))
        if len(sample) < CODES:
            sample = np.resize(sample, (CODES, dim))  # faiss needs a row for each code
        index.train(sample)
        del sample
        bridge.reserve_vectors(index, rows)
        for _, block in checked_blocks(blocks, self.metric):
            index.add(block)
        searched = self._searched(index, copies)
        if self.n_probe is None or self.refine is None:
            self._settle(searched, *drawn_rows(blocks, self.seed, self.metric))
        return searched

    def load(self, folder: Path) -> FaissIndex:
        """Load the index saved in the folder, with this `n_probe` and `refine`.

        Saved values replace those that are None.

        Raises BadData if it is missing or damaged.
        """
        index = bridge.load_refined(folder, faiss.IndexIVFPQFastScan, self.metric)
        return self._searched(index, Copies.load(folder, int(index.ntotal)))

    def _searched(self, index: Any, copies: Copies) -> FaissIndex:
        lists = self._set(index)
        details: dict[str, Json] = {
            "lists": lists.nlist,
            "axes": lists.d,
            "bits": 4 * lists.pq.M,
        }
        return FaissIndex(index, self.metric, details, copies)

    def _set(self, index: Any) -> Any:
        """Set search options of faiss's index, and return its lists."""
        lists = bridge.inside(index)
        if self.n_probe is not None:
            lists.nprobe = min(self.n_probe, lists.nlist)
        if self.refine is not None:
            index.k_factor = self.refine
        return lists

    def _settle(self, index: FaissIndex, rows: Rows, queries: Vectors) -> None:
        """Choose the search options that are None, by a sample of the index's vectors.

        rows: (q,) their numbers. queries: (q, dim).
        """
        assert index.vectors is not None
        count = min(NEIGHBORS + 1, index.copies.vectors)
        true = bridge.compared(index.vectors, queries, count, None, self.metric)
        neighbors = without_own(Hits(*true), rows)
        if neighbors.rows.size == 0:
            return
        whole: Any = index.index
        base: Any = faiss.downcast_index(whole.base_index)
        lists = bridge.inside(base)
        if self.n_probe is None:
            near = bridge.vectors_of(index.vectors)[neighbors.rows.ravel()]
            turned, near = (_turned(base, vectors) for vectors in (queries, near))
            of_neighbors = lists.quantizer.search(near, 1)[1].reshape(neighbors.rows.shape)
            lists.nprobe = probes_needed(lists.quantizer, turned, of_neighbors)
        if self.refine is None:
            recalls: dict[int, float] = {}
            for refine in REFINE_DEFAULTS:
                whole.k_factor = refine
                found = without_own(Hits(*index.nearest(queries, count, None)), rows)
                recalls[refine] = self._recall(found, neighbors)
                if recalls[refine] >= TARGET_RECALL:
                    break
            best = max(recalls.values())  # below the target if too few lists are scanned
            enough = min(TARGET_RECALL, best - RECALL_MARGIN)
            whole.k_factor = next(each for each in REFINE_DEFAULTS if recalls[each] >= enough)

    def _recall(self, hits: Hits, true: Hits) -> float:
        return float(index_recall_at(hits.distances, true.distances, NEIGHBORS, self.metric).mean())


def _turned(base: Any, vectors: Vectors) -> Vectors:
    """Return the vectors as the lists have them: on the axes, if they are rotated."""
    if not isinstance(base, faiss.IndexPreTransform):
        return vectors
    chain: Any = base.chain
    turned: Vectors = faiss.downcast_VectorTransform(chain.at(0)).apply(vectors)
    return turned
