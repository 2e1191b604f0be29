"""Choose the default number of candidates that the walk of a graph keeps."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexers.faiss.lists import drawn_rows
from retrieval.choices import choice
from retrieval.contracts import Blocks, Index, Metric, Rows, Vectors
from retrieval.quality.metrics import index_recall_at

DEFAULT_EF = 128
EF_DEFAULTS = (DEFAULT_EF, 256, 512, 1024)
"""Numbers of candidates to choose the default from."""

TARGET_RECALL = 0.975
"""Minimum recall@10 of the default, for the queries of `_new_queries`. Real queries may miss up to
twice as many neighbors."""

RECALL_MARGIN = 0.005  # a gain in recall below this is not worth more candidates
NEIGHBORS = 10
COMPARED_ROWS = 8_192  # at a time: faiss keeps a copy of them, and their distances


def settle_ef(
    set_ef: Callable[[int], None], index: Index, blocks: Blocks, metric: Metric | str
) -> None:
    """Set the smallest number of candidates that reaches `TARGET_RECALL` for new queries.

    If none reaches it, set the smallest whose recall is within RECALL_MARGIN of the best.

    set_ef: sets the number of candidates of the index. blocks: the vectors of the index's rows;
    they are read three times.
    """
    metric = choice(Metric, metric)
    set_ef(DEFAULT_EF)
    if blocks.rows <= DEFAULT_EF:
        return
    queries = _new_queries(blocks, metric)
    true = _Nearest.of(queries, blocks, metric).distances
    recalls: dict[int, float] = {}
    for ef in EF_DEFAULTS:
        set_ef(ef)
        found = index.search(queries, NEIGHBORS).distances
        recalls[ef] = float(index_recall_at(found, true, NEIGHBORS, metric).mean())
        if recalls[ef] >= TARGET_RECALL:
            return
    enough = max(recalls.values()) - RECALL_MARGIN
    set_ef(next(ef for ef in EF_DEFAULTS if recalls[ef] >= enough))


def _new_queries(blocks: Blocks, metric: Metric) -> Vectors:
    """Return vectors (q, dim) with the distribution of the rows, but different from all rows.

    The recall of a graph is too high for its own rows, because they are linked to their neighbors.
    Each query is made of four near vectors: half the sum of three, minus half of the fourth. It has
    the mean and the covariance of the distribution that the four come from. Near is by Euclidean
    distance for inner products, which are largest for the longest vectors, not for near ones.
    """
    _, queries = drawn_rows(blocks, 0, metric)
    distance = Metric.EUCLIDEAN if metric is Metric.INNER_PRODUCT else metric
    near = _Nearest.of(queries, blocks, distance).vectors[:, 1:]
    draw = np.random.default_rng(0)
    picks = draw.permuted(np.tile(np.arange(near.shape[1]), (len(queries), 1)), axis=1)[:, :3]
    first, second, third = (near[np.arange(len(queries)), pick] for pick in picks.T)
    return np.asarray((queries + first + second - third) / 2, np.float32)


@dataclass(frozen=True, eq=False)
class _Nearest:
    """The true neighbors of queries. distances: (q, k), ascending. vectors: (q, k, dim)."""

    distances: NDArray[np.float32]
    vectors: NDArray[np.float32]

    @classmethod
    def of(cls, queries: Vectors, blocks: Blocks, metric: Metric) -> "_Nearest":
        """Compare the queries (q, dim) with all vectors of the blocks."""
        from retrieval.registry import make_indexer  # the backend exact may load another library

        k = min(NEIGHBORS + 1, blocks.rows)
        exact = make_indexer("exact", {"metric": metric, "device": "cpu"})
        distances = np.full((len(queries), k), np.inf, np.float32)
        vectors = np.zeros((*distances.shape, blocks.dim), np.float32)
        for block in blocks:
            for start in range(0, len(block), COMPARED_ROWS):
                part = block[start : start + COMPARED_ROWS]
                hits = exact.build(part).search(queries, min(k, len(part)))
                all_distances = np.hstack([distances, hits.distances])
                order: Rows = np.argsort(all_distances, axis=1, kind="stable")[:, :k]
                distances = np.take_along_axis(all_distances, order, axis=1)
                both = np.concatenate([vectors, part[hits.rows]], axis=1)
                vectors = np.take_along_axis(both, order[..., None], axis=1)
        return cls(distances, vectors)
