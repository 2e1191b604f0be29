"""Measure how backends grow with the number of vectors: `python -m benchmarks.speed.scale --help`.

Each backend builds and searches sets of random vectors of several sizes from one distribution, with
the settings of `grids/scale.toml`. Times and bytes are fitted by c · n^e: with an exponent e of 1,
twice the vectors take twice as much. Sizes that are already in the table are not measured again, so
that a stopped run can continue.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite import machine
from benchmarks.suite import run as suite
from benchmarks.suite.grid import Grid, read_grid
from retrieval.contracts import Metric, Vectors
from retrieval.drawing.plots import draw_growth
from retrieval.errors import RetrError
from retrieval.quality.labelled import Labelled
from retrieval.storage.files import made_folder, write_csv

Row = dict[str, Any]

GRID = Path(__file__).parents[1] / "suite" / "grids" / "scale.toml"
DIM = 128
QUERIES = 1000
CLUSTERS = 1000  # at every size
CLUSTER_DIRECTIONS = 16  # directions in which vectors of one cluster differ
MEASURES = {
    "build_seconds": "build, s",
    "memory_bytes": "memory, bytes",
    "size_bytes": "file, bytes",
    "latency_ms": "one query, ms",
    "batch_ms": "a query in a batch, ms",
    "recall": "recall@10",
}


def draw(n: int, seed: int) -> Vectors:
    """Return vectors (n, 128) of unit length in 1,000 clusters with 16 directions of variation.

    Queries and database have the same clusters and directions, and different seeds.
    """
    fixed = np.random.default_rng(0)
    centres = fixed.standard_normal((CLUSTERS, DIM), dtype=np.float32)
    directions = fixed.standard_normal((CLUSTER_DIRECTIONS, DIM), dtype=np.float32) / np.float32(
        CLUSTER_DIRECTIONS**0.5
    )
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(CLUSTERS, size=n)]
    vectors += rng.standard_normal((n, CLUSTER_DIRECTIONS), dtype=np.float32) @ directions
    vectors += np.float32(0.1) * rng.standard_normal((n, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def measure(
    sizes: Sequence[int], backends: Sequence[str], threads: int, grid: Grid, done: Sequence[Row]
) -> Iterator[Row]:
    """Yield a row for each size and backend that is not done yet, smaller sizes first."""
    there = {(int(row["n"]), row["backend"]) for row in done}
    queries = _items(draw(QUERIES, seed=1), "q")
    for n in sorted(sizes):
        missing = [backend for backend in backends if (n, backend) not in there]
        if not missing:
            continue
        database = _items(draw(n, seed=2), "d")
        for backend in missing:
            settings = [*grid.get(backend, [{}])][:1]
            report = suite.run(
                queries,
                database,
                Metric.COSINE,
                [backend],
                grid={backend: settings},
                threads=[threads],
                repeats=3,
            )
            row = report.rows[0]
            yield {
                "n": n,
                "backend": backend,
                "build_seconds": row.build_seconds,
                "memory_bytes": row.memory_bytes,
                "size_bytes": row.size_bytes,
                "latency_ms": row.latency_ms["p50"],
                "batch_ms": 1000 / row.qps,
                "recall": row.recall_at[10],
            }


def _items(vectors: Vectors, prefix: str) -> Labelled:
    return Labelled(vectors, [f"{prefix}{i}" for i in range(len(vectors))], [None] * len(vectors))


def exponents(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return e of c · n^e for each backend and measure, by least squares of the logarithms.

    Recall is left out, which is not a power of n, and so are missing measures.
    """
    found: dict[str, dict[str, float]] = {}
    for backend in dict.fromkeys(row["backend"] for row in rows):
        mine = [row for row in rows if row["backend"] == backend]
        if len(mine) < 2:
            continue
        sizes = np.log([float(row["n"]) for row in mine])
        found[backend] = {
            measure: float(np.polyfit(sizes, np.log([float(row[measure]) for row in mine]), 1)[0])
            for measure in MEASURES
            if measure != "recall" and all(float(row[measure] or 0) > 0 for row in mine)
        }
    return found


def read(path: Path) -> list[Row]:
    """Return the rows of an earlier run, if there is one. Raises RetrError for another table."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = [*csv.DictReader(file)]
    if any({"n", "backend", *MEASURES} - row.keys() for row in rows):
        raise RetrError(f"{path} is not a table of this command; name another folder")
    return rows


def main() -> None:
    """Print a row of JSON for each measurement, then the exponents; write a table and a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, action="append", help="default: 10^4, 10^5, 10^6")
    parser.add_argument("--backend", action="append", help="default: all in grids/scale.toml")
    parser.add_argument("--threads", type=int, default=len(machine.cores()))
    parser.add_argument("--out", type=Path, required=True, help="folder for table and plot")
    given = parser.parse_args()
    grid = read_grid(GRID)
    table = made_folder(given.out) / "scale.csv"
    rows = read(table)
    sizes = given.size or [10**4, 10**5, 10**6]
    for row in measure(sizes, given.backend or [*grid], given.threads, grid, rows):
        rows.append(row)
        write_csv(table, rows)
        print(json.dumps(row), flush=True)
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for measure_, name in MEASURES.items():
            if row[measure_]:
                point = (float(row["n"]), float(row[measure_]))
                lines.setdefault(name, {}).setdefault(row["backend"], []).append(point)
    draw_growth(given.out / "scale.png", lines, "vectors", {MEASURES["recall"]})
    print(json.dumps({"exponents": exponents(rows), "machine": machine.describe()}, indent=2))


if __name__ == "__main__":
    main()
