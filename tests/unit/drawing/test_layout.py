"""Embeddings in the plane."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retrieval.contracts import Metric
from retrieval.drawing.layout import Layout, laid_out
from retrieval.errors import BadInput

VECTORS = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32) * (9, 5, 1, 1, 1)


def test_pca_keeps_the_two_widest_directions() -> None:
    points = laid_out(VECTORS.astype(np.float32), Layout.PCA, Metric.COSINE, seed=0)
    centred = VECTORS - VECTORS.mean(axis=0)
    widest = np.linalg.svd(centred, compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), widest, rtol=1e-4)


@pytest.mark.parametrize(
    ("metric", "name"),
    [(Metric.EUCLIDEAN, "euclidean"), (Metric.INNER_PRODUCT, "cosine")],
)
def test_umap_gets_the_metric_and_the_seed(
    monkeypatch: pytest.MonkeyPatch, metric: Metric, name: str
) -> None:
    given: dict[str, Any] = {}

    class Umap:
        def __init__(self, **options: Any) -> None:
            given.update(options)

        def fit_transform(self, vectors: np.ndarray) -> np.ndarray:
            return vectors[:, :2].astype(np.float64)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    points = laid_out(VECTORS.astype(np.float32), Layout.UMAP, metric, seed=7)
    assert (points.shape, points.dtype) == ((40, 2), np.float32)
    assert (given["metric"], given["random_state"]) == (name, 7)


@pytest.mark.slow
@pytest.mark.parametrize("metric", Metric)
def test_umap_keeps_neighbours_together_and_follows_the_seed(metric: Metric) -> None:
    generator = np.random.default_rng(0)
    apart = np.repeat([[4.0, 0, 0, 0], [0, 4, 0, 0]], 25, axis=0)
    vectors = (apart + 0.3 * generator.normal(size=apart.shape)).astype(np.float32)
    points = laid_out(vectors, Layout.UMAP, metric, seed=3)
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    assert (nearest // 25 == np.arange(50) // 25).all()
    np.testing.assert_array_equal(laid_out(vectors, Layout.UMAP, metric, seed=3), points)
    assert laid_out(vectors[:4], Layout.UMAP, metric, seed=3).shape == (4, 2)


def test_what_cannot_be_laid_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="needs 4 embeddings, and there are 2"):
        laid_out(np.zeros((2, 5), np.float32), Layout.PCA, Metric.COSINE, seed=0)
    with pytest.raises(BadInput, match="needs 2 dimensions, and the embeddings have 1"):
        laid_out(np.zeros((9, 1), np.float32), Layout.PCA, Metric.COSINE, seed=0)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(BadInput, match="pip install 'retr\\[plots\\]', or use pca"):
        laid_out(np.zeros((4, 5), np.float32), Layout.UMAP, Metric.COSINE, seed=0)
