"""The hnsw graph beyond the contract: unreachable rows, ef, files, reproducibility."""

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import pytest

from indexers import hnsw
from indexers.exact import Exact
from indexers.hnsw import FILE, Hnsw
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData, BadInput, RetrError


def vectors(rows: int, dim: int = 8) -> Vectors:
    return np.random.default_rng(2).standard_normal((rows, dim), dtype=np.float32)


def test_unreachable_rows_are_found() -> None:
    # A thin graph in which hnswlib itself gives up: it cannot fill the result.
    database = vectors(3000, 16)
    index = Hnsw(Metric.EUCLIDEAN, m=2, ef_construction=5, build_threads=1).build(database)
    with pytest.raises(RuntimeError):
        index.graph.knn_query(database[:5], 3000)
    truth = Exact(Metric.EUCLIDEAN).build(database).search(database[:5], 3000)
    hits = index.search(database[:5], 3000)
    np.testing.assert_array_equal(np.sort(hits.rows), np.sort(truth.rows))
    np.testing.assert_allclose(hits.distances, truth.distances, atol=2e-3)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.95])
def test_masks_of_every_size(share: float) -> None:
    database, queries = vectors(4000), vectors(4030)[4000:]
    mask = np.random.default_rng(0).random(4000) < share
    index = Hnsw(Metric.EUCLIDEAN, ef=100).build(database)
    hits = index.search(queries, 5, mask)
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 5, mask)
    assert (hits.rows == truth.rows).mean() > 0.97
    assert mask[hits.rows[hits.rows >= 0]].all()


def test_rows_of_a_small_mask_are_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Hnsw(Metric.EUCLIDEAN, m=4, ef=10).build(vectors(4000))
    copied = []
    copy = index._flat

    def noting(rows: Any) -> Any:
        copied.append(len(rows))
        return copy(rows)

    monkeypatch.setattr(index, "_flat", noting)
    few, others, many = np.arange(4000) < 40, np.arange(4000) > 3959, np.arange(4000) % 2 == 0
    for mask in (few, few, many, few.copy()):
        hits = index.search(vectors(2), 5, mask)
        assert mask[hits.rows].all()
    assert copied == [40]
    few[:20] = False  # the caller changes the mask that was kept
    assert index.search(vectors(2), 5, few).rows.min() >= 20
    assert (index.search(vectors(2), 5, others).rows > 3959).all()
    assert copied == [40, 20, 40]
    index.add(np.zeros((1, vectors(1).shape[1]), np.float32))
    assert (index.search(vectors(2), 5, np.append(others, True)).rows > 3959).all()


@pytest.mark.parametrize("kept", [10**6, 100])
@pytest.mark.parametrize("candidates", [10**6, 1])
def test_a_mask_that_is_far_from_the_queries_costs_no_recall(
    kept: int, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the copied rows of the mask, and by hnswlib's own filter."""
    monkeypatch.setattr(hnsw, "MAX_KEPT_ROWS", kept)
    monkeypatch.setattr(hnsw, "MAX_CANDIDATES", candidates)
    database, queries = vectors(4000), vectors(4030)[4000:]
    mask = database[:, 0] > np.quantile(database[:, 0], 0.7)  # 30%, on one side
    queries = queries[queries[:, 0] < np.quantile(database[:, 0], 0.3)]
    index = Hnsw(Metric.EUCLIDEAN, ef=50).build(database)
    hits = index.search(queries, 10, mask)
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 10, mask)
    assert (hits.rows == truth.rows).mean() > 0.95
    assert mask[hits.rows].all()


def test_threads_with_different_masks_find_their_own_rows() -> None:
    index = Hnsw(Metric.EUCLIDEAN, m=4, ef=10).build(vectors(2000))
    masks = [np.arange(2000) % 50 == part for part in range(8)]

    def search(part: int) -> bool:
        return all(
            bool(masks[part][index.search(vectors(3), 5, masks[part]).rows].all())
            for _ in range(30)
        )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(search, range(8)))


def test_ef_of_the_loading_indexer_applies(tmp_path: Path) -> None:
    Hnsw(ef=33).build(vectors(50)).save(tmp_path)
    assert Hnsw(ef=33).load(tmp_path).graph.ef == 33
    assert Hnsw(ef=77).load(tmp_path).graph.ef == 77


def test_higher_ef_raises_recall(tmp_path: Path) -> None:
    database, queries = vectors(5000, 32), vectors(5100, 32)[5000:]
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 1)
    Hnsw(Metric.EUCLIDEAN, m=4, ef_construction=20).build(database).save(tmp_path)
    recall = [
        (Hnsw(Metric.EUCLIDEAN, ef=ef).load(tmp_path).search(queries, 1).rows == truth.rows).mean()
        for ef in (1, 300)
    ]
    assert recall[0] + 0.1 < recall[1]


def test_one_thread_builds_the_same_file(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        folder = tmp_path / name
        folder.mkdir()
        Hnsw(seed=seed, build_threads=1).build(vectors(2000)).save(folder)
        files.append((folder / FILE).read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT])
def test_saved_for_hnswlib(tmp_path: Path, metric: Metric) -> None:
    database = vectors(300)
    index = Hnsw(metric).build(database)
    index.save(tmp_path)
    space = {Metric.COSINE: "cosine", Metric.EUCLIDEAN: "l2", Metric.INNER_PRODUCT: "ip"}[metric]
    graph = hnswlib.Index(space, 8)
    graph.load_index(str(tmp_path / FILE))
    graph.set_ef(300)
    labels, _ = graph.knn_query(database[:9], 5)
    np.testing.assert_array_equal(
        labels, Exact(metric).build(database).search(database[:9], 5).rows
    )


def test_vectors_whose_squares_overflow_float32_have_a_cosine() -> None:
    directions = vectors(40)
    database = np.concatenate([directions * np.float32(1e-25), directions * np.float32(1e25)])
    hits = Hnsw(Metric.COSINE).build(database).search(directions, 2)
    np.testing.assert_array_equal(np.sort(hits.rows)[:, 0], np.arange(40))
    np.testing.assert_array_equal(np.sort(hits.rows)[:, 1], np.arange(40, 80))
    np.testing.assert_allclose(hits.distances, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": Metric.MANHATTAN}, "no manhattan distance; use the backend exact or ivf"),
        ({"m": 1}, "m is 1; give from 2 to 1024"),
        ({"ef": 0}, "ef is 0; give from 1 to 2147483647"),
        ({"ef_construction": 0}, "ef_construction is 0; give from 1 to 2147483647"),
        ({"seed": -1}, "seed is -1; give from 0 to 2147483647"),
        ({"build_threads": -1}, "build_threads is -1; give from 0 to 1024"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Hnsw(**options)


def test_every_truncated_file_is_refused(tmp_path: Path) -> None:
    Hnsw(m=4).build(vectors(20, 2)).save(tmp_path)
    file = tmp_path / FILE
    whole = file.read_bytes()
    for kept in [*range(100), *range(100, len(whole), 7), len(whole) - 1]:
        file.write_bytes(whole[:kept])
        with pytest.raises(BadData, match=r"index\.hnsw is damaged"):
            Hnsw(m=4).load(tmp_path)


@pytest.mark.parametrize("offset", [0, 8, 16, 24, 32, 40, 52, 64])
@pytest.mark.parametrize("value", [2**31, 2**61 + 3, 2**64 - 1])
def test_a_header_that_contradicts_itself_is_refused(
    tmp_path: Path, offset: int, value: int
) -> None:
    Hnsw(m=4).build(vectors(20, 2)).save(tmp_path)
    file = tmp_path / FILE
    content = bytearray(file.read_bytes())
    if offset == 8:
        value = 3  # less room than rows; more room than rows is lawful
    if offset == 52:
        struct.pack_into("<I", content, offset, 20 + value % 2**32 // 2)
    else:
        struct.pack_into("<Q", content, offset, value)
    file.write_bytes(content)
    with pytest.raises(BadData, match=r"index\.hnsw is damaged"):
        Hnsw(m=4).load(tmp_path)


def test_truncated_save_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Hnsw().build(vectors(20))

    class Full:
        def save_index(self, path: str) -> None:
            Path(path).write_bytes(b"as much as the disk took")

        def index_file_size(self) -> int:
            return int(index.graph.index_file_size())

    full = type(index)(Full(), index.metric, 0, index.copies)
    with pytest.raises(RetrError, match="has 24 of"):
        full.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
