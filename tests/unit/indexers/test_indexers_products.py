"""Graphs of inner products: the products themselves, or distances of lengthened vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexers.exact import Exact
from indexers.graph.products import (
    LENGTHENED,
    LengthenedIndex,
    build_products,
    inside,
    lengthened,
    load_products,
)
from indexers.hnsw import Hnsw
from indexers.hnsw_pca import HnswPca
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData, BadInput
from retrieval.hits import InMemory
from retrieval.quality.metrics import index_recall_at

BACKENDS = [Hnsw, HnswPca]
PRODUCT = Metric.INNER_PRODUCT


def clusters(rows: int, seed: int = 0) -> Vectors:
    """Vectors (rows, 64) in 50 clusters whose lengths differ by a factor of 100."""
    rng = np.random.default_rng(seed)
    centers, scales = rng.standard_normal((50, 64)), rng.lognormal(0, 1, (50, 1))
    noise = 0.3 * rng.standard_normal((rows, 64))
    cluster = rng.integers(50, size=rows)
    return np.asarray(((centers * scales)[cluster] + noise * scales[cluster]), np.float32)


def noise(rows: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, 64), dtype=np.float32)


def built(kind: Any, vectors: Vectors) -> LengthenedIndex:
    longest = float(np.linalg.norm(vectors, axis=1).max())
    longer = kind(Metric.EUCLIDEAN, ef=500)
    graph = longer.build_graph(InMemory(lengthened(vectors, longest)))
    return LengthenedIndex(longer, graph, longest)


def test_further_numbers_make_all_vectors_equally_long() -> None:
    vectors = noise(30)
    longest = float(np.linalg.norm(vectors, axis=1).max())
    found = lengthened(vectors, longest)
    assert found.shape == (30, 65)
    np.testing.assert_array_equal(found[:, :-1], vectors)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), longest, rtol=1e-5)
    assert lengthened(2 * vectors, longest)[np.linalg.norm(vectors, axis=1).argmax(), -1] == 0


@pytest.mark.parametrize("kind", BACKENDS)
def test_the_graph_that_finds_more_of_a_sample_is_built(kind: Any) -> None:
    database = clusters(6200)
    queries, database = database[:200], database[200:]
    index = kind(PRODUCT).build(database)
    true = Exact(PRODUCT, "cpu").build(database).search(queries, 10).distances
    found = index.search(queries, 10).distances
    assert index_recall_at(found, true, 10, PRODUCT).mean() > 0.93
    plain = kind(PRODUCT, ef=1024).build_graph(InMemory(database))
    of_plain = index_recall_at(plain.search(queries, 10).distances, true, 10, PRODUCT).mean()
    assert index_recall_at(found, true, 10, PRODUCT).mean() >= of_plain - 0.02
    if kind is Hnsw:
        assert index.details["lengthened"] is True


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("vectors", [noise(1500), noise(500)], ids=["noise", "few"])
def test_other_vectors_keep_the_graph_of_products(kind: Any, vectors: Vectors) -> None:
    index = kind(PRODUCT, ef=200).build(vectors)
    assert "lengthened" not in index.details
    assert inside(index) is index


@pytest.mark.parametrize("kind", BACKENDS)
def test_vectors_of_one_length_are_not_tried(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = noise(1200)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    monkeypatch.setattr("indexers.graph.products._recall", pytest.fail)
    assert "lengthened" not in build_products(kind(PRODUCT, ef=50), InMemory(vectors)).details


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("scale", [1, 1e-4, 1e5])
def test_hits_are_those_of_exact_search(kind: Any, scale: float) -> None:
    database = clusters(400) * np.float32(scale)
    queries = clusters(20, seed=1)
    mask = np.random.default_rng(0).random(400) < 0.3
    index = built(kind, database)
    exact = Exact(PRODUCT, "cpu").build(database)
    for among in (None, mask):
        found, true = index.search(queries, 10, among), exact.search(queries, 10, among)
        least = 1e-6 * index.longest * np.linalg.norm(queries, axis=1).max()
        np.testing.assert_allclose(found.distances, true.distances, rtol=2e-5, atol=least)
        assert (found.rows == true.rows).mean() > 0.99
    padded = index.search(queries, 10, np.arange(400) < 4)
    assert (padded.rows[:, 4:] == -1).all()
    assert np.isinf(padded.distances[:, 4:]).all()
    (blocks,) = [np.concatenate([*index.stored()])]
    np.testing.assert_allclose(blocks, database, rtol=1e-6)


@pytest.mark.parametrize("kind", BACKENDS)
def test_rows_are_added_and_copies_are_rows(kind: Any) -> None:
    database = clusters(300)
    index = built(kind, database)
    more = np.concatenate([database[:5], 3 * clusters(20, seed=2)])  # longer than before, too
    index.add(more)
    everything = np.concatenate([database, more])
    found = index.search(everything[290:], 10)
    true = Exact(PRODUCT, "cpu").build(everything).search(everything[290:], 10)
    least = 1e-6 * index.longest * np.linalg.norm(everything, axis=1).max()
    np.testing.assert_allclose(found.distances, true.distances, rtol=2e-5, atol=least)
    with pytest.raises(BadInput, match="row 0 is not finite"):
        index.add(np.full((1, 64), np.nan, np.float32))
    assert len(index) == 325


@pytest.mark.parametrize("kind", BACKENDS)
def test_saved_and_loaded(kind: Any, tmp_path: Path) -> None:
    database, queries = clusters(1500), clusters(10, seed=3)
    for number, index in enumerate((built(kind, database), kind(PRODUCT, ef=500).build(database))):
        folder = tmp_path / str(number)
        folder.mkdir()
        index.save(folder)
        loaded = kind(PRODUCT, ef=500).load(folder)
        assert (loaded.dim, len(loaded)) == (64, 1500)
        assert loaded.details == index.details
        assert loaded.search(queries, 5).rows.tolist() == index.search(queries, 5).rows.tolist()
        assert kind(PRODUCT).settled(loaded).ef == 500
    for text in ('{"longest": "long"}', '{"longest": -1.0}', "{}", "{"):
        (tmp_path / "0" / LENGTHENED).write_text(text)
        with pytest.raises(BadData):
            load_products(kind(PRODUCT), tmp_path / "0")
