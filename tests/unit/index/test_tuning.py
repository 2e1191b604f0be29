"""The choice of an index: what it reaches, what it is chosen by, and what it leaves alone."""

import re
import time
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
from retrieval.index.auto import halving, measuring, trials, tuning
from retrieval.index.auto.budget import Budget
from retrieval.index.auto.trials import Target, Trial, Tried
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
    monkeypatch.setattr(halving, "FIRST_ROWS", 500)
    monkeypatch.setattr(measuring, "SINGLE_QUERIES", 20)

    def candidates(
        metric: Metric, rows: int, dim: int, seed: int, lacks_memory: bool
    ) -> list[tuple[str, Tunable]]:
        hnsw, ivf = Hnsw(metric, m=4, seed=seed), Ivf(metric, n_lists=50, seed=seed)
        return [("exact", Exact(metric)), ("hnsw", hnsw), ("ivf", ivf)]

    monkeypatch.setattr(halving, "candidates_of", candidates)
    return embeddings(tmp_path / "database", vectors(ROWS, 1))


def keep_only(monkeypatch: pytest.MonkeyPatch, *backends: str) -> None:
    every = halving.candidates_of
    monkeypatch.setattr(
        halving,
        "candidates_of",
        lambda *given: [each for each in every(*given) if each[0] in backends],
    )


def set_times(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Let queries of each backend take these seconds."""
    timed = measuring.Stage.timed
    kinds = {"ExactIndex": "exact", "HnswIndex": "hnsw", "IvfIndex": "ivf"}

    def slow(stage: Any, index: Any, batches: bool) -> tuple[float, float]:
        timed(stage, index, batches)
        return (seconds[kinds[type(index).__name__]],) * 2

    monkeypatch.setattr(measuring.Stage, "timed", slow)


def trial_of(backend: str, seconds: float, recall: float = 0.96, build: float = 1.0) -> Trial:
    return Trial(
        backend, {}, {}, 1000, recall, seconds, seconds, 10, build, seconds, 100.0, 10 * build
    )


def tried_of(backend: str, seconds: float, recall: float = 0.96, build: float = 1.0) -> Tried:
    trial = trial_of(backend, seconds, recall, build)
    return Tried(backend, Exact(), Exact(), trial, Path(), seconds)


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
    keep_only(monkeypatch, "ivf")
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
    set_times(monkeypatch, seconds)
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
    tried = measuring.Stage.tried

    def strict(stage: Any, backend: str, *given: Any) -> Any:
        found = tried(stage, backend, *given)
        if backend == "exact" or not stage.is_whole:
            return found
        return replace(found, trial=replace(found.trial, verdict="recall@10 0.5"))

    monkeypatch.setattr(measuring.Stage, "tried", strict)
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
        (Target(max_latency=1e-9), r"1e-06 ms at most; the best over 500 rows was \w+ "),
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
    tried = measuring.Stage.tried

    def failing(*given: Any) -> Any:
        found = tried(*given)
        return replace(found, trial=replace(found.trial, verdict="too slow"))

    monkeypatch.setattr(measuring.Stage, "tried", failing)
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
    assert [trial.rows for trial in how.checked] == [ROWS] * len(how.checked)
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


def test_the_lowest_rung_that_reaches_the_target(database: Embeddings) -> None:
    _, rows = database.read()
    asked = measuring.TuningQueries.of(rows, None, 0)
    ladder = Ivf(Metric.EUCLIDEAN, n_lists=50).ladders()[0]
    index = ladder[0].build(rows)
    stage = measuring.Stage.of(rows, asked, Metric.EUCLIDEAN, 10, ROWS, None)
    for target in (0.5, 0.9, 1.0):
        recalls = [stage._reach(index, rung, slice(None)).recall for rung in ladder]
        expected = next(i for i, reached in enumerate(recalls) if reached >= target)
        found = stage._lowest(ladder, index, slice(None), target)
        assert (found.rung, found.recall) == (ladder[expected], recalls[expected])
        highest = stage._lowest(ladder[:2], index, slice(None), 1.0)
        assert highest.rung == ladder[1], "where none reaches it, the most thorough"
    given_up = stage._lowest(ladder, index, slice(None), 1.0, patience=0)
    assert given_up.rung == ladder[0], "what takes too long is not tried with more effort"


def test_time_is_continued_by_its_growth() -> None:
    small = trial_of("x", 1e-3)
    large = replace(small, rows=4000, seconds=2e-3)
    assert trials.extrapolated(small, large, 16_000).expected_seconds == pytest.approx(4e-3)
    noisy = replace(large, seconds=1.0)
    assert trials.extrapolated(small, noisy, 8000).expected_seconds == pytest.approx(2.0)
    faster = replace(large, seconds=0.5e-3)
    assert trials.extrapolated(small, faster, 16_000).expected_seconds == pytest.approx(0.5e-3)
    longer = replace(large, build_seconds=4.0)
    assert trials.extrapolated(small, longer, 4000).expected_build == pytest.approx(4.0)
    assert 16 < trials.extrapolated(small, longer, 16_000).expected_build < 20
    wider = replace(large, size_bytes=25)
    assert trials.extrapolated(small, wider, 16_000).expected_bytes == pytest.approx(85)


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


def test_the_better_half_goes_on_without_those_that_are_far_slower() -> None:
    first = [tried_of("a", 1.0 + number / 10) for number in range(5)]
    first += [tried_of("b", 1.5), tried_of("c", 2.4), tried_of("d", 2.6), tried_of("e", 1, 0.9)]
    ranked = trials.ranked_trials(first, Target(0.95))
    assert [each.backend for each in trials.better_half(ranked)] == ["a", "a", "b", "c"]
    assert trials.better_half([]) == []
    some = [tried_of("a", 1.0), tried_of("b", 1.1), tried_of("c", 1.2)]
    assert len(trials.better_half(some)) == 3, "of few, no half"
    assert trials.close_to_best([*first[:5], tried_of("b", 1.31)]) == first[:4]
    other = replace(first[0], trial=replace(first[0].trial, rows=500, expected_seconds=0.5))
    assert trials.close_to_best([*first[:5], other]) == first[:4], "of the same sample"
    assert trials.close_to_best([]) == []


def test_what_a_small_sample_overstates_is_not_given_up() -> None:
    slow, large = tried_of("slow", 1.0), tried_of("large", 1.0)
    slow = replace(slow, trial=replace(slow.trial, latency=1.0, expected_seconds=9.0))
    large = replace(large, trial=replace(large.trial, expected_bytes=240.0))
    huge = replace(large, trial=replace(large.trial, expected_bytes=260.0))
    target = Target(0.95, max_memory=100.0, max_latency=2.0)
    assert trials.ranked_trials([slow, large, huge], target) == []
    assert trials.hopeful_trials([slow, large, huge], target) == [large, slow]
    assert trials.hopeful_trials([slow], replace(target, max_latency=0.5)) == []
    fitting = tried_of("fitting", 1.5)
    assert trials.hopeful_trials([large, fitting], target) == [fitting, large]


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (5000, [2500]),
        (9000, [4000]),
        (60_000, [4000, 16_000]),
        (1_000_000, [4000, 16_000, 64_000]),
    ],
)
def test_samples_grow_up_to_half_of_the_rows(rows: int, sizes: list[int]) -> None:
    assert [*halving.sample_sizes(rows)] == sizes


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Press Ctrl+C in the trial of this number."""
    tried = measuring.Stage.tried
    calls = iter(range(100))

    def pressed(*given: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return tried(*given)

    monkeypatch.setattr(measuring.Stage, "tried", pressed)


def test_ctrl_c_ends_the_trials_and_the_best_so_far_is_built(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_times(monkeypatch, {"exact": 1.1e-3, "hnsw": 1e-3, "ivf": 2e-3})
    interrupt(monkeypatch, at=2)
    facts, how = build_best([database], tmp_path / "index", Target(0.9))
    assert facts.backend == "hnsw"
    assert [trial.backend for trial in how.checked] == ["hnsw"], "without a comparison"
    assert [trial.backend for trial in how.trials] == ["exact", "hnsw"]
    assert re.search(r"trials ended after \d+ s by Ctrl\+C$", how.reason)


def test_ctrl_c_before_any_result_leaves_nothing(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, at=0)
    with pytest.raises(KeyboardInterrupt):
        build_best([database], tmp_path / "index", Target(0.9))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("press", [0, 1])
def test_ctrl_c_over_all_rows_keeps_what_is_built(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, press: int
) -> None:
    set_times(monkeypatch, {"exact": 3e-3, "hnsw": 1e-3, "ivf": 1.2e-3})
    interrupt(monkeypatch, at=3 + press)  # after a sample of three candidates
    if press == 0:
        with pytest.raises(KeyboardInterrupt):
            build_best([database], tmp_path / "index", Target(0.9))
        assert not (tmp_path / "index").exists()
        return
    facts, how = build_best([database], tmp_path / "index", Target(0.9))
    assert (facts.backend, [trial.backend for trial in how.checked]) == ("hnsw", ["hnsw"])


def test_ctrl_c_in_the_comparison_keeps_what_is_built(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_times(monkeypatch, {"exact": 3e-3, "hnsw": 1e-3, "ivf": 1.2e-3})
    timed = measuring.Stage.timed
    over_all: list[object] = []

    def pressed(stage: Any, *given: Any) -> Any:
        over_all.extend([None] * stage.is_whole)
        if len(over_all) == 3:  # two builds are timed before
            raise KeyboardInterrupt
        return timed(stage, *given)

    monkeypatch.setattr(measuring.Stage, "timed", pressed)
    facts, how = build_best([database], tmp_path / "index", Target(0.9))
    assert facts.backend == "hnsw"
    assert [trial.backend for trial in how.checked] == ["ivf", "hnsw"]


def slow_builds(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Let builds of all rows take these seconds, as far as trials can tell."""
    tried = measuring.Stage.tried

    def slow(stage: Any, backend: str, *given: Any) -> Any:
        found = tried(stage, backend, *given)
        build = seconds[backend] * len(stage.vectors) / ROWS
        trial = replace(found.trial, build_seconds=build, expected_build=seconds[backend])
        return replace(found, trial=trial)

    monkeypatch.setattr(measuring.Stage, "tried", slow)


def test_what_takes_longer_than_the_budget_is_not_built(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_times(monkeypatch, {"exact": 3e-3, "hnsw": 1e-3, "ivf": 2e-3})
    slow_builds(monkeypatch, {"exact": 0.0, "hnsw": 500.0, "ivf": 30.0})
    facts, how = build_best([database], tmp_path / "index", Target(0.9), budget=100)
    assert (facts.backend, how.budget) == ("ivf", 100)
    assert {trial.backend for trial in how.checked} == {"ivf"}
    assert "hnsw m=4" in how.reason and "may be faster, but would take 8 min" in how.reason
    facts, how = build_best([database], tmp_path / "index", Target(0.9))
    assert (facts.backend, how.budget) == ("hnsw", None), "without a budget, the fastest"
    keep_only(monkeypatch, "hnsw", "ivf")
    facts, _ = build_best([database], tmp_path / "index", Target(0.9), budget=10)
    assert facts.backend == "ivf", "where nothing can be built in time, what is built soonest"
    facts, how = build_best([database], tmp_path / "index", Target(0.9), budget=1e-9)
    assert len(how.trials) == 1
    assert "trials ended after 0 s" in how.reason
    with pytest.raises(BadInput, match="budget is 0 s; give a time above 0"):
        build_best([database], tmp_path / "index", Target(0.9), budget=0)


@pytest.mark.parametrize(("budget", "built"), [(100, ["hnsw"]), (200, ["ivf", "hnsw"])])
def test_a_rival_is_built_only_in_the_time_that_is_left(
    database: Embeddings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: float,
    built: list[str],
) -> None:
    set_times(monkeypatch, {"exact": 3e-3, "hnsw": 1e-3, "ivf": 1.2e-3})
    slow_builds(monkeypatch, {"exact": 0.0, "hnsw": 80.0, "ivf": 60.0})
    tried = measuring.Stage.tried

    def spend(stage: Any, *given: Any) -> Any:
        found = tried(stage, *given)
        if stage.is_whole:
            clocks[-1].began -= found.trial.expected_build
        return found

    clocks: list[Budget] = []
    monkeypatch.setattr(
        tuning, "Budget", lambda *given: clocks.append(Budget(*given)) or clocks[-1]
    )
    monkeypatch.setattr(measuring.Stage, "tried", spend)
    _, how = build_best([database], tmp_path / "index", Target(0.9), budget=budget)
    assert [trial.backend for trial in how.checked] == built


def test_rounds_over_growing_samples(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halving, "FIRST_ROWS", 300)
    monkeypatch.setattr(trials, "MIN_KEPT", 2)
    set_times(monkeypatch, {"exact": 1e-3, "hnsw": 1e-3, "ivf": 1.2e-3})
    tried = measuring.Stage.tried

    def missing(stage: Any, backend: str, *given: Any) -> Any:
        found = tried(stage, backend, *given)
        if backend == "ivf" and len(stage.vectors) == 1200:
            return replace(found, trial=replace(found.trial, recall=0.5))
        return found

    monkeypatch.setattr(measuring.Stage, "tried", missing)
    _, how = build_best([database], tmp_path / "index", Target(0.9))
    rows = [(trial.backend, trial.rows) for trial in how.trials]
    # Exact search is expected to take ten times as long over ten times the rows.
    assert rows[:3] == [("exact", 300), ("hnsw", 300), ("ivf", 300)]
    assert sorted(rows[3:]) == [("hnsw", 1200), ("ivf", 1200)]
    assert [trial.backend for trial in how.checked] == ["hnsw"]

    def broken(stage: Any, backend: str, *given: Any) -> Any:
        if backend == "hnsw" and len(stage.vectors) == 1200:
            raise MemoryError("no room")
        return tried(stage, backend, *given)

    monkeypatch.setattr(measuring.Stage, "tried", broken)
    facts, how = build_best([database], tmp_path / "other", Target(0.9))
    assert facts.backend == "ivf", "what failed over more rows is not built"
    assert how.failed == ["hnsw m=4: no room"]


def test_a_longer_build_must_promise_more() -> None:
    budget = Budget(None, needed=100)
    assert budget.allows(100)
    assert not budget.allows(200)
    assert not budget.is_spent()
    budget.began -= 20
    assert budget.is_spent()
    assert budget.notes == ["trials ended after 20 s to leave time for the build"]
    assert Budget(None, needed=5).left > 55


def test_options_of_a_backend_that_is_far_too_slow_are_not_tried(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def candidates(metric: Metric, *given: object) -> list[tuple[str, Tunable]]:
        lists = [("ivf", Ivf(metric, n_lists=n_lists)) for n_lists in (50, 40)]
        return [("hnsw", Hnsw(metric, m=4)), *lists]

    monkeypatch.setattr(halving, "candidates_of", candidates)
    seconds = {"hnsw": 1e-3, "ivf": 3e-3}
    set_times(monkeypatch, seconds)
    _, how = build_best([database], tmp_path / "index", Target(0.9))
    assert [trial.backend for trial in how.trials if trial.rows == 500] == ["hnsw", "ivf"]
    seconds["ivf"] = 2e-3
    _, how = build_best([database], tmp_path / "index", Target(0.9))
    assert [trial.backend for trial in how.trials if trial.rows == 500] == ["hnsw", "ivf", "ivf"]


def test_a_smaller_index_is_tried_where_memory_is_short() -> None:
    def backends(lacks_memory: bool) -> set[str]:
        found = halving.candidates_of(Metric.COSINE, 10_000, 24, 0, lacks_memory)
        return {backend for backend, _ in found}

    assert backends(True) - backends(False) == {"faiss"}
    first, *_ = halving.candidates_of(Metric.COSINE, 10_000, 24, 0, False)
    assert first == ("exact", Exact(Metric.COSINE))


def test_compilation_is_no_part_of_a_build_s_time(
    database: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba import njit

    from retrieval.runtime.numba import compile_seconds

    @njit
    def function(number):  # type: ignore[no-untyped-def]
        return number + 1

    before = compile_seconds()
    build = Hnsw.build

    def compiling(*given: Any) -> Any:
        function(1)
        return build(*given)

    monkeypatch.setattr(Hnsw, "build", compiling)
    _, rows = database.read()
    asked = measuring.TuningQueries.of(rows, None, 0)
    stage = measuring.Stage.of(rows, asked, Metric.EUCLIDEAN, 10, 100, np.random.default_rng(0))
    began = time.perf_counter()
    found = stage.tried("hnsw", Hnsw(Metric.EUCLIDEAN, m=4), tmp_path, Target(0.9))
    spent = time.perf_counter() - began
    assert 0 < compile_seconds() - before < spent
    assert found.trial.build_seconds <= spent - (compile_seconds() - before)


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


def test_only_the_best_of_the_same_sample_makes_a_candidate_hopeless(
    database: Embeddings, tmp_path: Path
) -> None:
    _, rows = database.read()
    asked = measuring.TuningQueries.of(rows, None, 0)
    run = halving.Trials(
        rows, asked, Metric.EUCLIDEAN, Target(), tmp_path, Budget(), lambda _: None
    )
    small = run.stage(1000, np.random.default_rng(0))
    assert run._patience(small) == float("inf")
    run.best = tried_of("a", 2.0)  # over 1,000 rows
    assert run._patience(small) == 8.0
    assert run._patience(run.stage(500, np.random.default_rng(0))) == float("inf")
    assert run._patience(run.stage(ROWS, None)) == float("inf")
