"""Recall at the defaults of each backend, and the recall that each build measures of itself."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.speed.scale import draw
from benchmarks.studies.defaults import large_clusters, small_clusters
from indexers.ivf import Ivf
from indexers.ivfpq import IvfPq
from retrieval.contracts import Hits, Json, Mask, Metric, Readable, Settling, Vectors
from retrieval.errors import BadInput
from retrieval.hits import Fetched, InMemory
from retrieval.index import recall as measuring
from retrieval.index.build import build_index
from retrieval.index.build_segments import build_segments
from retrieval.index.folder import GOOD_RECALL, RECALL, IndexFacts, open_index
from retrieval.index.recall import K, measured_recall
from retrieval.index.update import add_rows, delete_rows
from retrieval.registry import indexer_names, make_indexer
from tests.examples import slow
from tests.made import embeddings

QUERIES = 200


def directions(rows: int) -> Vectors:
    return draw(rows, seed=2)


def classes(rows: int) -> Vectors:
    """Vectors of ten classes far apart, whose rows differ by little, as trained embeddings are."""
    rng = np.random.default_rng(4)
    centers = rng.standard_normal((10, 64))
    along = rng.standard_normal((8, 64))
    inside = 0.02 * rng.standard_normal((rows, 8)) @ along
    return (centers[rng.integers(10, size=rows)] + inside).astype(np.float32)


def distances(queries: Vectors, vectors: Vectors, metric: Metric) -> NDArray[np.float64]:
    """(q, n), in double precision."""
    a, b = queries.astype(np.float64), vectors.astype(np.float64)
    match metric:
        case Metric.EUCLIDEAN:
            squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
            return np.sqrt(np.maximum(squares, 0))
        case Metric.INNER_PRODUCT:
            return -a @ b.T
        case Metric.COSINE:
            lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
            return 1 - a @ b.T / lengths
        case Metric.MANHATTAN:
            return np.stack([np.abs(b - query).sum(axis=1) for query in a])


def recall_of(hits: Hits, queries: Vectors, vectors: Vectors, metric: Metric) -> float:
    """Recall@10 by distance, written out."""
    found = 0
    for line, rows in zip(distances(queries, vectors, metric), hits.rows, strict=True):
        farthest = np.sort(line)[K - 1]
        found += int((line[rows[rows >= 0]] <= farthest + 1e-3 * abs(farthest) + 1e-6).sum())
    return found / (K * len(queries))


@pytest.mark.parametrize(
    ("data", "metric"),
    [
        (small_clusters, Metric.EUCLIDEAN),
        (large_clusters, Metric.INNER_PRODUCT),
        slow(directions, Metric.EUCLIDEAN),
        (classes, Metric.EUCLIDEAN),
        slow(small_clusters, Metric.INNER_PRODUCT),
        slow(large_clusters, Metric.EUCLIDEAN),
        slow(directions, Metric.INNER_PRODUCT),
        slow(classes, Metric.INNER_PRODUCT),
    ],
)
@pytest.mark.parametrize("backend", sorted({*indexer_names()} - {"milvus"}))
def test_defaults_find_neighbors_in_small_sets(
    backend: str, data: Callable[[int], Vectors], metric: Metric
) -> None:
    everything = data(3000 + QUERIES)
    queries = everything[3000:]
    for rows in (100, 1000, 3000):
        index = make_indexer(backend, {"metric": metric}).build(everything[:rows])
        found = recall_of(index.search(queries, K), queries, everything[:rows], metric)
        assert found >= 0.95, f"{found:.3f} of {rows} rows"


@pytest.mark.parametrize(
    "backend", [slow(name) if name in ("milvus", "vamana") else name for name in indexer_names()]
)
def test_defaults_find_neighbors_in_ten_thousand_rows(backend: str) -> None:
    everything = directions(10_000 + QUERIES)
    database, queries = everything[:10_000], everything[10_000:]
    index = make_indexer(backend, {"metric": Metric.COSINE}).build(database)
    assert recall_of(index.search(queries, K), queries, database, Metric.COSINE) >= 0.95


@pytest.mark.parametrize("backend", ["exact", "ivf"])
def test_defaults_find_neighbors_by_manhattan_distance(backend: str) -> None:
    everything = directions(5000 + QUERIES)
    database, queries = everything[:5000], everything[5000:]
    index = make_indexer(backend, {"metric": Metric.MANHATTAN}).build(database)
    assert recall_of(index.search(queries, K), queries, database, Metric.MANHATTAN) >= 0.95


def test_easy_rows_keep_the_least_effort_and_hard_ones_raise_it() -> None:
    easy, hard = small_clusters(8000), directions(8000)
    assert Ivf(device="cpu").build(easy).n_probe == 32
    assert Ivf(device="cpu").build(hard).n_probe > 64
    assert settled(IvfPq(), easy).refine == 10
    assert settled(IvfPq(), classes(8000)).refine > 10


def settled(indexer: Any, vectors: Vectors) -> Any:
    assert isinstance(indexer, Settling)
    return indexer.settled(indexer.build(vectors))


def test_options_that_are_given_stay_as_they_are() -> None:
    vectors = directions(2000)
    assert settled(Ivf(n_probe=3, device="cpu"), vectors).n_probe == 3
    chosen = settled(IvfPq(n_probe=3, refine=7), vectors)
    assert (chosen.n_probe, chosen.refine) == (3, 7)
    assert settled(IvfPq(refine=7), vectors).n_probe > 32
    # In too few lists no number of candidates finds more.
    assert settled(IvfPq(n_probe=1), vectors).refine == 10


@pytest.mark.parametrize("backend", ["ivf", "ivfpq"])
def test_what_the_build_chose_is_saved_with_the_index(backend: str, tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "a", directions(4000))]
    facts = build_index(sets, backend, tmp_path / "index", Metric.COSINE)
    chosen = facts.options["n_probe"]
    assert isinstance(chosen, int) and chosen > 32
    plain: Any = make_indexer(backend, {"metric": Metric.COSINE})
    assert plain.settled(plain.load(tmp_path / "index")).n_probe == chosen
    fewer = open_index(tmp_path / "index", {"n_probe": "2"})
    assert fewer.facts.options["n_probe"] == 2
    own = open_index(tmp_path / "index", {"n_probe": "auto"})
    assert plain.settled(own.index).n_probe == chosen


def test_n_probe_must_be_a_number_or_auto(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="option n_probe cannot be 'many'; give it a whole number"):
        make_indexer("ivf", {"n_probe": "many"})


@dataclass
class Found:
    """An index that finds the given rows for every query."""

    found: NDArray[np.int64]
    rows: int
    dim: int = 1
    details: MappingProxyType[str, Json] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        return self.rows

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        rows = np.tile(self.found[:k], (len(queries), 1))
        return Hits(rows, np.zeros(rows.shape, np.float32))

    def save(self, folder: Path) -> None:
        raise AssertionError("is not saved")


def test_measured_recall_of_rows_on_a_line() -> None:
    """12 rows at 0, 1, … 11: each has 11 others, of which 10 are its neighbors.

    The rows found are the same for all: 0 to 10, less the query itself, or less row 10 for
    row 11. The one neighbor that is missed is that row 11 of the queries 1 to 10 is never among
    their neighbors but for 6 to 10, which miss row 11 and find row 0 in its place.
    """
    line = np.arange(12, dtype=np.float32)[:, None]
    index = Found(np.arange(11), 12)
    expected = []
    for row in range(12):
        near = np.sort(np.delete(np.abs(line[:, 0] - row), row))[:10].max()
        hits = [r for r in range(11) if r != row][:10]
        expected.append(np.mean([abs(r - row) <= near * 1.001 for r in hits]))
    assert 0.9 < np.mean(expected) < 1
    measured = measured_recall(index, InMemory(line), Metric.EUCLIDEAN)
    assert measured == pytest.approx(np.mean(expected))


def test_rows_that_are_not_found_count_as_missed() -> None:
    line = np.arange(40, dtype=np.float32)[:, None]
    nothing = Found(np.full(11, -1), 40)
    assert measured_recall(nothing, InMemory(line), Metric.EUCLIDEAN) == 0


@pytest.mark.parametrize("noise", [0, 1e-6])
def test_many_copies_do_not_hide_that_other_rows_are_missed(noise: float) -> None:
    """The index finds the copies of one vector alone, and no neighbor of another row."""
    draw = np.random.default_rng(6)
    vectors = draw.standard_normal((2500, 20))
    vectors[:2000] = vectors[0]
    vectors *= 1 + noise * draw.uniform(-1, 1, vectors.shape)
    index = Found(np.arange(11), 2500)
    blocks = InMemory(vectors.astype(np.float32))
    assert measured_recall(index, blocks, Metric.INNER_PRODUCT) < 0.5
    assert measured_recall(index, blocks, Metric.EUCLIDEAN) < 0.05


@pytest.mark.parametrize("rows", [1, 2, 5, 11])
@pytest.mark.parametrize("metric", [*Metric])
def test_measured_recall_of_few_rows_and_of_copies_is_one(rows: int, metric: Metric) -> None:
    vectors = np.random.default_rng(rows).standard_normal((rows, 6), dtype=np.float32)
    for each in (vectors, np.ones((rows, 6), np.float32), np.repeat(vectors, 40, axis=0)):
        index = make_indexer("exact", {"metric": metric}).build(each)
        assert measured_recall(index, InMemory(each), metric) == 1.0


def test_measured_recall_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = directions(3000)
    index = Ivf(Metric.EUCLIDEAN, n_probe=4, device="cpu").build(vectors)
    whole = measured_recall(index, InMemory(vectors), Metric.EUCLIDEAN)
    monkeypatch.setattr(measuring, "COMPARED_ROWS", 700)
    assert measured_recall(index, InMemory(vectors), Metric.EUCLIDEAN) == whole
    in_parts = Fetched(3000, 128, lambda rows: vectors[rows])
    assert measured_recall(index, in_parts, Metric.EUCLIDEAN) == whole
    own = np.random.default_rng(0).permutation(3000)[: measuring.QUERIES]
    hits = index.search(vectors[own], K + 1).rows
    without = np.stack([line[line != row][:K] for line, row in zip(hits, own, strict=True)])
    others = distances(vectors[own], vectors, Metric.EUCLIDEAN)
    others[np.arange(len(own)), own] = np.inf
    farthest = np.sort(others, axis=1)[:, K - 1, None]
    found = np.take_along_axis(others, without, axis=1) <= 1.001 * farthest
    assert whole == pytest.approx(found.mean()) and 0.1 < whole < 0.8


@pytest.mark.parametrize("backend", indexer_names())
def test_every_build_measures_its_recall(backend: str, tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "a", small_clusters(600), shard_rows=250)]
    facts = build_index(sets, backend, tmp_path / "index", Metric.COSINE)
    measured = facts.details[RECALL]
    assert isinstance(measured, float) and 0.95 <= measured <= 1
    assert facts.poor_recall is None
    assert facts == IndexFacts.read(tmp_path / "index")


@pytest.mark.parametrize(
    ("backend", "options", "efforts"),
    [
        ("ivf", {"n_probe": 1}, ["n_probe"]),
        ("ivfpq", {"n_probe": 1}, ["n_probe", "refine"]),
        ("hnsw-pca", {"m": 2, "ef_construction": 1, "ef": 1}, ["ef"]),
        ("faiss", {"factory": "PQ2x4"}, []),
        ("faiss", {"factory": "IVF64,Flat", "search": "nprobe=1"}, ["search"]),
    ],
)
def test_a_poor_build_says_so_and_what_to_raise(
    backend: str, options: dict[str, object], efforts: list[str], tmp_path: Path
) -> None:
    sets = [embeddings(tmp_path / "a", directions(3000))]
    facts = build_index(sets, backend, tmp_path / "index", Metric.COSINE, options)
    assert facts.poor_recall is not None and facts.poor_recall < GOOD_RECALL
    assert facts.efforts == efforts


@pytest.mark.parametrize("backend", ["exact", "ivf", "hnsw", "hnsw-pca", "ivfpq", "faiss"])
def test_added_rows_are_measured_with_those_before(backend: str, tmp_path: Path) -> None:
    vectors = small_clusters(900)
    vectors[10:15] = vectors[5]
    vectors[700:720] = vectors[:20]
    folder = tmp_path / "index"
    build_index([embeddings(tmp_path / "a", vectors[:600])], backend, folder, Metric.COSINE)
    facts = add_rows(folder, [embeddings(tmp_path / "b", vectors[600:])])
    index = open_index(folder).index
    assert isinstance(index, Readable)
    blocks = index.stored()
    assert blocks is not None and (blocks.rows, blocks.dim) == (900, 128)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(np.concatenate([*blocks]), units, atol=1e-6)
    recall = measured_recall(index, InMemory(vectors), Metric.COSINE)
    assert facts.details[RECALL] == pytest.approx(recall, abs=1e-3) and recall > 0.95


def test_rows_added_elsewhere_than_the_lists_are_warned_of(tmp_path: Path) -> None:
    """Lists of one cluster, and then many rows of other clusters, which all go to few lists."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((4000, 16), dtype=np.float32)
    folder = tmp_path / "index"
    sets = [embeddings(tmp_path / "a", first)]
    options = {"n_lists": 100, "n_probe": 2}
    assert build_index(sets, "ivf", folder, Metric.EUCLIDEAN, options).poor_recall is not None
    facts = add_rows(folder, [embeddings(tmp_path / "b", first[:3000] / 100)])
    assert facts.details[RECALL] == facts.poor_recall


def test_deleting_rows_measures_what_is_left(tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "a", directions(3000))]
    build_index(sets, "ivf", tmp_path / "index", Metric.COSINE, {"n_probe": 1})
    facts = delete_rows(tmp_path / "index", "label=odd")
    assert facts.rows == 1500 and facts.poor_recall is not None


def test_an_index_of_codes_alone_is_not_measured_after_rows_were_added(tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "a", directions(500))]
    options = {"factory": "SQ8"}
    assert RECALL in build_index(sets, "faiss", tmp_path / "i", options=options).details
    facts = add_rows(tmp_path / "i", [embeddings(tmp_path / "b", directions(100))])
    assert RECALL not in facts.details


def test_parts_choose_for_themselves_and_tell_the_worst_recall(tmp_path: Path) -> None:
    vectors = np.concatenate([directions(6000), small_clusters(3000)])
    sets = [embeddings(tmp_path / "a", vectors, shard_rows=3000)]

    def in_turn(build: Any, tasks: Any) -> Any:
        return ((number, build(task)) for number, task in enumerate(tasks))

    whole = build_segments(sets, "ivf", tmp_path / "i", 3, Metric.COSINE, engine=in_turn)
    parts = [IndexFacts.read(tmp_path / "i" / part.folder) for part in whole.parts]
    probes = [part.options["n_probe"] for part in parts]
    assert len({*probes}) > 1
    assert whole.options["n_probe"] == max(probes)  # type: ignore[type-var]
    assert whole.details[RECALL] == min(part.details[RECALL] for part in parts)  # type: ignore[type-var]
    opened: Any = open_index(tmp_path / "i").index
    assert [part.n_probe for part in opened.parts] == probes
    grown = add_rows(tmp_path / "i", [embeddings(tmp_path / "b", directions(300))])
    assert grown.details[RECALL] == min(
        IndexFacts.read(tmp_path / "i" / part.folder).details[RECALL] for part in grown.parts
    )  # type: ignore[type-var]


def unlike_lengths(rows: int) -> Vectors:
    """Return clusters in 64 dimensions whose vectors differ in length by orders of magnitude."""
    draw = np.random.default_rng(0)
    centers = draw.standard_normal((20, 64)) * draw.lognormal(0, 1, (20, 1))
    apart = 0.3 * draw.standard_normal((rows, 64)) * draw.lognormal(0, 1, (rows, 1))
    return (centers[draw.integers(0, 20, rows)] + apart).astype(np.float32)


@pytest.mark.parametrize("backend", ["hnsw", "hnsw-pca", "vamana"])
def test_graphs_keep_more_candidates_where_queries_need_them(backend: str, tmp_path: Path) -> None:
    vectors = unlike_lengths(3300)
    database, queries = vectors[:3000], vectors[3000:]
    indexer = make_indexer(backend, {"metric": Metric.INNER_PRODUCT})
    index = indexer.build(database)
    true = make_indexer("exact", {"metric": Metric.INNER_PRODUCT}).build(database)
    farthest = true.search(queries, 10).distances[:, -1:]
    found = index.search(queries, 10).distances
    assert (found <= farthest + 1e-5 * np.abs(farthest)).mean() >= 0.95
    if backend != "vamana":  # whose 128 are enough
        assert settled(indexer, database).ef > 128
    assert settled(indexer, small_clusters(1000)).ef == 128
    assert settled(replace(indexer, ef=20), database).ef == 20  # type: ignore[type-var]
    sets = [embeddings(tmp_path / "a", database)]
    facts = build_index(sets, backend, tmp_path / "i", "inner_product")
    assert facts.options["ef"] in (128, 256, 512, 1024)
