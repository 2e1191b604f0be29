"""Indices of `hnsw-pca` whose vectors are rounded to 8 bits."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from indexers.graph.vectors import FILE, CompactVectors
from retrieval.contracts import Index, Metric, Readable, Vectors
from retrieval.errors import BadData, BadInput
from retrieval.quality.metrics import index_recall_at
from retrieval.registry import make_indexer

METRICS = (Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT)


def drawn(rows: int = 3000, dim: int = 50, seed: int = 0) -> Vectors:
    """Return clusters of vectors (rows, dim) beside the origin."""
    rng = np.random.default_rng(seed)
    centers = 3 + rng.standard_normal((30, dim))
    vectors = centers[rng.integers(0, 30, rows)] + rng.standard_normal((rows, dim)) / 2
    return vectors.astype(np.float32)


def compact(vectors: Vectors, metric: Metric = Metric.COSINE, **options: object) -> Index:
    return make_indexer("hnsw-pca", {"metric": metric, "compact": True, **options}).build(vectors)


def opened(folder: Path, metric: Metric = Metric.COSINE, **options: object) -> Index:
    return make_indexer("hnsw-pca", {"metric": metric, **options}).load(folder)


def recall(index: Index, vectors: Vectors, queries: Vectors, metric: Metric) -> float:
    """Return the recall@10 by the true distances of the hits."""
    exact = make_indexer("exact", {"metric": metric, "device": "cpu"})
    truth = exact.build(vectors).search(queries, 10).distances
    rows = index.search(queries, 10).rows
    hits = [
        exact.build(vectors[some]).search(query[None], 10)
        for query, some in zip(queries, rows, strict=True)
    ]
    found = np.concatenate([each.distances for each in hits])
    return float(
        index_recall_at(found.astype(np.float64), truth.astype(np.float64), 10, metric).mean()
    )


@pytest.mark.parametrize("metric", METRICS)
def test_hits_are_nearly_the_true_ones(metric: Metric, tmp_path: Path) -> None:
    vectors, queries = drawn(), drawn(50, seed=1)
    index = compact(vectors, metric)
    assert recall(index, vectors, queries, metric) > 0.95
    assert index.details["compact"] is True
    hits = index.search(queries, 10)
    between = {
        Metric.COSINE: lambda a, b: 1 - (a @ b) / np.linalg.norm(a) / np.linalg.norm(b),
        Metric.EUCLIDEAN: lambda a, b: np.linalg.norm(a - b),
        Metric.INNER_PRODUCT: lambda a, b: -(a @ b),
    }
    true = [
        [between[metric](q, vectors[row]) for row in rows]
        for q, rows in zip(queries, hits.rows, strict=True)
    ]
    assert_allclose(hits.distances, true, rtol=0.02, atol=0.002)
    index.save(tmp_path)
    again = opened(tmp_path, metric).search(queries, 10)
    assert_array_equal(again.rows, hits.rows)
    assert_array_equal(again.distances, hits.distances)
    mapped = opened(tmp_path, metric, mapped=True).search(queries, 10)
    assert_array_equal(mapped.rows, hits.rows)


def test_vectors_take_a_quarter(tmp_path: Path) -> None:
    vectors = drawn(2000, 784)
    compact(vectors).save(tmp_path)
    assert (tmp_path / FILE).stat().st_size < 0.26 * vectors.nbytes


@pytest.mark.parametrize("is_compact", [False, True])
@pytest.mark.parametrize("factor", [1e2, 1e6, 1e12])
def test_a_long_vector_takes_no_precision_from_the_others(factor: float, is_compact: bool) -> None:
    vectors, queries = drawn(), drawn(50, seed=1)
    vectors[7] *= factor
    options = {"metric": Metric.EUCLIDEAN, "compact": is_compact}
    index = make_indexer("hnsw-pca", options).build(vectors)
    assert recall(index, vectors, queries, Metric.EUCLIDEAN) > 0.95
    assert index.search(vectors[7:8], 1).rows[0, 0] == 7


def test_vectors_are_within_half_a_step() -> None:
    vectors, origin = drawn(100, 51), drawn(1, 51)[0]
    kept = CompactVectors.of([vectors[:60], vectors[60:]], 100, origin)
    steps = np.abs(vectors - origin).max(axis=1, keepdims=True) / 127
    assert (np.abs(kept.fetch(slice(None)) - vectors) <= 0.501 * steps).all()
    moved = np.linalg.norm(kept.fetch(slice(None)) - vectors, axis=1)
    assert (moved / np.linalg.norm(vectors - origin, axis=1)).max() < 0.011
    assert_array_equal(kept.fetch(np.array([99, 3])), kept.fetch(slice(None))[[99, 3]])
    assert_allclose(kept.rounded(kept.fetch(slice(None))), kept.fetch(slice(None)), rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_added_rows_are_found(metric: Metric, tmp_path: Path) -> None:
    vectors = drawn()
    index = compact(vectors[:2500], metric)
    index.save(tmp_path)
    for grown in (index, opened(tmp_path, metric, mapped=True)):
        longest = np.linalg.norm(vectors[:2500], axis=1).max()
        fits = np.linalg.norm(vectors[2500:], axis=1) <= longest
        more = np.concatenate([vectors[2500:][fits], vectors[:3]])  # three copies of known rows
        grown.add(more)
        assert len(grown) == 2500 + len(more)
        new = np.arange(2500, 2500 + fits.sum())
        if metric is Metric.INNER_PRODUCT:
            every = np.concatenate([vectors[:2500], more])
            assert recall(grown, every, more[:50], metric) > 0.95
            continue
        nearest = grown.search(more[:-3], 3).rows
        assert (nearest == new[:, None]).any(axis=1).mean() > 0.98
        assert {0, len(grown) - 3} <= set(grown.search(vectors[:1], 4).rows[0].tolist())


def test_a_longer_vector_of_products_needs_a_new_build() -> None:
    rng = np.random.default_rng(0)
    vectors = drawn() * rng.uniform(0.1, 1, (3000, 1)).astype(np.float32)
    index = compact(vectors, Metric.INNER_PRODUCT)
    assert index.details["lengthened"] is True
    with pytest.raises(BadInput, match="longer than all 3,000 of the index"):
        index.add(vectors[:1] * 100)


def test_its_vectors_cannot_be_taken_out() -> None:
    index = compact(drawn(300))
    assert isinstance(index, Readable)
    assert index.stored() is None


@pytest.mark.parametrize("metric", METRICS)
def test_a_mask_is_kept_and_zero_vectors_are_at_a_right_angle(metric: Metric) -> None:
    vectors = drawn(500)
    vectors[3] = 0
    index = compact(vectors, metric)
    queries = drawn(20, seed=1)
    among = np.zeros(500, np.bool_)
    among[[3, 5, 8]] = True
    hits = index.search(queries, 5, among)
    assert (np.sort(hits.rows[:, :3]) == [3, 5, 8]).all()
    assert (hits.rows[:, 3:] == -1).all()
    if metric is Metric.COSINE:
        assert_allclose(hits.distances[hits.rows == 3], 1, atol=0.01)


@pytest.mark.parametrize(
    "damage", ["shorter", "scale", "kind", "gone", "text", "header", "huge", "empty"]
)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    compact(drawn(300)).save(tmp_path)
    path = tmp_path / FILE
    numbers = np.load(path)
    if damage == "shorter":
        np.save(path, numbers[:-1])
    elif damage == "scale":
        numbers[5, -4:].view(np.float32)[0] = np.nan
        np.save(path, numbers)
    elif damage == "kind":
        np.save(path, numbers.astype(np.int16))
    elif damage == "text":
        path.write_text("no array")
    elif damage == "header":
        path.write_bytes(path.read_bytes().replace(b")", b"(", 1))
    elif damage == "huge":
        path.write_bytes(path.read_bytes().replace(b"(300,", b"(9" + b"0" * 14 + b",", 1))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(BadData, match="build the index again"):
        opened(tmp_path)


def test_a_whole_index_replaces_a_compact_one(tmp_path: Path) -> None:
    vectors = drawn(300)
    compact(vectors).save(tmp_path)
    make_indexer("hnsw-pca", {}).build(vectors).save(tmp_path)
    index = opened(tmp_path)
    assert "compact" not in index.details
    assert_allclose(index.search(vectors[:5], 1).distances, 0, atol=1e-6)
