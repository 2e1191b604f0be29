"""Measures of retrieval and of indices, as functions of plain numbers.

ranks: (r,), the ranks of the relevant items that were found, from 1, ascending.
relevant: R, the number of relevant items in the database, found or not. R is at least 1: a query
    without relevant items has no recall and no average precision.
ks: one k, or an array of them (k,). The result has the same shape.

`DEFINITIONS` defines each measure in a sentence, which is printed beside the numbers and repeated
in docs/metrics.md.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Metric

Ranks = NDArray[np.int64]
"""(r,): from 1, ascending."""

Ks = int | NDArray[np.int64]
Values = Any
"""A float if ks is one k; an array if ks is an array."""

NEIGHBORS_THAT_VOTE = 10
"""Number of nearest items that vote in `knn_accuracy`."""

INDEX_RECALL_TOLERANCE = 1e-3
"""Share by which a hit's distance may exceed the k-th true distance, as in ann-benchmarks."""

PRODUCT_TOLERANCE = 1e-5
"""The same share for inner products. It is smaller because a thousandth of an inner product can be
wider than a cluster. A sum of a thousand products in float32 may have this error."""

COSINE_RESOLUTION = 1e-6
"""Smallest difference of cosine distances that float32 resolves; see docs/metrics.md."""

DEFINITIONS = {
    "precision_at": (
        "precision@k: the number of relevant items among the first k, divided by k. An item is "
        "relevant to a query if both have the same label. A query that is in the database, by "
        "its id, is left out of its own ranking."
    ),
    "recall_at": (
        "recall@k of retrieval: the number of relevant items among the first k, divided by R, the "
        "number of all items relevant to the query."
    ),
    "map": (
        "mAP: the mean over queries of AP. AP is the sum of the precisions at the ranks of the "
        "relevant items in the full ranking, divided by R. Queries with R = 0 are left out and "
        "counted. Items at equal distance rank by their row."
    ),
    "map_at": (
        "mAP@k: the mean over queries of AP@k. AP@k is the sum of the precisions at the ranks of "
        "the relevant items among the first k, divided by min(R, k)."
    ),
    "ndcg_at": (
        "nDCG@k: the sum of 1 / log2(1 + rank) over the relevant items among the first k, divided "
        "by this sum for the best ranking, where the first min(R, k) items are all relevant."
    ),
    "r_precision": "R-precision: precision@R, with each query's own R.",
    "mrr": "MRR: the mean over queries of 1 divided by the rank of the first relevant item.",
    "knn_accuracy": (
        f"kNN accuracy: the share of queries whose own label wins a vote of the "
        f"{NEIGHBORS_THAT_VOTE} nearest items. Each item has one vote; items without a label do "
        f"not vote. Of tied labels, the one whose nearest item is nearest wins."
    ),
    "intervals": (
        "±: half of the 95% confidence interval of a mean, by bootstrap over queries. It covers "
        "the random choice of the queries, but not that of the training or the database."
    ),
    "p": (
        "p: the probability of a mean difference at least this large by chance, if both were "
        "equally good. It is the share of random signs of the queries' differences that produce "
        "such a mean. Among many measures, some have a small p by chance."
    ),
    "index_recall_at": (
        "recall@k of an index: the share of its first k hits that are no farther than the k-th "
        "true neighbor, with a tolerance of a thousandth of that distance (a hundred-thousandth "
        "for inner product). Duplicates therefore do not lower it. It does not depend on labels."
    ),
    "caption_recall_at": (
        "recall@k of captions: text → image, the share of texts whose image is among the first k "
        "images; image → text, the share of described images with one of their texts among the "
        "first k texts. Equal distances rank by row. The intervals are from 1,000 samples of "
        "images, each with all its texts."
    ),
    "zero_shot": (
        "zero-shot accuracy: the share of images whose label is that of the nearest class. A class "
        "is the mean of its texts' vectors, each of unit length for the cosine distance. Images "
        "whose label has no text are left out. Equally near classes rank as in the file."
    ),
    "map_loss": (
        "mAP lost: mAP@100 of exact search minus mAP@100 through the index, on the same queries."
    ),
}

Label = TypeVar("Label", bound=Hashable)


def ranks_of(relevant: NDArray[np.bool_]) -> Ranks:
    """Return the ranks of relevant items. relevant: (n,), True for each one in a ranking."""
    return np.flatnonzero(relevant) + 1


def precision_at(ranks: Ranks, ks: Ks) -> Values:
    """Return the relevant items among the first k, over k, even if the ranking is shorter."""
    return _found(ranks, ks) / ks


def recall_at(ranks: Ranks, relevant: int, ks: Ks) -> Values:
    """Return the relevant items among the first k, over R."""
    return _found(ranks, ks) / relevant


def average_precision(ranks: Ranks, relevant: int) -> float:
    """Return the sum of the precisions at the ranks of the relevant items, over R.

    Not interpolated; Manning, Raghavan, Schütze: Introduction to Information Retrieval, 8.4.
    """
    return float(np.sum(np.arange(1, len(ranks) + 1) / ranks)) / relevant


def average_precision_at(ranks: Ranks, relevant: int, ks: Ks) -> Values:
    """Return the sum of the precisions at the relevant ranks up to k, over min(R, k).

    The maximum is 1: the first k items are all relevant, or all relevant items come first.
    """
    found = _found(ranks, ks)
    first = ranks[: np.max(found)]
    return _sums(np.arange(1, len(first) + 1) / first)[found] / np.minimum(relevant, ks)


def ndcg_at(ranks: Ranks, relevant: int, ks: Ks) -> Values:
    """Return the discounted gain of the relevant items up to k, relative to the best ranking.

    A relevant item gains 1, discounted by log2(1 + rank): Järvelin and Kekäläinen, Cumulated
    gain-based evaluation of IR techniques (2002), in the form of Burges et al. (2005), which is
    trec_eval's and scikit-learn's.
    """
    found = _found(ranks, ks)
    gains = _sums(1 / np.log2(1 + ranks[: np.max(found)]))
    best = np.minimum(relevant, ks)
    return gains[found] / _sums(1 / np.log2(np.arange(2, np.max(best) + 2)))[best]


def reciprocal_rank(ranks: Ranks) -> float:
    """Return 1 over the rank of the first relevant item; 0 if none was found."""
    return float(1 / ranks[0]) if len(ranks) else 0.0


def r_precision(ranks: Ranks, relevant: int) -> float:
    """Return the precision at R, which is also the recall at R."""
    return float(precision_at(ranks, relevant))


def vote(labels: Iterable[Label | None]) -> Label | None:
    """Return the most frequent label; None without any label.

    labels: labels of the neighbors, nearest first. Among tied labels, the first wins.
    """
    # Counter keeps the order of the labels, and most_common keeps it among ties.
    counts = Counter(label for label in labels if label is not None)
    return counts.most_common(1)[0][0] if counts else None


def index_recall_at(
    found: NDArray[np.floating[Any]],
    true: NDArray[np.floating[Any]],
    k: int,
    metric: Metric | str = Metric.EUCLIDEAN,
) -> NDArray[np.float64]:
    """Return the share (q,) of each query's first k hits within reach of the k-th neighbor.

    found: (q, ≥ k) distances of an index's hits, recomputed from the vectors, since an index may
        report approximate distances. +inf without a hit.
    true: (q, ≥ k) distances of the true neighbors, ascending; +inf where the database has fewer
        than k rows. The share is then one of those rows.

    A hit at distance d is within reach of the k-th neighbor at distance t if d ≤ t + |t| / 1000, as
    in ann-benchmarks' `epsilon_threshold`. For cosine, d ≤ t + 1e-6 is enough, too. For inner
    product, d ≤ t + |t| / 100,000; the absolute value is there because t may be negative.
    """
    metric = choice(Metric, metric)
    tolerance = PRODUCT_TOLERANCE if metric is Metric.INNER_PRODUCT else INDEX_RECALL_TOLERANCE
    resolution = COSINE_RESOLUTION if metric is Metric.COSINE else 0.0
    neighbors = np.isfinite(true[:, :k])
    count = neighbors.sum(axis=1)
    farthest = np.max(true[:, :k], axis=1, where=neighbors, initial=-np.inf)
    reach = farthest + np.maximum(tolerance * np.abs(farthest), resolution)
    within = (found[:, :k] <= reach[:, None]).sum(axis=1)
    return np.asarray(within / count, dtype=np.float64)


def _found(ranks: Ranks, ks: Ks) -> Any:
    """Return the number of relevant items among the first k."""
    return np.searchsorted(ranks, ks, side="right")


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of the first 0, 1, … n values, (n + 1,)."""
    return np.concatenate(([0.0], np.cumsum(values)))
