"""Measure the recall of default options: `python -m benchmarks.studies.defaults --help`.

Sets of several kinds and sizes are indexed with default options, and searched for the 10 nearest of
queries that are not in them. Recall is by distance, as in `retr bench`. `filtered` is the recall
among a random tenth of the rows. Times are of a single query, and per query of a batch.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed import scale
from benchmarks.studies import baselines
from benchmarks.suite import machine
from retrieval.choices import choice
from retrieval.contracts import Framing, Hits, Index, Json, Mask, Metric, Vectors
from retrieval.errors import BadInput
from retrieval.images import open_source
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import distances_of
from retrieval.registry import indexer_names, make_indexer
from retrieval.storage.sets.embeddings import open_embeddings

K = 10
DIM = 128
QUERIES = 500
SINGLE_QUERIES = 100  # timed one by one
SIZES = (100, 1000, 3000, 10_000, 50_000)


def small_clusters(rows: int, seed: int = 0) -> Vectors:
    """Return vectors (rows, 128) in tight clusters of 10 to 50 rows."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(10, 51, size=rows // 30 + 1)
    return _around(rng, sizes / sizes.sum(), rows, spread=0.3)


def large_clusters(rows: int, seed: int = 0) -> Vectors:
    """Return vectors (rows, 128) in 20 wide clusters of different sizes."""
    rng = np.random.default_rng(seed)
    return _around(rng, rng.dirichlet(np.ones(20)), rows, spread=0.7)


def directions(rows: int, seed: int = 0) -> Vectors:
    """Return vectors (rows, 128) in 1,000 clusters with 16 directions of variation."""
    return scale.draw(rows, seed)


def noise(rows: int, seed: int = 0) -> Vectors:
    """Return vectors (rows, 128) of noise, for which every approximation loses neighbors."""
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def pixels(rows: int, seed: int = 0) -> Vectors:
    """Return the pixels (rows, 784) of images of Fashion-MNIST, from 0 to 1."""
    source = open_source("fashion-mnist", "train")
    vectors, _, _ = baselines.pixels(source, Framing(side=28))
    gray = np.ascontiguousarray(vectors[:, ::3])
    return gray[_drawn(rows, len(gray), seed)]


def stored(folder: str, rows: int, seed: int = 0) -> Vectors:
    """Return vectors (rows, dim) of an embeddings folder."""
    _, vectors = open_embeddings(folder).read()
    return vectors[_drawn(rows, len(vectors), seed)]


KINDS: dict[str, Callable[[int], Vectors]] = {
    "small-clusters": small_clusters,
    "large-clusters": large_clusters,
    "directions": directions,
    "noise": noise,
    "pixels": pixels,
}


def _around(
    rng: np.random.Generator, shares: NDArray[np.float64], rows: int, spread: float
) -> Vectors:
    """Return vectors (rows, 128) around centers, each with about its share of the rows."""
    centers = rng.standard_normal((len(shares), DIM), dtype=np.float32)
    vectors = centers[rng.choice(len(shares), rows, p=shares)]
    vectors += np.float32(spread) * rng.standard_normal((rows, DIM), dtype=np.float32)
    return vectors


def _drawn(wanted: int, rows: int, seed: int) -> NDArray[np.int64]:
    if wanted > rows:
        raise BadInput(f"{wanted:,} rows needed, {rows:,} available; give a smaller --size")
    return np.random.default_rng(seed).permutation(rows)[:wanted]


def measure(
    draw: Callable[[int], Vectors],
    rows: int,
    metric: Metric | str,
    backends: Sequence[str],
    options: dict[str, object] | None = None,
) -> Iterator[dict[str, Json]]:
    """Yield recall and times over `rows` rows for each backend with the metric."""
    metric = choice(Metric, metric)
    queries_wanted = min(QUERIES, max(100, rows // 10))
    vectors = draw(rows + queries_wanted)
    queries = np.ascontiguousarray(vectors[rows:])
    database = np.ascontiguousarray(vectors[:rows])
    del vectors
    mask = np.random.default_rng(1).random(rows) < 0.1
    exact = make_indexer("exact", {"metric": metric}).build(database)
    truth = {name: exact.search(queries, K, among) for name, among in _filters(mask)}
    for backend in backends:
        try:
            indexer = make_indexer(backend, {**(options or {}), "metric": metric})
        except BadInput:
            continue  # the backend lacks the metric
        started = time.perf_counter()
        index = indexer.build(database)
        seconds = time.perf_counter() - started
        yield {
            "rows": rows,
            "metric": metric,
            "backend": backend,
            **{
                name: _recall(
                    index.search(queries, K, among), truth[name], queries, database, metric
                )
                for name, among in _filters(mask)
            },
            **_times(index, queries),
            "build_seconds": round(seconds, 3),
            "details": dict(index.details),
        }


def _filters(mask: Mask) -> list[tuple[str, Mask | None]]:
    return [("recall", None), ("filtered", mask)]


def _recall(hits: Hits, true: Hits, queries: Vectors, database: Vectors, metric: Metric) -> float:
    """Return the mean recall@10 of the hits, by distances computed from the vectors."""
    found, wanted = (distances_of(queries, database, each.rows, metric) for each in (hits, true))
    there = np.isfinite(wanted).any(axis=1)
    of_queries = index_recall_at(found[there], wanted[there], K, metric)
    return round(float(of_queries.mean()), 4)


def _times(index: Index, queries: Vectors) -> dict[str, Json]:
    """Return milliseconds of a single query (median), and per query of a batch (best of three)."""
    singles, batches = [], []
    for row in range(min(SINGLE_QUERIES, len(queries))):
        started = time.perf_counter()
        index.search(queries[row : row + 1], K)
        singles.append(time.perf_counter() - started)
    for _ in range(3):
        started = time.perf_counter()
        index.search(queries, K)
        batches.append((time.perf_counter() - started) / len(queries))
    return {
        "query_ms": round(1000 * float(np.median(singles)), 4),
        "batch_ms": round(1000 * min(batches), 4),
    }


def main() -> None:
    """Print a line of JSON for each index, then one about the machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", choices=[*KINDS], help="default: all")
    parser.add_argument("--embeddings", help="measure on this folder of embeddings instead")
    parser.add_argument("--size", type=int, action="append", help=f"default: {SIZES}")
    parser.add_argument("--backend", action="append", help="default: all")
    parser.add_argument("--metric", action="append", type=Metric, help="default: all")
    given = parser.parse_args()
    chosen = {name: KINDS[name] for name in given.data or KINDS}
    if given.embeddings:
        chosen = {given.embeddings: partial(stored, given.embeddings)}
    for name, draw in chosen.items():
        for rows in given.size or SIZES:
            for metric in given.metric or Metric:
                for found in measure(draw, rows, metric, given.backend or indexer_names()):
                    print(json.dumps({"data": name, **found}), flush=True)
    print(json.dumps({"machine": machine.describe()}))


if __name__ == "__main__":
    main()
