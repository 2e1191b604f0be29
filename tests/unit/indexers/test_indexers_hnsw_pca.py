"""`hnsw-pca` beyond the contract: its walk, its codes, its files."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numba import types

from indexers import hnsw_pca
from indexers.exact import Exact
from indexers.faiss import bridge
from indexers.graph import distances, walk
from indexers.hnsw_pca import HnswPca
from retrieval.contracts import Growing, Metric, Vectors
from retrieval.errors import BadData, BadInput

METRICS = [Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT]


def vectors(rows: int, dim: int = 40, axes: int = 6) -> Vectors:
    """Vectors that vary along few axes, and a little along all, off the origin."""
    generator = np.random.default_rng(2)
    along = generator.standard_normal((axes, dim))
    noise = 0.05 * generator.standard_normal((rows, dim))
    return (generator.standard_normal((rows, axes)) @ along + noise + 3).astype(np.float32)


def parted(rows: int, queries: int, dim: int = 40) -> tuple[Vectors, Vectors]:
    both = vectors(rows + queries, dim)
    return both[:rows], both[rows:]


def recall(indexer: HnswPca, database: Vectors, queries: Vectors, k: int = 10) -> float:
    found = indexer.build(database).search(queries, k).rows
    true = Exact(indexer.metric).build(database).search(queries, k).rows
    return float(np.mean([len({*a} & {*b}) / k for a, b in zip(found, true, strict=True)]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("axes", [None, 16, 40])
def test_recall(metric: Metric, axes: int | None) -> None:
    assert recall(HnswPca(metric, axes=axes, ef=64), *parted(3000, 100)) > 0.97


@pytest.mark.parametrize("metric", METRICS)
def test_single_query_has_the_same_hits_as_in_a_batch(metric: Metric) -> None:
    database, queries = parted(2000, 700)  # more than tags of a byte tell apart
    index = HnswPca(metric).build(database)
    many = index.search(queries, 10)
    for number in range(len(queries)):
        one = index.search(queries[number : number + 1], 10)
        assert np.array_equal(one.rows[0], many.rows[number])
        assert np.array_equal(one.distances[0], many.distances[number])


def test_concurrent_searches_have_the_same_hits() -> None:
    database, queries = parted(2000, 400)
    index = HnswPca(Metric.EUCLIDEAN).build(database)
    true = index.search(queries, 5).rows
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: index.search(queries[n : n + 1], 5).rows[0], range(400)))
    assert np.array_equal(np.array(found), true)


def test_distances_are_those_of_the_vectors() -> None:
    database, queries = parted(3000, 20)
    hits = HnswPca(Metric.EUCLIDEAN, axes=16).build(database).search(queries, 10)
    true = np.linalg.norm(database[hits.rows] - queries[:, None], axis=2)
    np.testing.assert_allclose(hits.distances, true, rtol=1e-5)


def test_distance_of_a_vector_to_itself_is_zero() -> None:
    database, _ = parted(2000, 1)
    for metric in (Metric.COSINE, Metric.EUCLIDEAN):
        hits = HnswPca(metric).build(database).search(database[:200], 1)
        assert hits.rows[:, 0].tolist() == list(range(200))
        assert (hits.distances < 1e-6).all()


def test_few_long_vectors_do_not_reduce_recall() -> None:
    database, queries = parted(3000, 100)
    database = database - 3
    database[::500] *= 1000
    assert recall(HnswPca(Metric.EUCLIDEAN, ef=64), database, queries - 3) > 0.97


def test_queries_far_longer_than_the_vectors() -> None:
    database, queries = parted(3000, 50)
    queries = (queries - 3) * 50
    assert recall(HnswPca(Metric.EUCLIDEAN, ef=100), database - 3, queries, 1) > 0.9
    index = HnswPca(Metric.EUCLIDEAN).build(database)
    for length in (1e15, 1e30):
        hits = index.search((queries * length).astype(np.float32), 3)
        assert ((hits.rows >= 0) & (hits.rows < 3000)).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-18, 1e12])
def test_vectors_of_any_length(metric: Metric, scale: float) -> None:
    database, queries = parted(2000, 50)
    # Squares of the shortest leave the range of float32, so that by other metrics all are equal.
    if metric is Metric.COSINE or scale > 1:
        database, queries = database * np.float32(scale), queries * np.float32(scale)
    assert recall(HnswPca(metric, ef=64), database, queries) > 0.97


def test_queries_in_any_form_are_answered() -> None:
    database, queries = parted(2000, 1)
    index = HnswPca(Metric.EUCLIDEAN).build(database)
    expected = index.search(queries, 5)
    locked = queries.copy()
    locked.flags.writeable = False
    every_other = np.repeat(queries, 2, axis=1)[:, ::2]
    for form in (locked, every_other, queries.astype(np.float64), np.asfortranarray(queries)):
        hits = index.search(form, 5)
        assert np.array_equal(hits.rows, expected.rows)
        assert np.array_equal(hits.distances, expected.distances)


def test_more_neighbors_than_candidates() -> None:
    database, queries = parted(500, 4)
    index = HnswPca(Metric.EUCLIDEAN, ef=1).build(database)
    for k in (3, 499, 500, 510):
        hits = index.search(queries[:1], k)
        assert (hits.rows >= 0).sum() == min(k, 500)
        assert len({*hits.rows[0].tolist()} - {-1}) == min(k, 500)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("share", "scanned"), [(0.001, 32), (0.05, 32), (0.3, 10**9), (0.3, 0), (0.95, 0)]
)
def test_masks_of_every_size(
    share: float, scanned: int, bits: int, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a walk, and by codes of all matching rows."""
    monkeypatch.setattr(hnsw_pca, "SCANNED_PER_CANDIDATE", scanned)
    database, queries = parted(4000, 30)
    mask = np.random.default_rng(0).random(4000) < share
    mask.flags.writeable = False
    hits = HnswPca(metric, bits=bits, ef=64).build(database).search(queries, 4, mask)
    truth = Exact(metric).build(database).search(queries, 4, mask)
    assert (hits.rows == truth.rows).mean() > 0.95
    assert mask[hits.rows[hits.rows >= 0]].all()


@pytest.mark.parametrize("metric", METRICS)
def test_a_mask_that_is_far_from_the_queries_costs_no_recall(metric: Metric) -> None:
    database, queries = parted(6000, 60)
    mask = database[:, 0] > np.quantile(database[:, 0], 0.7)
    queries = queries[queries[:, 0] < np.quantile(database[:, 0], 0.3)]
    assert len(queries) > 5
    index = HnswPca(metric, ef=64).build(database)
    truth = Exact(metric).build(database).search(queries, 10, mask)
    hits = index.search(queries, 10, mask)
    found = [len(set(a) & set(b)) for a, b in zip(hits.rows, truth.rows, strict=True)]
    assert np.mean(found) > 9.5
    for query, rows in zip(queries, hits.rows, strict=True):
        np.testing.assert_array_equal(index.search(query[None], 10, mask).rows[0], rows)


@pytest.mark.parametrize("kind", ["float32", "bytes", "compact"])
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
def test_rows_that_are_all_copies_can_be_added(kind: str, metric: Metric) -> None:
    database = vectors(600, 64)
    if kind == "bytes":
        database = np.clip(np.rint(100 + 30 * database), 0, 255)
    indexer = HnswPca(metric, axes=32, bits=8, compact=kind == "compact")
    index: Any = indexer.build(database)
    assert index.coding.has_rest
    before = index.vectors.arrays[0].dtype
    index.add(database[:2])
    assert len(index) == 602 and index.vectors.arrays[0].dtype == before
    assert set(index.search(database[:1], 2).rows[0].tolist()) == {0, 600}
    index.add(vectors(1, 64) + np.float32(0.5))
    assert index.search(vectors(1, 64) + np.float32(0.5), 1).rows[0, 0] == 602


def test_queries_with_too_few_rows_are_compared_with_all() -> None:
    # The walk ends among copies of one vector, which are linked with each other alone.
    database = np.concatenate([np.ones((300, 4), np.float32), vectors(50, 4)])
    index = HnswPca(Metric.EUCLIDEAN, m=2, ef_construction=1, ef=1).build(database)
    hits = index.search(database[:3], 320)
    assert (hits.rows >= 0).all()
    assert (np.sort(hits.rows, axis=1)[:, 1:] != np.sort(hits.rows, axis=1)[:, :-1]).all()


def test_codes_keep_the_order_of_close_neighbors() -> None:
    """Within clusters far smaller than the distance between them."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((10, 32))
    database = centres[generator.integers(10, size=3000)]
    database = (database + 1e-3 * generator.standard_normal((3000, 32))).astype(np.float32)
    indexer = HnswPca(Metric.EUCLIDEAN, axes=32, ef=128)
    assert recall(indexer, database[:-50], database[-50:]) > 0.97


def compiled_for(function: Any, *arguments: Any) -> str:
    """Return the optimized code of the function, in LLVM's language: the same for any processor."""
    function.compile(arguments)
    return str(function.inspect_llvm()[arguments])


@pytest.mark.parametrize("kind", [types.int8, types.int16])
def test_walk_is_vectorized_and_prefetches(kind: Any) -> None:
    """A loop that the compiler cannot vectorize is still right, and many times slower."""
    codes = types.int16[::1], kind[:, ::1], types.int64
    for between in (distances.squared_difference, distances.minus_product):
        code = compiled_for(between, *codes)
        assert re.search(rf"load <\d+ x i{kind.bitwidth}>", code)
        assert re.search(r"mul [a-z ]*<\d+ x i32>", code)
    assert "@llvm.prefetch" in compiled_for(walk.prefetch_row, *codes[1:])


ANSWERS = """
import sys
import numpy as np
from pathlib import Path
from indexers.hnsw_pca import HnswPca

folder = Path(sys.argv[1])
queries = np.load(folder / "queries.npy")
for metric in ("cosine", "euclidean", "inner_product"):
    hits = HnswPca(metric, ef=200).load(folder / metric).search(queries, 10)
    np.savez(folder / f"{metric}.npz", rows=hits.rows, distances=hits.distances)
"""


@pytest.mark.slow
def test_walk_has_the_same_hits_on_the_oldest_processors(tmp_path: Path) -> None:
    database, queries = parted(2000, 50)
    np.save(tmp_path / "queries.npy", queries)
    expected = {}
    for metric in METRICS:
        (tmp_path / metric).mkdir()
        index = HnswPca(metric, ef=200).build(database)
        index.save(tmp_path / metric)
        expected[metric] = index.search(queries, 10)
    oldest = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    settings = {**os.environ, **oldest, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", ANSWERS, tmp_path], env=settings, check=True)
    for metric, hits in expected.items():
        found = np.load(tmp_path / f"{metric}.npz")
        assert np.array_equal(found["rows"], hits.rows)
        np.testing.assert_allclose(found["distances"], hits.distances, rtol=1e-5, atol=1e-6)


def test_details_name_axes_and_copies() -> None:
    database = vectors(500)

    def details(**options: Any) -> Any:
        return HnswPca(Metric.EUCLIDEAN, **options).build(database).details

    assert details() == {"axes": 16, "bits": 16}
    assert details(axes=17, bits=16) == {"axes": 32, "bits": 16}
    assert details(axes=17, bits=8) == {"axes": 31, "bits": 8}
    assert details(axes=1000, bits=16) == {"axes": 40, "bits": 16}


def test_effort_of_the_loading_indexer_applies(tmp_path: Path) -> None:
    database, queries = parted(3000, 100)
    made = HnswPca(Metric.EUCLIDEAN, axes=16, m=4, ef_construction=20)
    made.build(database).save(tmp_path)
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 10)
    found = [
        (replace(made, ef=ef).load(tmp_path).search(queries, 10).rows == truth.rows).mean()
        for ef in (1, 100)
    ]
    assert found[0] + 0.03 < found[1]


def test_one_thread_builds_the_same_graph(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        HnswPca(Metric.EUCLIDEAN, build_threads=1).build(vectors(2000)).save(folder)
        files.append((folder / "index.faiss").read_bytes())
    assert files[0] == files[1]


def test_saved_for_faiss(tmp_path: Path) -> None:
    database, queries = parted(2000, 20)
    index = HnswPca(Metric.EUCLIDEAN).build(database)
    index.save(tmp_path)
    read: Any = faiss.read_index(str(tmp_path / "index.faiss"))
    read.k_factor = 40
    bridge.set_parameters(read, "efSearch=400")
    assert (read.search(queries, 1)[1] == index.search(queries, 1).rows).mean() > 0.9


@pytest.mark.parametrize("axes", [None, 16])
def test_zero_vector_does_not_reduce_recall(axes: int | None, tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    database, queries = (draw.standard_normal((n, 64), dtype=np.float32) for n in (3000, 100))
    if axes:
        for some in (database, queries):
            some[:, axes:] *= 0.01  # with another spread, few axes would lose too much
    zero = np.zeros((1, 64), np.float32)
    indexer = HnswPca(Metric.COSINE, axes=axes)
    without = recall(indexer, database, queries)
    assert recall(indexer, np.concatenate([zero, database]), queries) > without - 0.01
    grown = indexer.build(database[:100])
    grown.add(np.concatenate([zero, database[100:]]))
    grown.save(tmp_path)
    loaded = indexer.load(tmp_path)
    true = Exact(Metric.COSINE).build(database).search(queries, 10).distances
    for index in (grown, loaded):
        found = index.search(queries, 10).distances
        assert (found <= true[:, -1:] + 1e-5).mean() > without - 0.01


def test_a_zero_vector_is_found_where_all_others_point_away() -> None:
    draw = np.random.default_rng(5)
    database = draw.standard_normal((2000, 32), dtype=np.float32) + 3
    database[700] = database[1500] = 0
    for index in (HnswPca().build(database), HnswPca().build(database[:1501])):
        hits = index.search(-database[:5] - 3, 3)
        np.testing.assert_array_equal(hits.rows[:, :2], [[700, 1500]] * 5)
        np.testing.assert_allclose(hits.distances[:, :2], 1)
    among = np.arange(2000) != 700
    hits = HnswPca().build(database).search(-database[:1] - 3, 3, among)
    assert hits.rows[0, 0] == 1500


def test_load_refuses_another_kind(tmp_path: Path) -> None:
    HnswPca(Metric.EUCLIDEAN).build(vectors(300)).save(tmp_path)
    with pytest.raises(BadData, match="wanted IndexRefine with 0"):
        HnswPca(Metric.INNER_PRODUCT).load(tmp_path)
    inside = faiss.IndexRefineFlat(faiss.IndexFlat(8))
    faiss.write_index(inside, str(tmp_path / "index.faiss"))
    with pytest.raises(BadData, match="holds IndexFlatL2, no graph"):
        HnswPca(Metric.EUCLIDEAN).load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": Metric.MANHATTAN}, "no manhattan distance"),
        ({"axes": 0}, "axes is 0; give at least 1"),
        ({"bits": 4}, "bits is 4; give 8 or 16"),
        ({"m": 1}, "m is 1; give from 2 to 1024"),
        ({"ef": 0}, "ef is 0"),
        ({"ef_construction": 0}, "ef_construction is 0"),
        ({"build_threads": -1}, "build_threads is -1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        HnswPca(**options)


def test_candidates_have_the_default_number_of_links_and_more() -> None:
    candidates = HnswPca.candidates(Metric.COSINE, 1000, 784, 0)
    assert [(made.m, made.compact, made.saves_memory) for made in candidates] == [
        (16, False, False),
        (32, False, False),
        (16, True, True),
    ]
    assert {(made.axes, made.bits) for made in candidates} == {(None, None)}
    assert HnswPca.candidates(Metric.MANHATTAN, 1000, 48, 0) == []


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT])
def test_a_mapped_index_answers_from_its_file(metric: Metric, tmp_path: Path) -> None:
    database, queries = parted(2000, 50)
    HnswPca(metric).build(database).save(tmp_path)
    loaded, mapped = HnswPca(metric).load(tmp_path), HnswPca(metric, mapped=True).load(tmp_path)
    before, after = loaded.search(queries, 10), mapped.search(queries, 10)
    np.testing.assert_array_equal(before.rows, after.rows)
    np.testing.assert_array_equal(before.distances, after.distances)
    more = queries[:5] * np.float32(0.9)
    for index in (loaded, mapped):
        assert isinstance(index, Growing)
        index.add(more)
    before, after = loaded.search(more, 10), mapped.search(more, 10)
    np.testing.assert_array_equal(before.rows, after.rows)
    (tmp_path / "again").mkdir()
    mapped.save(tmp_path / "again")
    again = HnswPca(metric).load(tmp_path / "again")
    np.testing.assert_array_equal(again.search(more, 10).rows, after.rows)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_index_takes_no_memory_for_its_vectors(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from indexers.hnsw_pca import HnswPca\n"
        "def own():\n"
        "    return int(Path('/proc/self/status').read_text().split('RssAnon:')[1].split()[0])\n"
        "before = own()\n"
        "index = HnswPca('euclidean', mapped=sys.argv[1] == 'mapped').load(Path(sys.argv[2]))\n"
        "print(own() - before)\n"
    )
    database = np.random.default_rng(0).standard_normal((8000, 1024), dtype=np.float32)
    HnswPca(Metric.EUCLIDEAN, axes=32, m=4, ef=10).build(database).save(tmp_path)
    growth = {}
    for how in ("mapped", "loaded"):
        command = [sys.executable, "-c", script, how, str(tmp_path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        growth[how] = 1024 * int(done.stdout)
    assert growth["loaded"] > database.nbytes
    assert growth["mapped"] < growth["loaded"] - 0.9 * database.nbytes
