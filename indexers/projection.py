"""Projection onto principal axes: shorter vectors with nearly the same distances."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Metric, Vectors

MIN_NEIGHBOR_RECALL = 0.99
"""Minimum mean share of the `NEIGHBORS` nearest neighbors that are among the `MAX_CANDIDATES`
nearest along the axes, measured on at most `NEIGHBOR_ROWS` rows.

The share of the variance is no criterion. In embeddings trained by class, nearly all variance is
between a few clusters: along axes that keep 99% of it, the vectors of a cluster are nearly equal.
The distances between neighbors are no criterion either. They may lie in directions that all
clusters share: along these alone, the clusters overlap.
"""

NEIGHBORS = 10
MAX_CANDIDATES = 40
AXES_MULTIPLE = 16  # numbers in one vector register
SAMPLE_ROWS = 50_000  # for the principal axes
NEIGHBOR_ROWS = 10_000  # rows of the sample that are compared with each query
QUERY_ROWS = 300  # rows of the sample that are queries


def projection(
    vectors: Vectors,
    metric: Metric | str,
    axes: int | None,
    *,
    multiple: int = AXES_MULTIPLE,
    mixed: bool = False,
    seed: int = 0,
) -> faiss.LinearTransform | None:
    """Return a linear map of prepared vectors (n, dim) onto their principal axes.

    axes: number of axes, rounded up to a `multiple`; None for the fewest that reach
        `MIN_NEIGHBOR_RECALL`. Returns None if that is not fewer than dim.
    mixed: rotate the axes at random, so that each number has a similar share of the variance, for
    codes of a few numbers each. seed: of the sampled rows and of the rotation.

    For inner products and cosines, variance is taken about the origin, and the axes keep the
    products. Nothing is subtracted, so that products stay products and distances distances.
    """
    metric = choice(Metric, metric)
    rows, dim = vectors.shape
    if axes is not None and _raised(axes, multiple) >= dim:
        return None
    draw = np.random.default_rng(seed)
    sample = vectors
    if rows > SAMPLE_ROWS:
        sample = vectors[np.sort(draw.choice(rows, SAMPLE_ROWS, replace=False))]
    spread = _spread(sample, about_mean=metric is Metric.EUCLIDEAN)
    directions = np.linalg.eigh(spread)[1][:, ::-1]
    if axes is None:
        axes = _enough_axes(
            sample[draw.permutation(len(sample))[:NEIGHBOR_ROWS]], directions, multiple
        )
    axes = _raised(axes, multiple)
    if axes >= dim:
        return None
    transform = faiss.LinearTransform(dim, axes, False)
    matrix = directions[:, :axes].T
    if mixed:
        turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((axes, axes)))
        matrix = turn @ matrix
    faiss.copy_array_to_vector(matrix.astype(np.float32).ravel(), transform.A)
    transform.is_trained = True
    return transform


def fewer_axes(dim: int) -> list[int]:
    """Return numbers of axes to try: all, a half, and so on, to an eighth or `AXES_MULTIPLE`."""
    return [dim, *(part for part in (dim // 2, dim // 4, dim // 8) if part >= AXES_MULTIPLE)]


def _enough_axes(vectors: Vectors, directions: NDArray[np.float64], multiple: int) -> int:
    """Return the fewest axes, a multiple, that reach `MIN_NEIGHBOR_RECALL`."""
    turned = (vectors / np.float32(np.abs(vectors).max() or 1) @ directions).astype(np.float32)
    if len(turned) <= QUERY_ROWS:  # too few rows to decide, and more may be added
        return int(turned.shape[1])
    among = min(MAX_CANDIDATES, max(NEIGHBORS, len(turned) // 25))
    near = _nearest(turned, NEIGHBORS)
    low, high = 1, -(-turned.shape[1] // multiple)
    while low < high:
        middle = (low + high) // 2
        found = _nearest(turned[:, : middle * multiple], among)
        kept = np.mean([np.isin(a, b).mean() for a, b in zip(near, found, strict=True)])
        low, high = (low, middle) if kept >= MIN_NEIGHBOR_RECALL else (middle + 1, high)
    return low * multiple


def _nearest(vectors: Vectors, k: int) -> NDArray[np.int64]:
    """Return the rows (QUERY_ROWS, k) nearest to each of the first rows, itself included."""
    vectors = np.ascontiguousarray(vectors)
    flat: Any = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors)
    rows: NDArray[np.int64] = flat.search(vectors[:QUERY_ROWS], k)[1]
    return rows


def _raised(axes: int, multiple: int) -> int:
    return -(-axes // multiple) * multiple


def _spread(vectors: Vectors, about_mean: bool) -> NDArray[np.float64]:
    """Return the covariance (dim, dim), or the second moments about the origin."""
    if about_mean:
        vectors = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    largest = float(np.abs(vectors).max())  # its square may overflow float32
    scaled = vectors / np.float32(largest or 1)
    return np.asarray((scaled.T @ scaled / len(scaled)).astype(np.float64))
