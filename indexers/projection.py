"""Principal axes: vectors with fewer numbers, among which distances stay nearly what they were."""

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.contracts import Metric, Vectors

SHARE = 0.95  # of the variance, that the axes must keep where the caller names no number
MULTIPLE = 16  # of numbers that processors take at once
SAMPLE = 50_000  # rows that the axes are found from


def projection(
    vectors: Vectors,
    metric: Metric,
    axes: int | None,
    *,
    multiple: int = MULTIPLE,
    mixed: bool = False,
    seed: int = 0,
) -> faiss.LinearTransform | None:
    """The turn of prepared vectors (n, dim) onto their principal axes.

    axes: how many; None for the fewest that keep `SHARE` of the variance; both are raised to a
    `multiple`. The result is None where that is no fewer than dim. mixed: turn the axes at random,
    so that each number has a like share of the variance, as codes of a few numbers each want it.

    For inner products and cosines, variance is taken about the origin, and the axes keep the
    products. Nothing is subtracted, so that products stay products and distances distances.
    """
    rows, dim = vectors.shape
    if axes is not None and _raised(axes, multiple) >= dim:
        return None
    sample = vectors
    if rows > SAMPLE:
        chosen = np.random.default_rng(seed).choice(rows, SAMPLE, replace=False)
        sample = vectors[np.sort(chosen)]
    spread = _spread(sample, about_mean=metric is Metric.EUCLIDEAN)
    variances, directions = np.linalg.eigh(spread)
    if axes is None:
        kept = np.cumsum(variances[::-1])
        axes = 1 + int(np.searchsorted(kept, SHARE * kept[-1]))
    axes = _raised(axes, multiple)
    if axes >= dim:
        return None
    transform = faiss.LinearTransform(dim, axes, False)
    matrix = directions[:, ::-1][:, :axes].T
    if mixed:
        turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((axes, axes)))
        matrix = turn @ matrix
    faiss.copy_array_to_vector(matrix.astype(np.float32).ravel(), transform.A)
    transform.is_trained = True
    return transform


def fewer_axes(dim: int) -> list[int]:
    """Numbers of axes worth trying: all, a half, and so on, down to an eighth and to `MULTIPLE`."""
    return [dim, *(part for part in (dim // 2, dim // 4, dim // 8) if part >= MULTIPLE)]


def _raised(axes: int, multiple: int) -> int:
    return -(-axes // multiple) * multiple


def _spread(vectors: Vectors, about_mean: bool) -> NDArray[np.float64]:
    """(dim, dim): the covariance of the vectors, or their second moments about the origin."""
    if about_mean:
        vectors = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    largest = float(np.abs(vectors).max())  # whose square may leave the range of float32
    scaled = vectors / np.float32(largest or 1)
    return np.asarray((scaled.T @ scaled / len(scaled)).astype(np.float64))
