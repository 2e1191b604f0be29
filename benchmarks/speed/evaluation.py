"""Measure the full evaluation: `python -m benchmarks.speed.evaluation --help`.

10,000 labeled queries against 50,000 random vectors of 128 dimensions, with all metrics of
`retr eval`: seconds, and the peak memory of the process.
"""

import argparse
import json
import resource
import time

import numpy as np

from benchmarks.speed.overhead import clustered
from benchmarks.suite import machine
from retrieval.choices import choice
from retrieval.contracts import Json, Metric
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled


def measure(queries: int, rows: int, dim: int, metric: Metric | str) -> dict[str, Json]:
    """Return seconds, and the peak of resident memory in MB, vectors included."""
    metric = choice(Metric, metric)
    vectors = clustered(queries + rows, dim, seed=0)
    labels = [str(label) for label in np.random.default_rng(1).integers(10, size=len(vectors))]
    ids = [str(row) for row in range(len(vectors))]
    asked = Labelled(vectors[:queries], ids[:queries], labels[:queries])
    database = Labelled(vectors[queries:], ids[queries:], labels[queries:])
    started = time.perf_counter()
    evaluate(asked, database, metric)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # kB on Linux
    return {"metric": metric.value, "seconds": seconds, "peak_memory_mb": peak}


def main() -> None:
    """Print seconds and memory, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--metric", type=Metric, default=Metric.COSINE, choices=list(Metric))
    given = parser.parse_args()
    result = measure(given.queries, given.rows, given.dim, given.metric)
    print(json.dumps(result | {"machine": machine.describe()}, indent=2))


if __name__ == "__main__":
    main()
