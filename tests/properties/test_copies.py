"""Random vectors with random groups of copies: the copies cost no recall."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from retrieval.contracts import Growing, Hits, Index, Mask, Metric, Vectors
from retrieval.registry import make_indexer
from tests.examples import slow

ROWS, DIM, QUERIES, K = 600, 24, 60, 10
COPY_NOISES = (0.0, 1e-7, 1e-6)
BACKENDS = ("exact", "ivf", "ivfpq", "hnsw", "hnsw-pca", "vamana", "faiss")
MAX_RECALL_LOSS = 0.005


@cache
def data() -> tuple[Vectors, Vectors]:
    draw = np.random.default_rng(8)
    vectors = draw.standard_normal((ROWS + QUERIES, DIM), dtype=np.float32)
    return vectors[:ROWS], vectors[ROWS:]


@cache
def indexer(name: str, metric: Metric) -> Any:
    # With one thread the order of links is fixed; a thorough search finds nearly all in any order.
    options = {
        "hnsw": {"build_threads": 1},
        "hnsw-pca": {"build_threads": 1},
        "faiss": {"search": "efSearch=100"},
        "ivf": {"n_probe": 64},
        "ivfpq": {"refine": 40},
    }
    return make_indexer(name, {"metric": metric, **options.get(name, {})})


def true_distances(vectors: Vectors, metric: Metric) -> np.ndarray:
    """Return all distances (q, n), computed in float64."""
    queries, vectors = data()[1].astype(np.float64), vectors.astype(np.float64)
    if metric is Metric.EUCLIDEAN:
        return np.linalg.norm(queries[:, None] - vectors[None], axis=2)
    products = queries @ vectors.T
    if metric is Metric.INNER_PRODUCT:
        return -products
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    return 1 - products / lengths


def recall(index: Index, vectors: Vectors, metric: Metric, mask: Mask | None = None) -> float:
    """Return recall@10 by distance; check that hits are rows of the mask, each once."""
    truth = true_distances(vectors, metric)
    if mask is not None:
        truth[:, ~mask] = np.inf
    hits: Hits = index.search(data()[1], K, mask)
    found = np.take_along_axis(truth, hits.rows, axis=1)
    assert (hits.rows >= 0).all()
    assert np.isfinite(found).all(), "rows of the mask"
    assert all(len({*line}) == K for line in hits.rows.tolist()), "each row once"
    np.testing.assert_allclose(hits.distances, found, atol=1e-3)
    kth = np.sort(truth, axis=1)[:, K - 1 : K]
    return float((found <= kth + 1e-3 * np.abs(kth)).mean())


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[int], float, int]:
    """Draw the numbers of copies of the first vectors, their differences, and a seed."""
    many = st.lists(st.integers(1, 5), min_size=50, max_size=300)
    few = st.lists(st.integers(1, 200), min_size=1, max_size=5)
    one = st.lists(st.integers(300, 1200), min_size=1, max_size=1)
    return (
        draw(st.one_of(many, few, one)),
        draw(st.sampled_from(COPY_NOISES)),
        draw(st.integers(0, 99)),
    )


def with_copies(sizes: list[int], noise: float, seed: int) -> tuple[Vectors, Vectors]:
    """Return vectors with their copies, shuffled, and the same vectors without copies."""
    draw = np.random.default_rng(seed)
    vectors, _ = data()
    copies = np.repeat(vectors[: len(sizes)], sizes, axis=0)
    copies = copies * (1 + noise * draw.standard_normal(copies.shape))
    everything = np.concatenate([vectors, copies.astype(np.float32)])
    sources = np.concatenate([np.arange(ROWS), np.repeat(np.arange(len(sizes)), sizes)])
    order = draw.permutation(len(everything))
    _, first = np.unique(sources[order], return_index=True)
    return everything[order], everything[order][np.sort(first)]


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT])
@pytest.mark.parametrize("name", [*BACKENDS, slow("milvus")])
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(copies=groups(), share=st.sampled_from([0.05, 0.3, 0.9]))
def test_copies_cost_no_recall(
    name: str, metric: Metric, copies: tuple[list[int], float, int], share: float
) -> None:
    if name == "milvus":
        pytest.importorskip("milvus_lite", reason="needs Milvus Lite: see the Makefile")
    vectors, distinct = with_copies(*copies)
    index = indexer(name, metric).build(vectors)
    assert len(index) == len(vectors)
    least = recall(indexer(name, metric).build(distinct), distinct, metric) - MAX_RECALL_LOSS
    assert recall(index, vectors, metric) >= least
    mask = np.random.default_rng(copies[2]).random(len(vectors)) < share
    assert recall(index, vectors, metric, mask) >= least
    if not isinstance(index, Growing):
        return
    grown = indexer(name, metric).build(vectors[: ROWS // 2])
    grown.add(vectors[ROWS // 2 : ROWS])
    grown.add(vectors[ROWS:])
    assert len(grown) == len(vectors)
    assert recall(grown, vectors, metric) >= least


@pytest.mark.parametrize("name", ["ivf", "ivfpq"])
def test_options_chosen_by_a_build_suit_rows_without_copies(name: str) -> None:
    vectors, _ = with_copies([6000, 3000], 1e-6, 0)
    for metric in (Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT):
        index = make_indexer(name, {"metric": metric}).build(vectors)
        assert recall(index, vectors, metric) >= 0.95
