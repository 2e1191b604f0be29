"""Copies of a vector: which rows are some, what a graph links, and what a search makes of them."""

from pathlib import Path

import faiss
import hnswlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexers.copies import FILE, Copies
from retrieval.contracts import Mask, Metric, Vectors
from retrieval.errors import BadData
from retrieval.hits import Found, InMemory
from retrieval.registry import make_indexer

DIM = 8


def vectors(rows: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def found(array: Vectors, metric: Metric = Metric.EUCLIDEAN) -> Copies:
    return Copies.find(InMemory(np.ascontiguousarray(array)), metric)


def test_rows_with_one_vector_are_copies_of_the_first() -> None:
    a, b, c = vectors(3)
    copies = found(np.stack([a, b, a, c, b, a]))
    assert (copies.rows, copies.vectors) == (6, 3)
    assert copies.vector_of is not None
    assert copies.vector_of.tolist() == [0, 1, 0, 2, 1, 0]
    assert copies.is_first.tolist() == [True, True, False, True, False, False]


def test_rows_that_all_differ_have_no_copies() -> None:
    copies = found(vectors(5000))
    assert (copies.rows, copies.vectors, copies.vector_of) == (5000, 5000, None)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT])
def test_copies_may_differ_by_rounding(metric: Metric, scale: float) -> None:
    draw = np.random.default_rng(1)
    array = vectors(2000) * scale
    source = draw.integers(0, 2000, 3000)
    copied = array[source] * (1 + 1e-6 * draw.uniform(-1, 1, (3000, DIM)))
    copies = found(np.concatenate([array, copied]).astype(np.float32), metric)
    assert copies.vectors == 2000
    assert copies.vector_of is not None
    assert copies.vector_of[2000:].tolist() == source.tolist()


@pytest.mark.parametrize("apart", [1e-3, 1e-4])
def test_rows_that_differ_by_more_are_not_copies(apart: float) -> None:
    array = vectors(2000)
    near = array + apart * vectors(2000, seed=1)
    assert found(np.concatenate([array, near]).astype(np.float32)).vector_of is None


def test_one_far_vector_does_not_make_others_copies() -> None:
    array = vectors(500)
    array[7] *= 1e12
    assert found(array).vector_of is None


def test_vectors_far_from_the_origin_stay_distinct() -> None:
    assert found(vectors(500) + 1000).vector_of is None


def test_multiples_of_a_vector_are_copies_for_cosine_only() -> None:
    array = vectors(50)
    both = np.concatenate([array, 2 * array])
    assert found(both, Metric.COSINE).vectors == 50
    assert found(both, Metric.EUCLIDEAN).vectors == 100


def test_zero_vectors_are_copies_of_each_other() -> None:
    array = vectors(40)
    array[::4] = 0
    assert found(array, Metric.COSINE).vectors == 31


def test_equal_rows_are_one_vector() -> None:
    assert found(np.tile(vectors(1), (70_000, 1))).vectors == 1


def test_added_rows_join_existing_copies() -> None:
    a, b, c, d = vectors(4)
    copies = found(np.stack([a, b, a])).joined([np.stack([a, b])], np.stack([c, b, c, a, d]))
    assert copies.vector_of is not None
    assert copies.vector_of.tolist() == [0, 1, 0, 2, 1, 2, 0, 3]
    assert copies.is_first[3:].tolist() == [True, False, False, False, True]
    without = Copies.none(2).joined([np.stack([a, b])], np.stack([c, d]))
    assert (without.rows, without.vectors, without.vector_of) == (4, 4, None)


def test_rows_of_an_older_index_stay_distinct() -> None:
    a, b = vectors(2)
    copies = Copies.none(3).joined([np.stack([a, a, b])], np.stack([a, b]))
    assert copies.vector_of is not None
    assert copies.vector_of.tolist() == [0, 1, 2, 0, 2]


def nearest_by_number(queries: Vectors, count: int, among: Mask | None) -> Found:
    """Vector i at the distance i // 2, so that two each are equally far."""
    numbers = np.arange(4) if among is None else np.flatnonzero(among)
    rows = np.tile(numbers[:count], (len(queries), 1))
    return rows, (rows // 2).astype(np.float32)


def test_all_rows_of_a_vector_are_hits_and_equal_distances_go_by_row() -> None:
    copies = Copies(8, 4, np.array([0, 1, 2, 1, 0, 3, 2, 1], np.int32))
    search = copies.expanded(nearest_by_number)
    queries = vectors(2)
    rows, distances = search(queries, 8, None)
    assert rows.tolist() == [[0, 1, 3, 4, 7, 2, 5, 6]] * 2
    assert distances.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]] * 2
    rows, _ = search(queries, 3, None)
    assert rows.tolist() == [[0, 1, 3]] * 2
    mask = np.array([0, 0, 1, 1, 0, 1, 1, 0], np.bool_)
    rows, distances = search(queries, 4, mask)
    assert rows.tolist() == [[3, 2, 5, 6]] * 2
    assert distances.tolist() == [[0, 1, 1, 1]] * 2


def test_native_files_hold_each_vector_once_in_the_order_of_first_rows(tmp_path: Path) -> None:
    array = vectors(40)
    rows = np.concatenate([np.zeros(100, int), np.arange(40), [3, 3]])
    database = np.ascontiguousarray(array[rows])
    for backend, read in (
        ("hnsw", lambda folder: hnswlib_vectors(folder / "index.hnsw")),
        ("faiss", lambda folder: faiss.read_index(str(folder / "index.faiss")).reconstruct_n()),
    ):
        folder = tmp_path / backend
        folder.mkdir()
        index = make_indexer(backend, {"metric": "euclidean"}).build(database)
        assert index.details["distinct"] == 40
        index.save(folder)
        np.testing.assert_array_equal(read(folder), array)
        named = pq.read_table(folder / FILE)["vector"].to_numpy()
        assert named.tolist() == rows.tolist()


def hnswlib_vectors(path: Path) -> Vectors:
    graph = hnswlib.Index("l2", DIM)
    graph.load_index(str(path))
    return np.asarray(graph.get_items(np.arange(graph.element_count)))


@pytest.mark.parametrize(
    "numbers", [[], [1, 0, 2], [0, 2, 1], [-1, 0, 1, 2], [0, 0, 0], [0, 1, 2, 3], [0, None, 1, 2]]
)
def test_numbers_that_do_not_fit_the_graph_are_refused(
    numbers: list[int | None], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"vector": pa.array(numbers, pa.int32())}), tmp_path / FILE)
    with pytest.raises(BadData, match=r"copies\.parquet"):
        Copies.load(tmp_path, 3)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table"])
def test_file_that_is_not_a_table_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(BadData, match=r"copies\.parquet"):
        Copies.load(tmp_path, 3)


def test_saving_an_index_without_copies_removes_the_old_file(tmp_path: Path) -> None:
    array = vectors(30)
    indexer = make_indexer("hnsw", {})
    indexer.build(np.concatenate([array, array])).save(tmp_path)
    assert (tmp_path / FILE).is_file()
    indexer.build(array).save(tmp_path)
    assert len(indexer.load(tmp_path)) == 30
