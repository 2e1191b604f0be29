"""Compare retr's searches with the library's: `python -m benchmarks.speed.overhead --help`.

The library's own call and `Index.search` alternate on the same index and batch of queries. A ratio
of 1.05 is an overhead of 5%.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, cast

import numpy as np

from benchmarks.suite import machine
from retrieval.contracts import Json, Metric, Vectors
from retrieval.registry import make_indexer

Search = Callable[[], object]

OPTIONS: dict[str, dict[str, object]] = {
    "exact": {},
    "ivf": {"n_probe": 32},
    "ivfpq": {"n_probe": 32},
    "faiss": {},
    "hnsw": {"ef": 64},
    "vamana": {"ef": 64, "refine": 0},  # refinement is not in the library's own call
}
"""Of the backends that call a library; `hnsw-pca` searches by itself."""


def clustered(n: int, dim: int, seed: int, clusters: int = 100) -> Vectors:
    """Return vectors (n, dim) of unit length in clusters: easier than noise, but not trivial."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((clusters, dim), dtype=np.float32)
    vectors = centers[rng.integers(clusters, size=n)]
    vectors += 0.7 * rng.standard_normal((n, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def raw(index: Any, queries: Vectors, k: int) -> Search:
    """Return the library's own call on the object inside `index`.

    Both search the same memory: another place in memory changes times by some percent.
    """
    if not hasattr(index, "graph"):
        return partial(index.index.search, queries, k)
    if hasattr(index.graph, "knn_query"):
        return partial(index.graph.knn_query, queries, k)
    return partial(index.graph.search, queries, k)


def measure(
    rows: int, dim: int, batch: int, k: int, repeats: int, backends: Sequence[str]
) -> dict[str, Json]:
    """Return the medians of both for each backend, in milliseconds per batch, and their ratio."""
    vectors = clustered(rows + batch, dim, seed=0)
    database, queries = vectors[batch:], np.ascontiguousarray(vectors[:batch])
    results: dict[str, Json] = {}
    for backend in backends:
        chosen = OPTIONS[backend]
        indexer = make_indexer(backend, {**chosen, "metric": Metric.COSINE})
        index: Any = indexer.build(database)
        if backend == "ivf":
            index.index.nprobe = 32  # the library's own default is 1
        theirs = raw(index, queries, k)
        times: dict[str, list[float]] = {"library": [], "retr": []}
        ways: list[tuple[str, Search]] = [
            ("library", theirs),
            ("retr", partial(index.search, queries, k)),
        ]
        for _ in range(repeats + 1):  # the first repetition is a warm-up
            for name, way in ways:
                times[name].append(_milliseconds(way))
            ways.reverse()
        middle = {name: median(taken[1:]) for name, taken in times.items()}
        results[backend] = {
            "ratio": middle["retr"] / middle["library"],
            "library_ms": cast(Json, times["library"][1:]),
            "retr_ms": cast(Json, times["retr"][1:]),
        }
    return results


def _milliseconds(search: Search) -> float:
    started = time.perf_counter()
    search()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Print the ratios, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--backend", action="append", choices=[*OPTIONS], help="default: all")
    given = parser.parse_args()
    backends = given.backend or [*OPTIONS]
    results = measure(given.rows, given.dim, given.batch, given.k, given.repeats, backends)
    print(json.dumps({"backends": results, "machine": machine.describe()}, indent=2))


if __name__ == "__main__":
    main()
