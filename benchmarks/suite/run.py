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
from numpy.typing import NDArray

from benchmarks.suite import machine
from benchmarks.suite.grid import Grid, Setting, named, read_grid
from benchmarks.suite.job import Answer, Job, Timing, hits_file
from retrieval.choices import choice
from retrieval.contracts import Hits, Indexer, Json, Metric
from retrieval.errors import BadInput, RetrError
from retrieval.quality.evaluation import evaluate_hits
from retrieval.quality.labelled import Labelled
from retrieval.quality.metrics import DEFINITIONS, index_recall_at
from retrieval.quality.ranking import Distances, Rows, distances_of, nearest
from retrieval.registry import make_indexer
from retrieval.runtime.threads import THREAD_VARIABLES

KS = (1, 10, 100)
K = max(KS)
SINGLES = 1000  # queries that are asked one at a time
REPEATS = 5  # of these, and of all queries at once
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}

BACKENDS = ("exact", "ivf", "hnsw", "hnsw-pca", "ivfpq")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One backend with one setting.

    setting: the options that the grid names; options: all of them.
    recall_at: of the index, by distance. map_at, map_loss: None where there are no labels.
    qps: queries per second, all in one call, the median of `qps_runs`; qps_single: one at a
    time, where latency_ms are percentiles, and latency_runs_ms the median of each time that they
    were asked. The times are of searches for the 100 nearest.
    size_bytes: on disk. memory_bytes: by how much resident memory grew in the build.
    pareto: no other row with as many threads is better in one of recall@10 and queries per second
        and as good in the other. In batches.
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
        """As in `retr bench --json`."""
        return asdict(self) | {
            "recall_at": _by_k(self.recall_at),
            "map_at": None if self.map_at is None else _by_k(self.map_at),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All rows, and the conditions that they were taken under.

    by_query: a table of each query of each row: `row`, counted from 0; `query`; `latency_ms`, the
    median, of those that were asked alone; and `recall_at_1`, `_10` and `_100`.
    """

    machine: dict[str, Json]
    data: dict[str, Json]
    conditions: dict[str, Json]
    rows: list[Row]
    by_query: pa.Table

    def to_json(self) -> dict[str, Json]:
        """As in `retr bench --json`."""
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
) -> Report:
    """The measurements of all backends with the settings of the grid, in the order given.

    grid: None for `grids/quick.toml`. threads: that a search may use, and a build, each of these
    numbers in turn. seed: for
    backends with that option, unless the grid sets it. neighbors: (q, k), the true ones where these
    are known. progress: is told what comes next.

    Raises UnknownName for a backend or an option, BadInput for a value that it cannot take or
    more threads than cores, RetrError where a measurement fails.
    """
    metric = choice(Metric, metric)
    available = len(machine.cores())
    for number in threads:
        if not 1 <= number <= available:
            raise BadInput(f"{number} threads on {available} cores; give from 1 to {available}")
    if repeats < 1:
        raise BadInput(f"repeats is {repeats}; give at least 1")
    plans = _plans(backends, read_grid() if grid is None else grid, metric, seed)

    progress(f"true neighbors of {len(queries):,} queries among {len(database):,}")
    quality = _Quality.of(queries, database, metric, neighbors)
    rows: list[Row] = []
    by_query: list[pa.Table] = []
    with TemporaryDirectory(prefix="retr-bench-") as temporary:
        folder = Path(temporary)
        for name, items in (("queries", queries), ("database", database)):
            np.save(folder / f"{name}.npy", np.ascontiguousarray(items.vectors, np.float32))
        for number, (plan, n_threads) in enumerate(product(plans, threads)):
            progress(plan.title(n_threads))
            work = folder / str(number)
            work.mkdir()
            job = Job(
                backend=plan.backend,
                metric=metric.value,
                build=plan.build,
                settings=plan.settings,
                queries=str(folder / "queries.npy"),
                database=str(folder / "database.npy"),
                threads=n_threads,
                k=K,
                hits=quality.hits,
                singles=SINGLES,
                repeats=repeats,
            )
            answer = _measured(job, work)
            for i, timing in enumerate(answer.timings):
                found: Rows = np.load(hits_file(work, i), allow_pickle=False)
                judged = quality.of_hits(found)
                by_query.append(_by_query(len(rows), timing, judged))
                rows.append(_row(plan, i, answer, timing, n_threads, judged))
    return Report(
        machine=machine.describe(),
        data={
            "queries": len(queries),
            "database": len(database),
            "dim": int(database.vectors.shape[1]),
            "metric": metric.value,
        },
        conditions={
            "k": K,
            "threads": list(threads),
            "pinned": hasattr(os, "sched_setaffinity"),
            "seed": seed,
            "repeats": repeats,
            "single_queries": min(SINGLES, len(queries)),
            f"map_at_{K}_exact": quality.exact_map,
        },
        rows=with_front(rows),
        by_query=pa.concat_tables(by_query),
    )


def usual_backends(metric: Metric | str) -> list[str]:
    """Those of `BACKENDS` that have the metric."""
    metric = choice(Metric, metric)

    def has_it(backend: str) -> bool:
        try:
            make_indexer(backend, {"metric": metric})
        except BadInput:
            return False
        return True

    return [backend for backend in BACKENDS if has_it(backend)]


def with_front(rows: Sequence[Row]) -> list[Row]:
    """The rows, those on the Pareto front of recall@10 and queries per second marked."""

    def beaten(row: Row) -> bool:
        mine = (row.recall_at[10], row.qps)
        others = ((o.recall_at[10], o.qps) for o in rows if o.threads == row.threads)
        return any(o != mine and o[0] >= mine[0] and o[1] >= mine[1] for o in others)

    return [replace(row, pareto=not beaten(row)) for row in rows]


@dataclass(frozen=True, slots=True)
class _Plan:
    """One build, and the search options to measure it with; `named` are the grid's settings."""

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
    """Settings that differ in search options alone share a build.

    Every indexer is made here once, so that a wrong option is refused before anything is run.
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
    """Those of the options that may change at search, and the others, as the indexer has them."""
    typed = {name: asdict(cast(Any, indexer))[name] for name in options}
    search = {name: value for name, value in typed.items() if name in indexer.search_options}
    return search, {name: value for name, value in typed.items() if name not in search}


def _measured(job: Job, folder: Path) -> Answer:
    """The worker's answer. Raises RetrError with its last words where it fails."""
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
    return Answer.read(folder)


def _row(
    plan: _Plan, number: int, answer: Answer, timing: Timing, threads: int, judged: "_Judged"
) -> Row:
    latencies = np.array(timing.latencies_ms)  # (repeats, singles)
    return Row(
        backend=plan.backend,
        setting=cast(dict[str, Json], dict(plan.named[number])),
        options=timing.options,
        details=answer.details,
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
        build_seconds=answer.build_seconds,
        size_bytes=answer.size_bytes,
        memory_bytes=answer.memory_bytes,
    )


def _by_query(row: int, timing: Timing, judged: "_Judged") -> pa.Table:
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


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """How good hits are: recall@k of each query (q,), for each k; mAP@K, and how much is lost."""

    recall_at: dict[int, NDArray[np.float64]]
    map_at: dict[int, float] | None = None
    map_loss: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Quality:
    """Judges hits by the true neighbors: (q, K) their distances, and what mAP@K they give.

    hits: how many of them must be given; one more than K where a query may be its own hit.
    """

    queries: Labelled
    database: Labelled
    metric: Metric
    true: Distances
    hits: int
    exact_map: float | None

    @classmethod
    def of(
        cls, queries: Labelled, database: Labelled, metric: Metric, neighbors: Rows | None = None
    ) -> "_Quality":
        """neighbors: (q, k), the true ones where these are known; used where they are enough."""
        hits = K if set(queries.ids).isdisjoint(database.ids) else K + 1
        if neighbors is None or neighbors.shape[1] < hits:
            found = nearest(queries.vectors, database.vectors, metric, hits)
        else:
            found = Hits(neighbors, np.empty(neighbors.shape, np.float32))
        true = distances_of(queries.vectors, database.vectors, found.rows[:, :K], metric)
        exact_map = None
        if _any(queries.labels) and _any(database.labels):
            exact_map = evaluate_hits(queries, database, found, metric, (K,)).map_at[K]
        # In double precision, ties in float32 may be out of order.
        return cls(queries, database, metric, np.sort(true, axis=1), hits, exact_map)

    def of_hits(self, rows: Rows) -> _Judged:
        """Against the true neighbors, and against what exact search would find."""
        found = distances_of(self.queries.vectors, self.database.vectors, rows[:, :K], self.metric)
        recall_at = {k: index_recall_at(found, self.true, k, self.metric) for k in KS}
        if self.exact_map is None:
            return _Judged(recall_at)
        hits = Hits(rows, np.empty(rows.shape, np.float32))
        map_at = evaluate_hits(self.queries, self.database, hits, self.metric, (K,)).map_at
        return _Judged(recall_at, map_at, self.exact_map - map_at[K])


def _by_k(values: dict[int, float]) -> dict[str, Json]:
    return {str(k): value for k, value in values.items()}


def _any(labels: Sequence[str | None] | Any) -> bool:
    return any(label is not None for label in labels)
