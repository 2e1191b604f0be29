"""One library in a process of its own: `python -m benchmarks.peers.worker NAME FOLDER`.

It builds its index, and then answers questions on standard input, a line of JSON each: what is
measured, and with which effort.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.peers.peer import FROM_SOURCE, Peer, open_peer
from benchmarks.suite.machine import cores
from retrieval.contracts import Metric, Rows
from retrieval.errors import BadInput
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import distances_of

K = 10
MAX_SINGLE_QUERIES = 500
MAX_BATCH_QUERIES = 4000
LIMIT_SECONDS = 3.0  # time limit of a measurement; further queries are left out
QUERIES_PER_BLOCK = 1000  # queries in one call, where recall is measured


class Measurements:
    """Measurements of a peer's index over the vectors in a folder."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        """Build the index; the folder has queries.npy, database.npy, truth.npy and metric.txt."""
        self.peer = peer
        self.queries, self.database, self.truth = (
            np.load(folder / f"{name}.npy", allow_pickle=False)
            for name in ("queries", "database", "truth")
        )
        self.metric = Metric((folder / "metric.txt").read_text())
        self.threads = len(cores())
        made = folder / f"made-by-{type(peer).__name__}"
        made.mkdir()
        began = perf_counter()
        peer.build(self.database, self.metric, self.threads, made)
        self.build_seconds = perf_counter() - began
        self.prepared = peer.prepared(self.queries)

    def answer(self, question: Mapping[str, Any]) -> dict[str, float]:
        """Return what is asked for, with the effort at `rung` of the ladder `ladder`.

        `what` is "recall" (with the seconds of its batches), "single" (seconds of processor time
        for a query, one at a time on one thread) or "batch" (seconds for a query, in one call on
        all threads).
        """
        effort = self.peer.ladders[question["ladder"]][question["rung"]]
        single = question["what"] == "single"
        self.peer.set(effort, 1 if single else self.threads)
        if question["what"] == "recall":
            return self._recall()
        return {"seconds": self._single() if single else self._batch()}

    def _recall(self) -> dict[str, float]:
        began = perf_counter()
        blocks: list[Rows] = []
        for start in range(0, len(self.prepared), QUERIES_PER_BLOCK):
            blocks.append(self.peer.search(self.prepared[start : start + QUERIES_PER_BLOCK], K))
            if perf_counter() - began > LIMIT_SECONDS:
                break
        seconds = perf_counter() - began
        found = np.concatenate(blocks)
        some = slice(len(found))
        distances = distances_of(self.queries[some], self.database, found, self.metric)
        recalls = index_recall_at(distances, self.truth[some], K, self.metric)
        return {"recall": float(recalls.mean()), "seconds": seconds / len(found)}

    def _batch(self) -> float:
        some = self.prepared[:MAX_BATCH_QUERIES]
        began = perf_counter()
        self.peer.search(some, K)
        return (perf_counter() - began) / len(some)

    def _single(self) -> float:
        singles = [self.prepared[i : i + 1] for i in range(len(self.prepared))][:MAX_SINGLE_QUERIES]
        for query in singles[:20]:
            self.peer.search(query, K)
        began, started, done = perf_counter(), process_time(), 0
        for query in singles:
            self.peer.search(query, K)
            done += 1
            if perf_counter() - began > LIMIT_SECONDS:
                break
        return (process_time() - started) / done


def main() -> None:
    """Build, say so, and answer questions until standard input ends. Exit code 1 for no library."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    try:
        peer = open_peer(name)
    except ImportError as missing:
        remedy = "build it from its source" if name in FROM_SOURCE else "pip install 'retr[peers]'"
        raise SystemExit(f"{missing}; {remedy}") from None
    except BadInput as problem:
        raise SystemExit(str(problem)) from None
    out = os.fdopen(os.dup(1), "w")  # libraries print, too
    os.dup2(2, 1)
    measured = Measurements(peer, folder)
    rungs = [len(ladder) for ladder in peer.ladders]
    print(json.dumps({"build_seconds": measured.build_seconds, "rungs": rungs}), file=out)
    out.flush()
    for line in sys.stdin:
        print(json.dumps(measured.answer(json.loads(line))), file=out)
        out.flush()


if __name__ == "__main__":
    main()
