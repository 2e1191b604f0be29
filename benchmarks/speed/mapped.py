"""Measure an index whose vectors stay in the file: `python -m benchmarks.speed.mapped --help`.

`build FOLDER` writes an `hnsw-pca` index of drawn vectors, and queries near some of them. `open
FOLDER` opens it, with or without `--mapped`, searches twice, and prints the memory of the process.
Limit that by a cgroup: `systemd-run --scope -p MemoryMax=650M python -m benchmarks.speed.mapped
open FOLDER --mapped`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.suite import machine
from retrieval.contracts import Indexer, Json, Metric, Vectors
from retrieval.quality.metrics import index_recall_at
from retrieval.registry import make_indexer

K = 10
EF = 64
QUERIES = 500
BLOCK_ROWS = 20_000
AXES, CLUSTERS = 96, 1000  # of the drawn vectors
STATUS = Path("/proc/self/status")


def build(folder: Path, rows: int, dim: int, seed: int = 0) -> None:
    """Write the index, queries (q, dim) and the distances (q, k) of their true neighbors."""
    rng = np.random.default_rng(seed)
    turn = rng.standard_normal((AXES, dim), dtype=np.float32) / 10
    centers = 2 * rng.standard_normal((CLUSTERS, AXES), dtype=np.float32)
    vectors: Vectors = np.empty((rows, dim), np.float32)
    for start in range(0, rows, BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        inner = rng.standard_normal((len(block), AXES), dtype=np.float32)
        inner += centers[rng.integers(0, CLUSTERS, len(block))]
        block[:] = inner @ turn + 0.05 * rng.standard_normal(block.shape, dtype=np.float32)
    near = vectors[rng.choice(rows, QUERIES, replace=False)]
    queries = near + 0.1 * rng.standard_normal(near.shape, dtype=np.float32)
    folder.mkdir(parents=True)
    _index().build(vectors).save(folder)
    exact = make_indexer("exact", {"metric": Metric.EUCLIDEAN}).build(vectors)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "truth.npy", exact.search(queries, K).distances)


def opened(folder: Path, mapped: bool) -> dict[str, Json]:
    """Return the memory of this process, and milliseconds a query in a first and a second pass."""
    queries = np.load(folder / "queries.npy", allow_pickle=False)
    truth = np.load(folder / "truth.npy", allow_pickle=False)
    before = _memory()
    index = _index(mapped=mapped).load(folder)
    passes: list[Json] = []
    for _ in range(2):
        began = time.perf_counter()
        hits = [index.search(query[None], K) for query in queries]
        passes.append(1000 * (time.perf_counter() - began) / len(queries))
    found = np.concatenate([each.distances for each in hits]).astype(np.float64)
    return {
        "machine": machine.describe(),
        "file_bytes": sum(path.stat().st_size for path in folder.glob("index.faiss")),
        "bytes_before": before,
        "bytes_after": _memory(),
        "milliseconds": [*passes],
        "recall": float(index_recall_at(found, truth.astype(np.float64), K).mean()),
    }


def _index(**options: object) -> Indexer:
    return make_indexer("hnsw-pca", {"metric": Metric.EUCLIDEAN, "ef": EF, **options})


def _memory() -> int:
    """Return the bytes of this process that no file holds (Linux)."""
    return 1024 * int(STATUS.read_text().split("RssAnon:")[1].split()[0])


def main() -> None:
    """Build an index, or open it and print the measurements as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("build", "open"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--mapped", action="store_true")
    given = parser.parse_args()
    if given.step == "build":
        build(given.folder, given.rows, given.dim)
    else:
        print(json.dumps(opened(given.folder, given.mapped), indent=2))


if __name__ == "__main__":
    main()
