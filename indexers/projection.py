"""Principal axes: vectors with fewer numbers, among which distances stay nearly what they were."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.contracts import Metric, Vectors

SHARE = 0.6
"""Of the squared distance to a neighbor, on average: what the axes keep where the caller names no
number.

Not of the variance, nearly all of which may lie between a few clusters, as it does in embeddings
that were trained by class: along axes that keep 99% of it, all vectors of a cluster look alike.
"""

MULTIPLE = 16  # of numbers that processors take at once
SAMPLE = 50_000  # rows that the axes are found from
SOME = 10_000  # of these, among which some have their neighbors looked for
FEW = 1_000
NEIGHBORS = 10


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

    axes: how many; None for the fewest that keep `SHARE` of the squared distances between
    neighbors; both are raised to a `multiple`. The result is None where that is no fewer than dim.
    mixed: turn the axes at random, so that each number has a like share of the variance, as codes
    of a few numbers each want it. seed: draws the rows that are looked at, and the mixture.

    For inner products and cosines, variance is taken about the origin, and the axes keep the
    products. Nothing is subtracted, so that products stay products and distances distances.
    """
    rows, dim = vectors.shape
    if axes is not None and _raised(axes, multiple) >= dim:
        return None
    draw = np.random.default_rng(seed)
    sample = vectors
    if rows > SAMPLE:
        sample = vectors[np.sort(draw.choice(rows, SAMPLE, replace=False))]
    spread = _spread(sample, about_mean=metric is Metric.EUCLIDEAN)
    directions = np.linalg.eigh(spread)[1][:, ::-1]
    if axes is None:
        kept = np.cumsum(_between_neighbors(draw.permutation(sample)[:SOME], directions))
        axes = 1 + int(np.searchsorted(kept, SHARE * kept[-1]))
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
    """Numbers of axes worth trying: all, a half, and so on, down to an eighth and to `MULTIPLE`."""
    return [dim, *(part for part in (dim // 2, dim // 4, dim // 8) if part >= MULTIPLE)]


def _between_neighbors(vectors: Vectors, directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(dim,): the share that each direction has in the squared distance to a neighbor, on average.

    Each pair counts as much as any other: of those far from all others there are few.
    """
    vectors = vectors / np.float32(np.abs(vectors).max() or 1)
    some = vectors[:FEW]
    flat: Any = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors)
    _, rows = flat.search(some, min(NEIGHBORS + 1, len(vectors)))  # the first is itself, or a copy
    apart = (vectors[rows] - some[:, None]).reshape(-1, vectors.shape[1]).astype(np.float64)
    along = np.square(apart @ directions)
    whole = along.sum(axis=1, keepdims=True)
    return np.asarray((along / np.where(whole > 0, whole, 1)).mean(axis=0))


def _raised(axes: int, multiple: int) -> int:
    return -(-axes // multiple) * multiple


def _spread(vectors: Vectors, about_mean: bool) -> NDArray[np.float64]:
    """(dim, dim): the covariance of the vectors, or their second moments about the origin."""
    if about_mean:
        vectors = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    largest = float(np.abs(vectors).max())  # whose square may leave the range of float32
    scaled = vectors / np.float32(largest or 1)
    return np.asarray((scaled.T @ scaled / len(scaled)).astype(np.float64))
