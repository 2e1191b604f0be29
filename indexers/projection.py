"""Principal axes: vectors with fewer numbers, among which distances stay nearly what they were."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Metric, Vectors

KEPT = 0.99
"""Of the nearest neighbors, on average: what is still among the nearest `AMONG` along as many axes
as are taken where the caller names no number; in a set of `SOME` rows, or of fewer.

Not a share of the variance, nearly all of which may lie between a few clusters, as it does in
embeddings that were trained by class: along axes that keep 99% of it, all vectors of a cluster look
alike. Nor of the distances between neighbors, which may lie in directions that all clusters share:
along those alone, the clusters lie on each other.
"""

NEIGHBORS = 10
AMONG = 40
MULTIPLE = 16  # of numbers that processors take at once
SAMPLE = 50_000  # rows that the axes are found from
SOME = 10_000  # of these, among which some have their neighbors looked for
FEW = 300


def projection(
    vectors: Vectors,
    metric: Metric | str,
    axes: int | None,
    *,
    multiple: int = MULTIPLE,
    mixed: bool = False,
    seed: int = 0,
) -> faiss.LinearTransform | None:
    """The turn of prepared vectors (n, dim) onto their principal axes.

    axes: how many, raised to a `multiple`; None for the fewest that keep neighbors near, as `KEPT`
    says. The result is None where that is no fewer than dim.
    mixed: turn the axes at random, so that each number has a like share of the variance, as codes
    of a few numbers each want it. seed: draws the rows that are looked at, and the mixture.

    For inner products and cosines, variance is taken about the origin, and the axes keep the
    products. Nothing is subtracted, so that products stay products and distances distances.
    """
    metric = choice(Metric, metric)
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
        axes = _enough_axes(sample[draw.permutation(len(sample))[:SOME]], directions, multiple)
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


def _enough_axes(vectors: Vectors, directions: NDArray[np.float64], multiple: int) -> int:
    """The fewest axes, in multiples, along which neighbors stay near, as `KEPT` says."""
    turned = (vectors / np.float32(np.abs(vectors).max() or 1) @ directions).astype(np.float32)
    if len(turned) <= FEW:  # too few to tell, and more may be added
        return int(turned.shape[1])
    among = min(AMONG, max(NEIGHBORS, len(turned) // 25))
    near = _nearest(turned, NEIGHBORS)
    low, high = 1, -(-turned.shape[1] // multiple)
    while low < high:
        middle = (low + high) // 2
        found = _nearest(turned[:, : middle * multiple], among)
        kept = np.mean([np.isin(a, b).mean() for a, b in zip(near, found, strict=True)])
        low, high = (low, middle) if kept >= KEPT else (middle + 1, high)
    return low * multiple


def _nearest(vectors: Vectors, k: int) -> NDArray[np.int64]:
    """(FEW, k): the rows nearest to each of the first, itself among them."""
    vectors = np.ascontiguousarray(vectors)
    flat: Any = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors)
    rows: NDArray[np.int64] = flat.search(vectors[:FEW], k)[1]
    return rows


def _raised(axes: int, multiple: int) -> int:
    return -(-axes // multiple) * multiple


def _spread(vectors: Vectors, about_mean: bool) -> NDArray[np.float64]:
    """(dim, dim): the covariance of the vectors, or their second moments about the origin."""
    if about_mean:
        vectors = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    largest = float(np.abs(vectors).max())  # whose square may leave the range of float32
    scaled = vectors / np.float32(largest or 1)
    return np.asarray((scaled.T @ scaled / len(scaled)).astype(np.float64))
