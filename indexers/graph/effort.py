"""Choose the default number of candidates that the walk of a graph keeps."""

from collections.abc import Callable

import numpy as np

from indexers.faiss.lists import drawn_rows
from indexers.graph.neighbors import Nearest
from retrieval.choices import choice
from retrieval.contracts import Blocks, Index, Metric, Vectors
from retrieval.quality.metrics import index_recall_at

DEFAULT_EF = 128
EF_DEFAULTS = (DEFAULT_EF, 256, 512, 1024)
"""Numbers of candidates to choose the default from."""

TARGET_RECALL = 0.975
"""Minimum recall@10 of the default, for the queries of `_new_queries`. Real queries may miss up to
twice as many neighbors."""

RECALL_MARGIN = 0.005  # a gain in recall below this is not worth more candidates
NEIGHBORS = 10


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
    k = min(NEIGHBORS + 1, blocks.rows)
    queries = _new_queries(blocks, metric, k)
    true = Nearest.of(queries, blocks, metric, k).distances
    recalls: dict[int, float] = {}
    for ef in EF_DEFAULTS:
        set_ef(ef)
        found = index.search(queries, NEIGHBORS).distances
        recalls[ef] = float(index_recall_at(found, true, NEIGHBORS, metric).mean())
        if recalls[ef] >= TARGET_RECALL:
            return
    enough = max(recalls.values()) - RECALL_MARGIN
    set_ef(next(ef for ef in EF_DEFAULTS if recalls[ef] >= enough))


def _new_queries(blocks: Blocks, metric: Metric, k: int) -> Vectors:
    """Return vectors (q, dim) with the distribution of the rows, but different from all rows.

    The recall of a graph is too high for its own rows, because they are linked to their neighbors.
    Each query is made of four near vectors: half the sum of three, minus half of the fourth. It has
    the mean and the covariance of the distribution that the four come from. Near is by Euclidean
    distance for inner products, which are largest for the longest vectors, not for near ones.

    k: number of near vectors, the row itself included.
    """
    _, queries = drawn_rows(blocks, 0, metric)
    distance = Metric.EUCLIDEAN if metric is Metric.INNER_PRODUCT else metric
    near = Nearest.of(queries, blocks, distance, k).vectors[:, 1:]
    draw = np.random.default_rng(0)
    picks = draw.permuted(np.tile(np.arange(near.shape[1]), (len(queries), 1)), axis=1)[:, :3]
    first, second, third = (near[np.arange(len(queries)), pick] for pick in picks.T)
    return np.asarray((queries + first + second - third) / 2, np.float32)
