"""Check hits against distances that are computed in double precision."""

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import (
    Hits,
    Metric,
    Vectors,
)


def check_hits(
    hits: Hits, truth: NDArray[np.float64], k: int, matching: int, metric: Metric | str
) -> None:
    """Check shape, order and distances of hits.

    truth: (q, rows), all true distances; +inf for rows that the mask excludes.
    matching: number of rows that may be found.
    """
    metric = choice(Metric, metric)
    shape = (len(truth), k)
    assert hits.rows.shape == shape, f"rows must have shape {shape}, have {hits.rows.shape}"
    assert hits.distances.shape == shape, f"distances must have shape {shape}"
    assert hits.rows.dtype == np.int64, f"rows must be int64, are {hits.rows.dtype}"
    assert hits.distances.dtype == np.float32, f"distances must be float32: {hits.distances.dtype}"

    found = hits.rows >= 0
    wanted = np.arange(k) < min(k, matching)
    assert np.array_equal(found, np.broadcast_to(wanted, shape)), (
        f"of {matching} rows that may be found, k={k} must find {min(k, matching)} per query,"
        f" then pad; found {found.sum(axis=1).tolist()}"
    )
    assert (hits.rows[~found] == -1).all(), "where nothing was found the row must be -1"
    assert (hits.distances[~found] == np.inf).all(), "where the row is -1 the distance must be inf"
    for line, there in zip(hits.rows, found, strict=True):
        assert len(set(line[there].tolist())) == there.sum(), "a row was found twice"

    later, sooner = hits.distances[:, 1:], hits.distances[:, :-1]
    assert (later >= sooner).all(), "hits must be sorted by distance"
    equal = (later == sooner) & found[:, 1:]
    lower_first = hits.rows[:, 1:] > hits.rows[:, :-1]
    assert lower_first[equal].all(), "among equal distances the lower row must come first"

    lines = np.nonzero(found)[0]
    actual = hits.distances[found].astype(np.float64)
    expected = truth[lines, hits.rows[found]]
    assert np.isfinite(expected).all(), "a row was found that the mask excludes"
    _check_distances(actual, expected, truth, metric)


def _check_distances(
    actual: NDArray[np.float64],
    expected: NDArray[np.float64],
    truth: NDArray[np.float64],
    metric: Metric,
) -> None:
    if metric is Metric.EUCLIDEAN:
        # Libraries compute squares, and their error depends on the largest square.
        actual, expected, truth = actual**2, expected**2, truth**2
    greatest = np.abs(truth[np.isfinite(truth)]).max(initial=1.0)
    close = np.isclose(actual, expected, rtol=1e-4, atol=2e-6 * greatest)
    assert close.all(), (
        f"{metric} distances are wrong: {actual[~close][:3].tolist()} should be"
        f" {expected[~close][:3].tolist()}{' (squared)' if metric is Metric.EUCLIDEAN else ''}"
    )


def recall_of(hits: Hits, truth: NDArray[np.float64]) -> float:
    """Return the recall: hits no farther than the k-th true neighbor, over all true neighbors."""
    k = hits.rows.shape[1]
    farthest = np.sort(truth, axis=1)[:, :k]
    there = np.isfinite(farthest)
    if not there.any():
        return 1.0
    last = np.where(there, farthest, -np.inf).max(axis=1)
    good = hits.distances <= (last + 1e-3 * np.abs(last) + 1e-6)[:, None]
    return float(good.sum() / there.sum())


def true_distances(
    queries: Vectors, database: Vectors, metric: Metric | str
) -> NDArray[np.float64]:
    """Return the distances (q, n) as `Metric` defines them, in double precision."""
    metric = choice(Metric, metric)
    a, b = queries.astype(np.float64), database.astype(np.float64)
    match metric:
        case Metric.EUCLIDEAN:
            return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=2))
        case Metric.MANHATTAN:
            return np.asarray(np.abs(a[:, None] - b[None]).sum(axis=2))
        case Metric.INNER_PRODUCT:
            return -(a @ b.T)
        case Metric.COSINE:
            lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
            cosines = np.zeros_like(lengths)  # zero vectors are orthogonal to all vectors
            np.divide(a @ b.T, lengths, out=cosines, where=lengths > 0)
            return np.asarray(1 - cosines)
