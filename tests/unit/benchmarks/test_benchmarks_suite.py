"""The suite as `retr bench` runs it, on few vectors, and its judgement of hits."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from benchmarks.suite import machine
from benchmarks.suite import run as suite
from benchmarks.suite.job import Job, Timing, WorkerResult, hits_file
from benchmarks.suite.judge import Judge, K
from benchmarks.suite.run import Row, SuiteReport, default_backends, run, with_front
from retrieval.contracts import Metric
from retrieval.errors import BadInput, RetrError, UnknownName
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled
from retrieval.quality.metrics import DEFINITIONS
from retrieval.quality.ranking import nearest

GRID = {
    "ivf": [
        {"n_lists": 30, "n_probe": 1},
        {"n_lists": 30, "n_probe": 30},
        {"n_lists": 10, "n_probe": 1},
    ],
    "hnsw": [{"ef": 400}],
}


def items(n: int, prefix: str, seed: int, labels: bool = True) -> Labelled:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, n)
    vectors = np.eye(4, 8)[classes] + rng.standard_normal((n, 8))
    return Labelled(
        vectors.astype(np.float32),
        [f"{prefix}{i}" for i in range(n)],
        [str(c) if labels else None for c in classes],
    )


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def report(told: list[str]) -> SuiteReport:
    return run(
        items(60, "q", 1),
        items(1500, "d", 2),
        Metric.EUCLIDEAN,
        ["exact", "ivf", "hnsw"],
        grid=GRID,
        seed=3,
        progress=told.append,
    )


def test_rows_are_in_the_order_of_backends_and_settings(report: SuiteReport) -> None:
    rows = [(row.backend, row.setting) for row in report.rows]
    # The first two settings of ivf share a build.
    assert rows == [
        ("exact", {}),
        *(("ivf", setting) for setting in GRID["ivf"]),
        ("hnsw", {"ef": 400}),
    ]
    assert [row.options.get("n_probe") for row in report.rows] == [None, 1, 30, 1, None]
    assert [row.options.get("seed") for row in report.rows] == [None, 3, 3, 3, 3]
    first, second, third = report.rows[1:4]
    assert first.build_seconds == second.build_seconds != third.build_seconds


def test_progress_names_each_build(report: SuiteReport, told: list[str]) -> None:
    assert report.rows
    assert told == [
        "true neighbors of 60 queries among 1,500",
        "exact, 1 setting, 1 thread",
        "ivf n_lists=30 seed=3, 2 settings, 1 thread",
        "ivf n_lists=10 seed=3, 1 setting, 1 thread",
        "hnsw seed=3, 1 setting, 1 thread",
    ]


def test_exact_search_loses_nothing_and_approximation_does(report: SuiteReport) -> None:
    exact, few, all_lists, *_ = report.rows
    queries, database = items(60, "q", 1), items(1500, "d", 2)
    map_at = evaluate(queries, database, Metric.EUCLIDEAN, (K,)).map_at
    for row in (exact, all_lists):
        assert row.recall_at == {1: 1, 10: 1, 100: 1}
        assert row.map_at == pytest.approx(map_at)
        assert row.map_loss == pytest.approx(0)
    assert few.recall_at[100] < 0.9
    assert few.map_at is not None
    assert few.map_loss == pytest.approx(map_at[K] - few.map_at[K])
    assert few.map_loss != 0


def test_times_are_consistent(report: SuiteReport) -> None:
    for row in report.rows:
        assert len(row.qps_runs) == 5
        assert row.qps == sorted(row.qps_runs)[2]
        assert [*row.latency_ms] == ["p50", "p95", "p99", "p99.9"]
        assert [*row.latency_ms.values()] == sorted(row.latency_ms.values())
        assert min(row.latency_runs_ms) <= row.latency_ms["p50"] <= max(row.latency_runs_ms)
        assert len(row.latency_runs_ms) == 5
        # The mean is at least half of the median.
        assert row.qps_single <= 2 * 1000 / row.latency_ms["p50"]
        assert row.threads == 1


def test_each_query_is_kept(report: SuiteReport) -> None:
    table = report.by_query
    assert table.num_rows == 60 * len(report.rows)
    for number, row in enumerate(report.rows):
        of_row = table.filter(pc.field("row") == number)
        assert of_row["query"].to_pylist() == [*range(60)]
        for k, mean in row.recall_at.items():
            assert pc.mean(of_row[f"recall_at_{k}"]).as_py() == pytest.approx(mean)
        assert 0 < min(of_row["latency_ms"].to_pylist()) <= row.latency_ms["p95"]


def test_queries_beyond_the_timed_ones_have_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "MAX_SINGLE_QUERIES", 3)
    found = run(items(5, "q", 1), items(120, "d", 2), Metric.COSINE, ["exact"], repeats=1)
    assert found.by_query["latency_ms"].null_count == 2
    assert found.rows[0].latency_runs_ms == [found.rows[0].latency_ms["p50"]]


def test_the_pareto_front(report: SuiteReport) -> None:
    def row(recall: float, qps: float, threads: int = 1) -> Row:
        return replace(report.rows[0], recall_at={10: recall}, qps=qps, threads=threads)

    rows = [row(0.9, 100), row(0.9, 90), row(0.8, 100), row(0.5, 200), row(0.9, 100), row(1, 1)]
    front = [each.pareto for each in with_front([*rows, row(0.1, 500, threads=2)])]
    assert front == [True, False, False, True, True, True, True]
    assert any(each.pareto for each in report.rows)


def test_each_number_of_threads_has_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: [0, 1])
    given: list[int] = []

    def measured(job: Job, folder: Path) -> WorkerResult:
        given.append(job.threads)
        np.save(hits_file(folder, 0), np.zeros((2, K), np.int64))
        return WorkerResult(0.1, 1, None, {}, [Timing({}, [1.0], [[1.0, 2.0]])])

    monkeypatch.setattr(suite, "_measured", measured)
    backends = ["exact", "ivf"]
    queries, database = items(2, "q", 1), items(120, "d", 2)
    found = run(queries, database, Metric.COSINE, backends, grid={}, threads=[2, 1])
    assert [(row.backend, row.threads) for row in found.rows] == [
        ("exact", 2), ("exact", 1), ("ivf", 2), ("ivf", 1),
    ]  # fmt: skip
    assert given == [2, 1, 2, 1]


def test_to_json_is_the_document_of_retr_bench(report: SuiteReport) -> None:
    document: Any = json.loads(json.dumps(report.to_json()))
    assert set(document) == {"machine", "data", "conditions", "rows", "definitions"}
    assert document["data"] == {
        "queries": 60,
        "database": 1500,
        "dim": 8,
        "metric": "euclidean",
    }
    row = document["rows"][1]
    assert {"backend", "options", "qps", "build_seconds", "size_bytes", "memory_bytes"} <= set(row)
    assert list(row["recall_at"]) == ["1", "10", "100"]
    assert list(row["latency_ms"]) == ["p50", "p95", "p99", "p99.9"]
    assert list(row["map_at"]) == ["100"]
    assert document["conditions"]["threads"] == [1]
    assert document["conditions"]["seed"] == 3
    assert document["definitions"]["recall_at"] == DEFINITIONS["index_recall_at"]
    assert document["machine"]["cores"] == len(machine.cores())
    assert document["machine"]["versions"]["numpy"] == np.__version__


def test_hits_are_judged_by_distance() -> None:
    # On a line: true neighbors of 0 are rows 0, 1, 2, …, at distance 1, 2, 3, …
    places = np.arange(1, 301, dtype=np.float32)[:, None]
    database = Labelled(places, [f"d{i}" for i in range(300)], ["a"] * 150 + ["b"] * 150)
    query = Labelled(np.zeros((1, 1), np.float32), ["q"], ["a"])
    judge = Judge.of(query, database, Metric.EUCLIDEAN)
    assert (judge.hits, judge.exact_map) == (100, 1)

    rows = np.concatenate([np.arange(1, 81), np.arange(280, 300)])[None]
    judged = judge.of_hits(rows)
    # The first is not found: of the ten first, 2 … 11, nine are near enough.
    assert {k: recall.tolist() for k, recall in judged.recall_at.items()} == {
        1: [0], 10: [9 / 10], 100: [80 / 100],
    }  # fmt: skip
    # The first 80 have the label.
    assert judged.map_at == pytest.approx({100: 80 / 100})
    assert judged.map_loss == pytest.approx(20 / 100)


def test_a_query_in_the_database_does_not_count_for_its_own_precision() -> None:
    database = items(150, "d", 4)
    judge = Judge.of(database, database, Metric.COSINE)
    assert judge.hits == K + 1
    exact = evaluate(database, database, Metric.COSINE, (K,))
    assert judge.exact_map == pytest.approx(exact.map_at[K])


def test_without_labels_there_is_recall_but_no_precision() -> None:
    database = items(150, "d", 4, labels=False)
    judge = Judge.of(items(5, "q", 5), database, Metric.COSINE)
    hits = nearest(items(5, "q", 5).vectors, database.vectors, Metric.COSINE, K)
    judged = judge.of_hits(hits.rows)
    assert (judged.map_at, judged.map_loss) == (None, None)
    assert all((recall == 1).all() for recall in judged.recall_at.values())


def test_cosines_equal_in_float32_count_as_equal() -> None:
    angles = np.linspace(0, 4e-4, 200)  # 1 - cos is at most 8e-8
    vectors = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    database = Labelled(vectors, [f"d{i}" for i in range(200)], [None] * 200)
    query = Labelled(vectors[:1], ["q"], [None])
    judge = Judge.of(query, database, Metric.COSINE)
    recall_at = judge.of_hits(np.arange(100, 200)[None]).recall_at
    assert all((recall == 1).all() for recall in recall_at.values())


def test_the_worker_is_given_its_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    start = subprocess.run

    def spy(command: list[str], *, env: dict[str, str], **options: Any) -> Any:
        given.extend(env[name] for name in suite.THREAD_VARIABLES)
        return start(command, env=env, **options)

    monkeypatch.setattr(subprocess, "run", spy)
    before = machine.cores()
    run(items(2, "q", 1), items(120, "d", 2), Metric.COSINE, ["exact"], repeats=1)
    assert given == ["1"] * 4
    # The suite itself keeps all its cores.
    assert machine.cores() == before


def test_invalid_runs_are_refused_before_the_first_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suite, "_measured", None)
    queries, database = items(2, "q", 1), items(120, "d", 2)
    with pytest.raises(UnknownName, match="did you mean 'exact'"):
        run(queries, database, Metric.COSINE, ["exakt"])
    with pytest.raises(UnknownName, match="probes"):
        run(queries, database, Metric.COSINE, ["ivf"], grid={"ivf": [{"probes": 1}]})
    with pytest.raises(BadInput, match="manhattan"):
        run(queries, database, Metric.MANHATTAN, ["hnsw"])
    for threads in (0, (os.cpu_count() or 1) + 1):
        with pytest.raises(BadInput, match=f"{threads} threads"):
            run(queries, database, Metric.COSINE, ["exact"], threads=[1, threads])


def test_worker_error_has_the_last_line_of_stderr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = subprocess.run

    def broken(command: list[str], **options: Any) -> Any:
        return start([*command[:-1], "/nowhere"], **options)

    monkeypatch.setattr(subprocess, "run", broken)
    with pytest.raises(RetrError, match=r"backend exact failed: .*/nowhere/job.json"):
        run(items(2, "q", 1), items(120, "d", 2), Metric.COSINE, ["exact"])


def test_default_backends_are_those_that_have_the_metric() -> None:
    assert default_backends(Metric.MANHATTAN) == ["exact", "ivf"]
    assert default_backends(Metric.COSINE) == ["exact", "ivf", "hnsw", "hnsw-pca", "ivfpq"]
