"""Vectors of whole numbers from 0 to 255, which hnsw-pca keeps in bytes."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from indexers.exact import Exact
from indexers.hnsw_pca import HnswPca
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData
from retrieval.hits import InMemory

METRICS = [Metric.EUCLIDEAN, Metric.INNER_PRODUCT]


def pixels(rows: int, dim: int = 40, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    near = rng.integers(20, 230, (20, dim))[rng.integers(0, 20, rows)]
    return (near + rng.integers(-20, 26, near.shape)).astype(np.float32)


def in_bytes(index: Any) -> bool:
    return bool(getattr(index, "inner", index).vectors.in_bytes)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mapped", [False, True])
def test_hits_are_exact(metric: Metric, mapped: bool, tmp_path: Path) -> None:
    rows, queries = pixels(800), pixels(30, seed=1) + np.float32(0.25)
    indexer = HnswPca(metric, ef=800, mapped=mapped)
    built = indexer.build_graph(InMemory(rows))
    assert in_bytes(built)
    built.save(tmp_path)
    loaded = indexer.load(tmp_path)
    assert in_bytes(loaded)
    wanted = Exact(metric).build(rows).search(queries, 10)
    for index in (built, loaded):
        found = index.search(queries, 10)
        np.testing.assert_array_equal(found.rows, wanted.rows)
        np.testing.assert_allclose(found.distances, wanted.distances, rtol=1e-5)
    single = loaded.search(queries[:1], 10)
    np.testing.assert_array_equal(single.rows, wanted.rows[:1])


def test_files_are_small_and_faiss_reads_them(tmp_path: Path) -> None:
    rows = pixels(2_000, 300)
    for name, some in (("bytes", rows), ("floats", rows + np.float32(0.5))):
        (tmp_path / name).mkdir()
        HnswPca(Metric.EUCLIDEAN).build(some).save(tmp_path / name)
    small, large = (
        (tmp_path / name / "index.faiss").stat().st_size for name in ("bytes", "floats")
    )
    assert large - small == pytest.approx(3 * rows.size, rel=1e-3)
    index: Any = faiss.read_index(str(tmp_path / "bytes" / "index.faiss"))
    index.k_factor = 10
    distances, found = index.search(rows[:20], 1)
    assert (found[:, 0] == np.arange(20)).mean() > 0.9 and distances[found[:, 0] == 0].max() == 0


@pytest.mark.parametrize("number", [-1, 256, 0.5, 1e12])
def test_other_numbers_are_kept_in_float32(number: float) -> None:
    rows = pixels(9_000, 4)  # of more than one block
    rows[8_999, 3] = number
    index = HnswPca(Metric.EUCLIDEAN).build(rows)
    assert not in_bytes(index)
    stored = index.stored()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.concatenate([*stored]), rows)


@pytest.mark.parametrize("mapped", [False, True])
def test_rows_are_added(mapped: bool, tmp_path: Path) -> None:
    indexer = HnswPca(Metric.EUCLIDEAN, ef=600, mapped=mapped)
    indexer.build(pixels(500)).save(tmp_path)
    index: Any = indexer.load(tmp_path)
    more = pixels(20, seed=2)
    index.add(more)
    assert in_bytes(index)
    index.add(more + np.float32(0.5))
    assert not in_bytes(index)
    wanted = np.concatenate([pixels(500), more, more + np.float32(0.5)])
    np.testing.assert_array_equal(np.concatenate([*index.stored()]), wanted)
    np.testing.assert_array_equal(index.search(wanted, 1).distances, 0)
    index.save(tmp_path)
    np.testing.assert_array_equal(np.concatenate([*indexer.load(tmp_path).stored()]), wanted)


def test_copies_are_found() -> None:
    rows = np.concatenate([pixels(300)] * 2)
    index = HnswPca(Metric.EUCLIDEAN).build(rows)
    assert in_bytes(index) and index.details["distinct"] == len(np.unique(rows, axis=0))
    hits = index.search(rows[:20], 2)
    np.testing.assert_array_equal(hits.rows, np.arange(20)[:, None] + [0, 300])


def test_another_kind_of_numbers_is_refused(tmp_path: Path) -> None:
    HnswPca(Metric.EUCLIDEAN).build(pixels(300)).save(tmp_path)
    path = str(tmp_path / "index.faiss")
    index: Any = faiss.read_index(path)
    half = faiss.IndexScalarQuantizer(40, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
    half.add(pixels(300))
    index.refine_index = half
    index.own_refine_index = False
    faiss.write_index(index, path)
    with pytest.raises(BadData, match="vectors of a wrong kind; build the index again"):
        HnswPca(Metric.EUCLIDEAN).load(tmp_path)
