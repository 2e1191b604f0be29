"""The measures of retrieval and of indices, each a function of plain numbers.

A query's ranking enters as the `ranks` of the relevant items that were found: 1-based and
ascending. `relevant` is R, the number of relevant items there are, found or not; it is at least
1, because a query without any has no recall and no average precision.

`DEFINITIONS` says each measure in a sentence: it is printed beside the numbers, and stands in
docs/metrics.md in the same words.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]
"""(r,): 1-based and ascending."""

NEIGHBORS_THAT_VOTE = 10
"""How many of the nearest items `knn_accuracy` asks."""

INDEX_RECALL_TOLERANCE = 1e-3
"""By how much of its size the k-th true distance may be exceeded, as in ann-benchmarks."""

DEFINITIONS = {
    "precision_at": (
        "precision@k: the relevant items among the first k, over k; an item is relevant to a "
        "query if it has the same label, and a query that is in the database itself is left out "
        "of its own ranking, by its id."
    ),
    "recall_at": (
        "recall@k of retrieval: the relevant items among the first k, over R, the number of all "
        "items relevant to the query."
    ),
    "map": (
        "mAP: the mean over queries of AP, the sum of the precisions at the ranks of the relevant "
        "items in the full ranking, over R; queries with R = 0 are left out and counted, and "
        "items at equal distance rank by their row."
    ),
    "map_at": (
        "mAP@k: the mean over queries of AP@k, the sum of the precisions at the ranks of the "
        "relevant items among the first k, over min(R, k)."
    ),
    "r_precision": "R-precision: precision@R, with each query's own R.",
    "knn_accuracy": (
        f"kNN accuracy: the share of queries that get their own label by a vote of the "
        f"{NEIGHBORS_THAT_VOTE} nearest items, one vote each; of tied labels the one whose "
        f"nearest item is nearest wins, and items without a label do not vote."
    ),
    "margins": (
        "±: half of the 95% confidence interval of a mean, 1.96 times the standard error over "
        "queries: what other queries of the same kind might change, and not what another training "
        "or another database would."
    ),
    "index_recall_at": (
        "recall@k of an index: the share of its first k hits that are no farther than the k-th "
        "true neighbor, give or take a thousandth of that distance, so that duplicates don't "
        "punish; it knows no labels."
    ),
    "map_loss": (
        "mAP lost: mAP@100 of exact search minus mAP@100 through the index, on the same queries."
    ),
}

Label = TypeVar("Label", bound=Hashable)


def ranks_of(relevant: NDArray[np.bool_]) -> Ranks:
    """The ranks of the relevant items, from a ranking (n,) that says of each if it is one."""
    return np.flatnonzero(relevant) + 1


def precision_at(ranks: Ranks, k: int) -> float:
    """The relevant items among the first k, over k, however short the ranking is."""
    return _found(ranks, k) / k


def recall_at(ranks: Ranks, relevant: int, k: int) -> float:
    """The relevant items among the first k, over R."""
    return _found(ranks, k) / relevant


def average_precision(ranks: Ranks, relevant: int) -> float:
    """The sum of the precisions at the ranks of the relevant items, over R.

    Not interpolated; Manning, Raghavan, Schütze: Introduction to Information Retrieval, 8.4.
    """
    return _sum_of_precisions(ranks) / relevant


def average_precision_at(ranks: Ranks, relevant: int, k: int) -> float:
    """The sum of the precisions at the relevant ranks up to k, over min(R, k).

    So it is 1 where the first k are all relevant, or all relevant items come first.
    """
    return _sum_of_precisions(ranks[: _found(ranks, k)]) / min(relevant, k)


def r_precision(ranks: Ranks, relevant: int) -> float:
    """The precision at R, which is also the recall at R."""
    return precision_at(ranks, relevant)


def vote(labels: Iterable[Label | None]) -> Label | None:
    """The label that most neighbors have, given nearest first; None where none has a label.

    Of several labels with the most votes, the one that comes first wins.
    """
    # Counter keeps the order in which labels came, and most_common keeps it among equals.
    counts = Counter(label for label in labels if label is not None)
    return counts.most_common(1)[0][0] if counts else None


def index_recall_at(
    found: NDArray[np.floating[Any]],
    true: NDArray[np.floating[Any]],
    k: int,
    resolution: float = 0.0,
) -> NDArray[np.float64]:
    """(q,): for each query, the share of the first k hits within reach of the k-th neighbor.

    found: (q, ≥ k) distances of an index's hits, recomputed from the vectors: what an index
        reports may be an approximation too. +inf where there is no hit.
    true: (q, ≥ k) distances of the true neighbors, ascending; +inf beyond the end of a database
        that has fewer than k. The share is then one of those that it has.
    resolution: distances that differ by no more than this are taken for equal.

    A hit at distance d is within reach of the k-th neighbor's t if d ≤ t + max(|t| / 1000,
    resolution). For positive distances that is ann-benchmarks' `epsilon_threshold`; a distance
    may also be negative, as minus a dot product is, and the tolerance still widens the reach.
    """
    neighbors = np.isfinite(true[:, :k])
    count = neighbors.sum(axis=1)
    farthest = np.max(true[:, :k], axis=1, where=neighbors, initial=-np.inf)
    reach = farthest + np.maximum(INDEX_RECALL_TOLERANCE * np.abs(farthest), resolution)
    within = (found[:, :k] <= reach[:, None]).sum(axis=1)
    return np.asarray(within / count, dtype=np.float64)


def _found(ranks: Ranks, k: int) -> int:
    return int(np.searchsorted(ranks, k, side="right"))


def _sum_of_precisions(ranks: Ranks) -> float:
    return float(np.sum(np.arange(1, len(ranks) + 1) / ranks))


def margin(values: Sequence[float]) -> float | None:
    """Half of the 95% confidence interval of the mean of the queries' `values`.

    By the normal approximation: 1.96 · s / √n, with s² the sum of squares over n - 1. None for a
    single query.
    """
    if len(values) < 2:
        return None
    return float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))
