"""The choice of an index: what it reaches, what it is chosen by, and what it leaves alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexers.exact import Exact
from indexers.hnsw import Hnsw
from indexers.ivf import Ivf
from retrieval.contracts import Metric, Tunable, Vectors
from retrieval.errors import BadInput, Busy, Mismatch
from retrieval.index.auto import measuring, sampling, trials, tuning
from retrieval.index.auto.trials import Target, Trial
from retrieval.index.auto.tuning import build_best
from retrieval.index.build import build_index
from retrieval.index.folder import open_index
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import distances_of, nearest
from retrieval.registry import indexer_plugin
from retrieval.storage.files import locked
from retrieval.storage.sets.embeddings import Embeddings
from tests.made import OTHER, embeddings

ROWS, DIM = 3000, 16
OWN = ("exact", "ivf", "hnsw", "hnsw-pca", "ivfpq", "faiss")


def vectors(rows: int, seed: int) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Embeddings:
    """Embeddings that are not few, and candidates that are built soon."""
    monkeypatch.setattr(tuning, "EXACT_MAX_NUMBERS", 0)
    monkeypatch.setattr(sampling, "MIN_FIRST_SAMPLE_ROWS", 500)
    monkeypatch.setattr(measuring, "SINGLE_QUERIES", 20)

    def candidates(metric: Metric, rows: int, dim: int, seed: int) -> Iterator[tuple[str, Tunable]]:
        yield "exact", Exact(metric)
        yield "hnsw", Hnsw(metric, m=4, seed=seed)
        yield "ivf", Ivf(metric, n_lists=50, seed=seed)

    monkeypatch.setattr(sampling, "_candidates", candidates)
    return embeddings(tmp_path / "database", vectors(ROWS, 1))


def recall(folder: Path, options: dict[str, Any] | None = None) -> float:
    """Return the recall of the index in the folder, for new queries, by distance."""
    database, queries = vectors(ROWS, 1), vectors(500, 9)
    true = nearest(queries, database, Metric.EUCLIDEAN, 10)
    hits = open_index(folder, options).index.search(queries, 10)
    found = distances_of(queries, database, hits.rows, Metric.EUCLIDEAN)
    return float(index_recall_at(found, true.distances.astype(np.float64), 10).mean())


@pytest.mark.parametrize("target", [0.8, 0.95, 0.999])
def test_the_index_reaches_the_target_and_not_much_more(
    database: Embeddings, tmp_path: Path, target: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Exact search is the fastest there is among so few rows.
    only = sampling._candidates
    monkeypatch.setattr(
        sampling, "_candidates", lambda *given: [each for each in only(*given) if each[0] == "ivf"]
    )
    facts, how = build_best([database], tmp_path / "index", Target(target))
    assert (facts.backend, facts.rows, facts.options["n_lists"]) == ("ivf", ROWS, 50)
    last = how.checked[-1]
    assert last.recall >= target
    assert abs(recall(tmp_path / "index") - last.recall) < 0.03
    assert open_index(tmp_path / "index").facts.options == facts.options == last.options
    n_probe = last.options["n_probe"]
    assert isinstance(n_probe, int)
    if n_probe > 1:
        assert recall(tmp_path / "index", {"n_probe": n_probe // 2}) < target


def test_the_fastest_that_fits_is_built(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"exact": 3e-3, "hnsw": 1e-3, "ivf": 2e-3}
    timed = measuring.Stage.timed
    kinds = {"ExactIndex": "exact", "HnswIndex": "hnsw", "IvfIndex": "ivf"}

    def slow(stage: Any, index: Any, batches: bool) -> tuple[float, float]:
        timed(stage, index, batches)
        return (seconds[kinds[type(index).__name__]],) * 2

    monkeypatch.setattr(measuring.Stage, "timed", slow)
    built = {}
    for name, target in {
        "free": Target(0.9),
        "exactly": Target(1.0),
        "small": Target(0.9, max_memory=250_000),
        "slow": Target(0.9, max_latency=1.5e-3),
    }.items():
        facts, how = build_best([database], tmp_path / name, target)
        built[name] = facts.backend
        assert "the fastest one query at a time" in how.reason
        assert [trial.verdict for trial in how.checked][-1] == ""
    # The graph takes more than the vectors, the lists a little more.
    assert built == {"free": "hnsw", "exactly": "ivf", "small": "ivf", "slow": "hnsw"}
    seconds["hnsw"], seconds["ivf"] = 2.1e-3, 2.0e-3
    facts, _ = build_best([database], tmp_path / "close", Target(0.9))
    assert facts.backend == "ivf", "of what is equally fast, the smallest"


def test_what_fails_over_all_rows_gives_way_to_the_next(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = measuring.Stage.checked

    def strict(stage: Any, backend: str, *given: Any) -> Any:
        trial, chosen = checked(stage, backend, *given)
        return trial if backend == "exact" else replace(trial, verdict="recall@10 0.5"), chosen

    monkeypatch.setattr(measuring.Stage, "checked", strict)
    facts, how = build_best([database], tmp_path / "index", Target(0.9))
    assert facts.backend == "exact"
    assert [trial.backend for trial in how.checked][-1] == "exact"
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [
        ".lock", "index.faiss", "index.json", "rows.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(max_memory=1000), "no index reaches recall@10 of 0.95, 0.001 MB at most; the best"),
        (Target(max_latency=1e-9), r"1e-06 ms at most; the best over 2,700 rows was \w+ \("),
    ],
)
def test_a_target_out_of_reach_says_what_was_best_and_changes_nothing(
    database: Embeddings, tmp_path: Path, target: Target, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        build_best([database], tmp_path / "new", target)
    assert not (tmp_path / "new").exists()
    before = build_index([database], "exact", tmp_path / "old")
    with pytest.raises(BadInput, match=message):
        build_best([database], tmp_path / "old", target)
    assert open_index(tmp_path / "old").facts == before


def test_one_failing_over_all_rows_leaves_no_folder(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = measuring.Stage.checked

    def failing(*given: Any) -> Any:
        trial, chosen = checked(*given)
        return replace(trial, verdict="too slow"), chosen

    monkeypatch.setattr(measuring.Stage, "checked", failing)
    with pytest.raises(BadInput, match="no index reaches"):
        build_best([database], tmp_path / "new", Target(0.9))
    assert not (tmp_path / "new").exists()


def test_few_rows_are_searched_exactly(tmp_path: Path) -> None:
    few = embeddings(tmp_path / "few", vectors(100, 1))
    facts, how = build_best([few], tmp_path / "index", Target())
    assert (facts.backend, how.trials, len(how.checked)) == ("exact", [], 1)
    assert how.reason == "100 rows are few: exact search, without trials"
    assert how.checked[0].recall == 1
    with pytest.raises(BadInput, match=r"no index reaches .* 0.001 MB at most; the best over 100"):
        build_best([few], tmp_path / "small", Target(max_memory=1000))
    one = embeddings(tmp_path / "one", vectors(1, 1))
    assert build_best([one], tmp_path / "index of one", Target())[0].rows == 1


def test_held_out_rows_are_in_no_sample(database: Embeddings) -> None:
    _, rows = database.read()
    asked = measuring.TuningQueries.of(rows, None, seed=0)
    assert asked.rows is not None
    np.testing.assert_array_equal(rows[asked.rows], asked.vectors)
    assert len(asked) == ROWS // 10
    halves = asked.rows[:150].mean(), asked.rows[150:].mean()
    assert abs(halves[0] - halves[1]) < ROWS / 5, "each half is of rows from everywhere"
    draw = np.random.default_rng(0)
    stage = measuring.Stage.of(rows, asked, Metric.EUCLIDEAN, 10, ROWS, draw)
    assert len(stage.vectors) == ROWS - len(asked)
    assert not (stage.vectors[None] == asked.vectors[:, None]).all(axis=2).any()


def test_over_all_rows_a_query_does_not_find_itself(database: Embeddings) -> None:
    _, rows = database.read()
    asked = measuring.TuningQueries.of(rows, None, seed=0)
    stage = measuring.Stage.of(rows, asked, Metric.EUCLIDEAN, 10, ROWS, None)
    assert stage.truth.shape == (len(asked), 10)
    assert (stage.truth > 0).all()
    own = nearest(asked.vectors, rows, Metric.EUCLIDEAN, 11).distances[:, 1:]
    np.testing.assert_allclose(stage.truth, own, rtol=1e-5)


def test_given_queries_are_asked(database: Embeddings, tmp_path: Path) -> None:
    asked = embeddings(tmp_path / "asked", vectors(77, 5))
    _, how = build_best([database], tmp_path / "index", Target(0.9), queries=asked)
    assert (how.queries, how.held_out) == (77, False)
    assert max(trial.rows for trial in how.trials) == ROWS
    with pytest.raises(Mismatch, match="is also the database"):
        build_best([database], tmp_path / "again", Target(0.9), queries=database)
    other = embeddings(tmp_path / "other", vectors(20, 5), OTHER)
    with pytest.raises(Mismatch, match="their distances have no meaning"):
        build_best([database], tmp_path / "again", Target(0.9), queries=other)


def test_draws_follow_from_the_seed(database: Embeddings) -> None:
    _, rows = database.read()
    drawn = []
    for seed in (0, 0, 1):
        asked = measuring.TuningQueries.of(rows, None, seed)
        draw = np.random.default_rng(seed)
        stage = measuring.Stage.of(rows, asked, Metric.EUCLIDEAN, 10, 700, draw)
        drawn.append(np.concatenate([asked.vectors, stage.vectors]))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_the_lowest_rung_that_reaches_the_target(database: Embeddings, tmp_path: Path) -> None:
    _, rows = database.read()
    asked = measuring.TuningQueries.of(rows, None, 0)
    ladder = Ivf(Metric.EUCLIDEAN, n_lists=50).ladders()[0]
    ladder[0].build(rows).save(tmp_path)
    stage = measuring.Stage.of(rows, asked, Metric.EUCLIDEAN, 10, ROWS, None)
    for target in (0.5, 0.9, 1.0):
        recalls = [stage._recall(rung.load(tmp_path), slice(None)) for rung in ladder]
        expected = next(i for i, reached in enumerate(recalls) if reached >= target)
        found, rung = stage._lowest(ladder, tmp_path, slice(None), target, {})
        assert (rung, found) == (ladder[expected], recalls[expected])
        _, highest = stage._lowest(ladder[:2], tmp_path, slice(None), 1.0, {})
        assert highest == ladder[1], "where none reaches it, the most thorough"


def test_time_is_continued_by_its_growth() -> None:
    small = Trial("x", {}, {}, 1000, 1.0, 1e-3, 1e-3, 10, 1.0, 1e-3, 100.0)
    large = replace(small, rows=4000, seconds=2e-3)
    assert trials.extrapolated(small, large, 16_000).expected_seconds == pytest.approx(4e-3)
    noisy = replace(large, seconds=1.0)
    assert trials.extrapolated(small, noisy, 8000).expected_seconds == pytest.approx(2.0)
    faster = replace(large, seconds=0.5e-3)
    assert trials.extrapolated(small, faster, 16_000).expected_seconds == pytest.approx(0.5e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recall": 0.0}, "target recall is 0; give a number above 0"),
        ({"recall": 1.01}, "target recall is 1.01"),
        ({"recall": float("nan")}, "target recall is nan"),
        ({"k": 0}, "k is 0"),
        ({"max_memory": 0.0}, "maximum memory is 0"),
        ({"max_latency": -1.0}, "maximum latency is -1"),
    ],
)
def test_targets_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Target(**given)


def test_a_candidate_that_fails_is_told_and_left_out(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise MemoryError("no room for the graph")

    monkeypatch.setattr(Hnsw, "build", broken)
    facts, how = build_best([database], tmp_path / "index", Target(0.9))
    assert facts.backend in ("exact", "ivf")
    assert how.failed == ["hnsw m=4: no room for the graph"]


def test_another_writer_is_noticed_before_the_work(database: Embeddings, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    with locked(tmp_path / "index"), pytest.raises(Busy):
        build_best([database], tmp_path / "index", Target(0.9), progress=pytest.fail)


def test_several_targets_are_tried_with_one_build_each(
    database: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, rows = database.read()
    builds: list[object] = []
    saved = measuring.Stage._saved

    def counted(stage: Any, candidate: Any, folder: Path) -> float:
        builds.append(candidate)
        return saved(stage, candidate, folder)

    monkeypatch.setattr(measuring.Stage, "_saved", counted)
    low, high = tuning.tried(rows, Metric.EUCLIDEAN, [Target(0.5), Target(0.999)])
    assert {builds.count(each) for each in builds} == {2}, "on the first sample, and the second"
    chosen: Any = dict(low)["ivf"], dict(high)["ivf"]
    assert chosen[0].n_probe < chosen[1].n_probe


def test_finalists_are_not_of_one_backend_and_the_most_thorough_is_among_them() -> None:
    def tried(backend: str, seconds: float, recall: float) -> Any:
        trial = Trial(backend, {}, {}, 1000, recall, seconds, seconds, 10, 1.0, seconds, 100.0)
        return trials.Tried(backend, Exact(), Exact(), trial)

    small = [tried("a", 1.0 + number / 10, 0.96) for number in range(5)]
    small += [tried("b", 5, 0.97), tried("c", 6, 0.98), tried("d", 7, 0.99), tried("e", 9, 1.0)]
    finalists = trials.finalists(small, Target(0.95))
    assert [each.backend for each in finalists] == ["a", "a", "b", "c", "e"]
    assert [each.backend for each in trials.finalists(small, Target(1.0))] == ["e"]


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("dim", [1, 24, 784])
def test_every_backend_s_candidates_are_its_own(metric: Metric, dim: int) -> None:
    some = {name: indexer_plugin(name).candidates(metric, 10_000, dim, 3) for name in OWN}
    with_codes = {"hnsw", "hnsw-pca", "ivfpq", "faiss"}
    assert {name for name in OWN if not some[name]} == (
        with_codes if metric is Metric.MANHATTAN else set()
    )
    for name in OWN:
        for candidate in some[name]:
            assert isinstance(candidate, Tunable)
            assert candidate.metric is metric
            ladders = candidate.ladders()
            for rung in (rung for ladder in ladders for rung in ladder):
                changed = {
                    option
                    for option, value in vars(rung).items()
                    if value != getattr(candidate, option)
                }
                assert changed <= candidate.search_options, "a rung needs another build"
            assert len({rung for ladder in ladders for rung in ladder}) == sum(map(len, ladders))
