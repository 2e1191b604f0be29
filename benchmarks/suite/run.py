"""The suite: recall, speed, size and lost mAP of each backend, on the same vectors.

Each index is built and timed in a process of its own (`benchmarks.suite.worker`). Its quality is
computed here, against true neighbors in double precision.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import pyarrow as pa

from benchmarks.suite import machine
from benchmarks.suite.grid import Grid, Setting, named, read_grid
from benchmarks.suite.job import Job, Timing, WorkerResult, hits_file
from benchmarks.suite.judge import HitQuality, Judge, K
from retrieval.choices import choice
from retrieval.contracts import Indexer, Json, Metric
from retrieval.errors import BadInput, RetrError
from retrieval.quality.labelled import Labelled
from retrieval.quality.metrics import DEFINITIONS
from retrieval.quality.ranking import Rows
from retrieval.registry import make_indexer
from retrieval.runtime.threads import THREAD_VARIABLES

MAX_SINGLE_QUERIES = 1000  # queries that are timed one at a time
REPEATS = 5  # repetitions of single queries, and of all queries in one call
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}

DEFAULT_BACKENDS = ("exact", "ivf", "hnsw", "hnsw-pca", "ivfpq")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One backend with one setting.

    setting: the options that the grid names; options: all options.
    recall_at: recall of the index, by distance. map_at, map_loss: None without labels.
    qps: queries per second with all queries in one call, the median of `qps_runs`. qps_single:
    queries per second one at a time. latency_ms: percentiles of single queries; latency_runs_ms:
    the median of each repetition. All searches are for the 100 nearest.
    size_bytes: on disk. memory_bytes: growth of resident memory in the build.
    pareto: whether the row is on the Pareto front of recall@10 and `qps` among the rows with the
    same number of threads.
    """

    backend: str
    setting: dict[str, Json]
    options: dict[str, Json]
    details: dict[str, Json]
    threads: int
    recall_at: dict[int, float]
    map_at: dict[int, float] | None
    map_loss: float | None
    qps: float
    qps_runs: list[float]
    qps_single: float
    latency_ms: dict[str, float]
    latency_runs_ms: list[float]
    build_seconds: float
    size_bytes: int
    memory_bytes: int | None
    pareto: bool = False

    def to_json(self) -> dict[str, Json]:
        """Return the document of `retr bench --json`."""
        return asdict(self) | {
            "recall_at": _by_k(self.recall_at),
            "map_at": None if self.map_at is None else _by_k(self.map_at),
        }


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """All rows, and the conditions of the measurement.

    by_query: a table with a line for each query of each row: `row` and `query`, counted from 0;
    `latency_ms`, the median, null for queries that were not timed alone; `recall_at_1`, `_10` and
    `_100`.
    """

    machine: dict[str, Json]
    data: dict[str, Json]
    conditions: dict[str, Json]
    rows: list[Row]
    by_query: pa.Table

    def to_json(self) -> dict[str, Json]:
        """Return the document of `retr bench --json`."""
        return {
            "machine": self.machine,
            "data": self.data,
            "conditions": self.conditions,
            "rows": [row.to_json() for row in self.rows],
            "definitions": {
                "recall_at": DEFINITIONS["index_recall_at"],
                "map_at": DEFINITIONS["map_at"],
                "map_loss": DEFINITIONS["map_loss"],
            },
        }


def run(
    queries: Labelled,
    database: Labelled,
    metric: Metric | str,
    backends: Sequence[str],
    *,
    grid: Grid | None = None,
    threads: Sequence[int] = (1,),
    seed: int = 0,
    repeats: int = REPEATS,
    neighbors: Rows | None = None,
    progress: Progress = lambda _: None,
) -> SuiteReport:
    """Measure each backend with each setting of the grid, in this order.

    grid: None for `grids/quick.toml`. threads: numbers of threads for build and search, measured
    in turn. seed: for backends with that option, unless the grid sets it. neighbors: (q, k), the
    true ones if they are known. progress: called with the name of each measurement to come.

    Raises UnknownName for a backend or an option, BadInput for a value that it cannot take or
    more threads than cores, RetrError if a measurement fails.
    """
    metric = choice(Metric, metric)
    _check_counts(threads, repeats)
    plans = _plans(backends, read_grid() if grid is None else grid, metric, seed)

    progress(f"true neighbors of {len(queries):,} queries among {len(database):,}")
    judge = Judge.of(queries, database, metric, neighbors)
    rows: list[Row] = []
    by_query: list[pa.Table] = []
    with TemporaryDirectory(prefix="retr-bench-") as temporary:
        folder = Path(temporary)
        for name, items in (("queries", queries), ("database", database)):
            np.save(_vectors_file(folder, name), np.ascontiguousarray(items.vectors, np.float32))
        for number, (plan, n_threads) in enumerate(product(plans, threads)):
            progress(plan.title(n_threads))
            work = folder / str(number)
            work.mkdir()
            result = _measured(_job(plan, metric, folder, n_threads, judge.hits, repeats), work)
            for i, timing in enumerate(result.timings):
                found: Rows = np.load(hits_file(work, i), allow_pickle=False)
                judged = judge.of_hits(found)
                by_query.append(_by_query(len(rows), timing, judged))
                rows.append(_row(plan, i, result, timing, n_threads, judged))
    return SuiteReport(
        machine=machine.describe(),
        data={
            "queries": len(queries),
            "database": len(database),
            "dim": int(database.vectors.shape[1]),
            "metric": metric.value,
        },
        conditions=_conditions(len(queries), threads, seed, repeats, judge.exact_map),
        rows=with_front(rows),
        by_query=pa.concat_tables(by_query),
    )


def _check_counts(threads: Sequence[int], repeats: int) -> None:
    available = len(machine.cores())
    for number in threads:
        if not 1 <= number <= available:
            raise BadInput(f"{number} threads on {available} cores; give from 1 to {available}")
    if repeats < 1:
        raise BadInput(f"repeats is {repeats}; give at least 1")


def _conditions(
    queries: int, threads: Sequence[int], seed: int, repeats: int, exact_map: float | None
) -> dict[str, Json]:
    return {
        "k": K,
        "threads": list(threads),
        "pinned": hasattr(os, "sched_setaffinity"),
        "seed": seed,
        "repeats": repeats,
        "single_queries": min(MAX_SINGLE_QUERIES, queries),
        f"map_at_{K}_exact": exact_map,
    }


def default_backends(metric: Metric | str) -> list[str]:
    """Return those of `DEFAULT_BACKENDS` that have the metric."""
    metric = choice(Metric, metric)

    def has_it(backend: str) -> bool:
        try:
            make_indexer(backend, {"metric": metric})
        except BadInput:
            return False
        return True

    return [backend for backend in DEFAULT_BACKENDS if has_it(backend)]


def with_front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with `pareto` set, by recall@10 and queries per second."""

    def beaten(row: Row) -> bool:
        mine = (row.recall_at[10], row.qps)
        others = ((o.recall_at[10], o.qps) for o in rows if o.threads == row.threads)
        return any(o != mine and o[0] >= mine[0] and o[1] >= mine[1] for o in others)

    return [replace(row, pareto=not beaten(row)) for row in rows]


@dataclass(frozen=True, slots=True)
class _Plan:
    """One build, and the search options to measure it with. named: the settings in the grid."""

    backend: str
    build: dict[str, Any]
    settings: list[dict[str, Any]]
    named: list[Setting]

    def title(self, threads: int) -> str:
        options = named(self.build)
        settings = "1 setting" if len(self.settings) == 1 else f"{len(self.settings)} settings"
        cores = "1 thread" if threads == 1 else f"{threads} threads"
        return f"{self.backend} {options}".strip() + f", {settings}, {cores}"


def _plans(backends: Sequence[str], grid: Grid, metric: Metric, seed: int) -> list[_Plan]:
    """Return the builds. Settings that differ only in search options share one.

    Every indexer is made here once, so that a wrong option is refused before the first build.
    """
    plans: list[_Plan] = []
    for backend in backends:
        of_backend: list[_Plan] = []
        for setting in grid.get(backend, [{}]):
            options = dict(setting)
            plain = make_indexer(backend, {"metric": metric})
            if hasattr(plain, "seed"):
                options.setdefault("seed", seed)
            indexer = make_indexer(backend, {**options, "metric": metric})
            search, build = _parted(indexer, options)
            plan = next((plan for plan in of_backend if plan.build == build), None)
            if plan is None:
                plan = _Plan(backend, build, [], [])
                of_backend.append(plan)
            plan.settings.append(search)
            plan.named.append(setting)
        plans.extend(of_backend)
    return plans


def _parted(
    indexer: Indexer, options: Mapping[str, object]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that may change at search, and the options of the build."""
    typed = {name: asdict(cast(Any, indexer))[name] for name in options}
    search = {name: value for name, value in typed.items() if name in indexer.search_options}
    return search, {name: value for name, value in typed.items() if name not in search}


def _vectors_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _job(plan: _Plan, metric: Metric, folder: Path, threads: int, hits: int, repeats: int) -> Job:
    return Job(
        backend=plan.backend,
        metric=metric.value,
        build=plan.build,
        settings=plan.settings,
        queries=str(_vectors_file(folder, "queries")),
        database=str(_vectors_file(folder, "database")),
        threads=threads,
        k=K,
        hits=hits,
        singles=MAX_SINGLE_QUERIES,
        repeats=repeats,
    )


def _measured(job: Job, folder: Path) -> WorkerResult:
    """Run the worker. Raises RetrError with the last line of its stderr if it fails."""
    job.write(folder)
    worker = subprocess.run(
        [sys.executable, "-m", "benchmarks.suite.worker", str(folder)],
        env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(job.threads)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if worker.returncode:
        words = worker.stderr.strip().splitlines() or [f"exit code {worker.returncode}"]
        raise RetrError(f"measuring backend {job.backend} failed: {words[-1]}")
    return WorkerResult.read(folder)


def _row(
    plan: _Plan, number: int, result: WorkerResult, timing: Timing, threads: int, judged: HitQuality
) -> Row:
    latencies = np.array(timing.latencies_ms)  # (repeats, singles)
    return Row(
        backend=plan.backend,
        setting=cast(dict[str, Json], dict(plan.named[number])),
        options=timing.options,
        details=result.details,
        threads=threads,
        recall_at={k: float(recall.mean()) for k, recall in judged.recall_at.items()},
        map_at=judged.map_at,
        map_loss=judged.map_loss,
        qps=float(np.median(timing.batch_qps)),
        qps_runs=timing.batch_qps,
        qps_single=1000 / float(np.mean(latencies)),
        latency_ms={
            name: float(np.percentile(latencies, percent)) for name, percent in PERCENTILES.items()
        },
        latency_runs_ms=np.median(latencies, axis=1).tolist(),
        build_seconds=result.build_seconds,
        size_bytes=result.size_bytes,
        memory_bytes=result.memory_bytes,
    )


def _by_query(row: int, timing: Timing, judged: HitQuality) -> pa.Table:
    queries = len(judged.recall_at[K])
    latencies = np.median(timing.latencies_ms, axis=0).tolist()
    unknown = [None] * (queries - len(latencies))
    return pa.table(
        {
            "row": np.full(queries, row, np.int32),
            "query": np.arange(queries, dtype=np.int32),
            "latency_ms": pa.array([*latencies, *unknown], pa.float64()),
            **{f"recall_at_{k}": recall for k, recall in judged.recall_at.items()},
        }
    )


def _by_k(values: dict[int, float]) -> dict[str, Json]:
    return {str(k): value for k, value in values.items()}
