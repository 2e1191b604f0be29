"""Measure one index in a process of its own: `python -m benchmarks.suite.worker FOLDER`.

So backends share no threads, caches or memory, and the number of threads is fixed before any
library is imported. The suite sets it in the environment. This process is also pinned to as many
cores, where the system can do that, for libraries that count cores instead.
"""

import gc
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np

from benchmarks.suite.job import Job, Timing, WorkerResult, hits_file
from benchmarks.suite.machine import cores, resident_bytes
from retrieval.contracts import Index, Json, Vectors
from retrieval.errors import RetrError
from retrieval.registry import make_indexer

WARM_UP_QUERIES = 50


def measure(folder: Path) -> WorkerResult:
    """Run the job in the folder. Write the rows found with each setting into the folder."""
    job = Job.read(folder)
    queries = np.load(job.queries, allow_pickle=False)
    database = np.load(job.database, allow_pickle=False)
    indexer = make_indexer(job.backend, {**job.build, "metric": job.metric})
    # Builds compare their index with an exact one, whose library must not count.
    make_indexer("exact", {"metric": job.metric})

    gc.collect()
    before = resident_bytes()
    start = perf_counter()
    index = indexer.build(database)
    build_seconds = perf_counter() - start
    gc.collect()
    after = resident_bytes()

    saved = folder / "index"
    saved.mkdir()
    index.save(saved)
    details = dict(index.details)
    del index

    timings = []
    for number, setting in enumerate(job.settings):
        searcher = replace(cast(Any, indexer), **setting)
        index = searcher.load(saved)
        options: dict[str, Json] = asdict(searcher)
        del options["metric"]
        timings.append(time_searches(index, queries, job, options))
        np.save(hits_file(folder, number), index.search(queries, job.hits).rows)
        del index
    return WorkerResult(
        build_seconds=build_seconds,
        size_bytes=sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()),
        memory_bytes=None if before is None or after is None else max(0, after - before),
        details=details,
        timings=timings,
    )


def time_searches(index: Index, queries: Vectors, job: Job, options: dict[str, Json]) -> Timing:
    """Time queries one at a time, and all in one call, after a warm-up."""
    singles = [queries[i : i + 1] for i in range(min(job.singles, len(queries)))]
    for query in singles[:WARM_UP_QUERIES]:
        index.search(query, job.k)
    latencies = [[_seconds(index, query, job.k) for query in singles] for _ in range(job.repeats)]
    index.search(queries, job.k)
    batches = [_seconds(index, queries, job.k) for _ in range(job.repeats)]
    return Timing(
        options=options,
        batch_qps=[len(queries) / seconds for seconds in batches],
        latencies_ms=[[1000 * seconds for seconds in line] for line in latencies],
    )


def _seconds(index: Index, queries: Vectors, k: int) -> float:
    start = perf_counter()
    index.search(queries, k)
    return perf_counter() - start


def main() -> int:
    """Write the result and return 0, or print the error to stderr and return its exit code."""
    folder = Path(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[: Job.read(folder).threads])
    try:
        measure(folder).write(folder)
    except RetrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
