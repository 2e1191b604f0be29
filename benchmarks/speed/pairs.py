"""Measure the scoring of pairs of embeddings: `python -m benchmarks.speed.pairs --help`."""

import argparse
import json
import time
from statistics import median
from typing import cast

import numpy as np

from benchmarks.speed.overhead import clustered
from benchmarks.suite import machine
from retrieval.contracts import Json, Metric
from retrieval.pairs.draw import Scheme, draw_pairs, pair_distances


def measure(pairs: int, rows: int, dim: int, repeats: int) -> dict[str, Json]:
    """Return the seconds for the distances of random pairs, by each metric, and their median."""
    vectors = clustered(rows, dim, seed=0)
    labels = np.random.default_rng(0).integers(10, size=rows)
    drawn = draw_pairs(labels, pairs, Scheme.RANDOM, seed=0)
    results: dict[str, Json] = {}
    for metric in Metric:
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            pair_distances(vectors, drawn, metric)
            taken.append(time.perf_counter() - started)
        results[metric] = {"median_s": median(taken), "repeats_s": cast(Json, taken)}
    return results


def main() -> None:
    """Print the times, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    results = measure(given.pairs, given.rows, given.dim, given.repeats)
    print(json.dumps({"metrics": results, "machine": machine.describe()}, indent=2))


if __name__ == "__main__":
    main()
