"""Measures one library in a process of its own: `python -m benchmarks.peers.worker NAME FOLDER`."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

import numpy as np

from benchmarks.peers.peer import Peer, open_peer
from benchmarks.suite.machine import cores
from retrieval.contracts import Metric, Rows, Vectors
from retrieval.errors import BadInput
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import distances_of

K = 10
SINGLES = 1000
SECONDS = 3.0  # that the queries of one repeat may take; the others are left out
REPEATS = 3
ENOUGH = 0.995  # recall at which a ladder ends


def measure(peer: Peer, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each effort: recall, and queries per second one at a time and in batches."""
    queries, database, truth = (
        np.load(folder / f"{name}.npy", allow_pickle=False)
        for name in ("queries", "database", "truth")
    )
    metric = Metric((folder / "metric.txt").read_text())
    threads = len(cores())
    began = perf_counter()
    made = folder / f"made-by-{type(peer).__name__}"
    made.mkdir(exist_ok=True)
    peer.build(database, metric, threads, made)
    build_seconds = perf_counter() - began
    for ladder in peer.ladders:
        for effort in ladder:
            peer.set(effort, threads)
            found = _in_blocks(peer, queries, K)
            distances = distances_of(queries[: len(found)], database, found, metric)
            recall = float(index_recall_at(distances, truth[: len(found)], K, metric).mean())
            batch = [_batch_qps(peer, queries[: len(found)]) for _ in range(REPEATS)]
            peer.set(effort, 1)
            single = [_single_qps(peer, queries) for _ in range(REPEATS)]
            yield {
                "effort": _plain(effort),
                "recall": recall,
                "batch_qps": median(batch),
                "batch_runs": batch,
                "single_qps": median(single),
                "single_runs": single,
                "build_seconds": build_seconds,
            }
            if recall >= ENOUGH:
                break


def _in_blocks(peer: Peer, queries: Vectors, k: int) -> Rows:
    """What is found for as many queries as there is time for, at least one block of them."""
    found = []
    began = perf_counter()
    for start in range(0, len(queries), 1000):
        found.append(peer.search(queries[start : start + 1000], k))
        if perf_counter() - began > SECONDS:
            break
    return np.concatenate(found)


def _batch_qps(peer: Peer, queries: Vectors) -> float:
    began = perf_counter()
    peer.search(queries, K)
    return len(queries) / (perf_counter() - began)


def _single_qps(peer: Peer, queries: Vectors) -> float:
    singles = [queries[i : i + 1] for i in range(min(SINGLES, len(queries)))]
    for query in singles[:20]:
        peer.search(query, K)
    began = perf_counter()
    done = 0
    for query in singles:
        peer.search(query, K)
        done += 1
        if perf_counter() - began > SECONDS:
            break
    return done / (perf_counter() - began)


def _plain(effort: Any) -> Any:
    return asdict(cast(Any, effort)) if is_dataclass(effort) else effort


def main() -> None:
    """Write a row for each effort, as JSON, into the folder; exit code 2 for a missing library."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    try:
        peer = open_peer(name)
    except ImportError as missing:
        raise SystemExit(f"{missing}; pip install 'retr[peers]'") from None
    except BadInput as problem:
        raise SystemExit(str(problem)) from None
    with (folder / f"{name}.jsonl").open("a") as file:
        for row in measure(peer, folder):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
