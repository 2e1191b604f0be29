"""Measure filtered searches beside unfiltered ones: `python -m benchmarks.studies.filters --help`.

Each filter admits a random share of the rows. Single queries are timed with each filter in turn and
without one, so that a machine that changes its speed changes all of them.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.peers.__main__ import embedded, pixels
from benchmarks.suite import machine
from retrieval.contracts import Index, Json, Mask, Metric, Vectors
from retrieval.quality.metrics import index_recall_at
from retrieval.registry import make_indexer

BACKENDS = ("hnsw", "hnsw-pca", "vamana")
SHARES = (0.5, 0.1, 0.01, 0.001)
QUERIES = 200
ROUNDS = 7
K = 10


def measure(
    queries: Vectors,
    database: Vectors,
    metric: Metric,
    backends: Sequence[str],
    options: dict[str, str],
) -> dict[str, Json]:
    """Return, for each backend and share, recall@10 and the ratio to the unfiltered time.

    queries: (q, dim). database: (n, dim).
    """
    rng = np.random.default_rng(0)
    masks: dict[float, Mask | None] = {1: None}
    masks |= {share: rng.random(len(database)) < share for share in SHARES}
    exact = make_indexer("exact", {"metric": metric, "device": "cpu"}).build(database)
    true = {share: exact.search(queries, K, mask).distances for share, mask in masks.items()}
    found: dict[str, Json] = {}
    for backend in backends:
        index = make_indexer(backend, {"metric": metric, **options}).build(database)
        times: dict[float, list[float]] = {share: [] for share in masks}
        for _ in range(ROUNDS + 1):
            for share, mask in masks.items():
                times[share].append(_milliseconds(index, queries, mask))
        rows: list[Json] = []
        for share, mask in masks.items():
            hits = index.search(queries, K, mask).distances
            ratios = [a / b for a, b in zip(times[share], times[1], strict=True)][1:]
            recall = float(index_recall_at(hits, true[share], K, metric).mean())
            rows.append(
                {
                    "share": share,
                    "milliseconds": median(times[share][1:]),
                    "ratio": median(ratios),
                    "recall": recall,
                }
            )
        found[backend] = rows
    return found


def _milliseconds(index: Index, queries: Vectors, mask: Mask | None) -> float:
    """Return the median milliseconds of a search for one query."""
    took = []
    for query in queries[:, None]:
        began = time.perf_counter()
        index.search(query, K, mask)
        took.append(time.perf_counter() - began)
    return 1000 * median(took)


def main() -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embeddings", type=Path, nargs=2, metavar=("QUERIES", "DATABASE"))
    parser.add_argument("--pixels", default="fashion-mnist", help="data set of gray images")
    parser.add_argument("--backend", action="append", help="default: the graphs")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    given = parser.parse_args()
    data = embedded(*given.embeddings) if given.embeddings else pixels(given.pixels)
    queries, database, metric = data
    options = dict(option.split("=", 1) for option in given.set)
    asked = queries[np.random.default_rng(0).permutation(len(queries))[:QUERIES]]
    found = measure(asked, database, metric, given.backend or BACKENDS, options)
    print(json.dumps({"machine": machine.describe(), **found}, indent=2))


if __name__ == "__main__":
    main()
