"""Compare retr with other libraries for nearest neighbors, in one table.

Each library builds an index over the same vectors in a process of its own. It takes the smallest
effort whose recall@10 reaches the target, and searches the same queries: one at a time on one
thread, by processor time, and all in one call on all threads, by wall-clock time. Each measurement
stands between two of hnswlib at the same target. The table has queries per second and the ratio to
hnswlib, as medians of the rounds with their range. Vectors are scaled to length 1 before, for
libraries that need it. Install the libraries with 'retr[peers]'; glass and SymphonyQG are built
from their sources.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.peers.peer import PEERS
from benchmarks.peers.rounds import TARGETS, WAYS, Worker, WorkerError, compared
from benchmarks.peers.worker import K
from benchmarks.speed.scale import draw
from benchmarks.suite import machine
from retrieval.contracts import Framing, Metric, Vectors
from retrieval.errors import BadInput, UnknownName
from retrieval.images import load, open_source
from retrieval.quality.ranking import nearest
from retrieval.storage.files import made_folder
from retrieval.storage.sets.embeddings import open_embeddings

BASELINE = "hnswlib"
ROUNDS = 5
RANDOM_QUERIES = 2_000

Result = dict[str, Any] | str
"""Measurements of a peer, or its error."""


def pixels(data_set: str) -> tuple[Vectors, Vectors, Metric]:
    """Return test and training images as gray values from 0 to 255, as in ann-benchmarks."""
    both = []
    for split in ("test", "train"):
        items = open_source(data_set, split).items()
        images = np.stack([load(item, Framing(28))[:, :, 0] for item in items])
        both.append(images.reshape(len(images), -1).astype(np.float32))
    return both[0], both[1], Metric.EUCLIDEAN


def embedded(queries: Path, database: Path) -> tuple[Vectors, Vectors, Metric]:
    """Return the vectors of two embeddings folders. Raises BadInput for an unsupported metric."""
    asked, searched = open_embeddings(queries), open_embeddings(database)
    metric = searched.facts.metric
    if metric not in (Metric.COSINE, Metric.EUCLIDEAN):
        raise BadInput(f"not all libraries support the metric {metric}; give embeddings for cosine")
    return asked.read()[1], searched.read()[1], metric


def run(
    queries: Vectors, database: Vectors, metric: Metric, names: Sequence[str], rounds: int = ROUNDS
) -> dict[str, Result]:
    """Return the measurements of hnswlib and of each peer, or its error."""
    with TemporaryDirectory(prefix="retr-peers-") as temporary:
        folder = Path(temporary)
        true = nearest(queries, database, metric, K)
        for name, values in (
            ("queries", queries),
            ("database", database),
            ("truth", true.distances.astype(np.float64)),
        ):
            np.save(folder / f"{name}.npy", values)
        (folder / "metric.txt").write_text(metric)
        print(f"{BASELINE} …", file=sys.stderr, flush=True)
        with Worker(BASELINE, folder) as baseline:
            results: dict[str, Result] = {BASELINE: _facts(baseline)}
            for name in names:
                if name == BASELINE:
                    continue
                print(f"{name} …", file=sys.stderr, flush=True)
                try:
                    with Worker(name, folder) as worker:
                        found = compared(worker, baseline, rounds)
                        results[name] = {**_facts(worker), "ways": found}
                except WorkerError as error:
                    results[name] = str(error)
    return results


def _facts(worker: Worker) -> dict[str, Any]:
    return {"build_seconds": worker.build_seconds, "recalls": worker.recalls}


def table(results: dict[str, Result]) -> str:
    """Return queries per second, and ratios to hnswlib, as Markdown."""
    header = [f"{way} {target:.2f}" for way in WAYS for target in TARGETS]
    lines = ["| | build s | " + " | ".join(header) + " |", "|---" * (len(header) + 2) + "|"]
    base = results[BASELINE]
    assert isinstance(base, dict)
    for name, found in results.items():
        if isinstance(found, str):
            lines.append(f"| {name} | {found} |" + " |" * len(header))
            continue
        seconds = found["build_seconds"]
        cells = [f"{seconds:.1f} ({seconds / base['build_seconds']:.2f})"]
        if name == BASELINE:
            cells += ["1"] * len(header)
        else:
            cells += [found["ways"][way][target].cell() for way in WAYS for target in TARGETS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write all measurements as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        nargs=2,
        metavar=("QUERIES", "DATABASE"),
        help="embeddings folders",
    )
    parser.add_argument(
        "--random", type=int, metavar="ROWS", help="vectors as benchmarks.speed.scale draws them"
    )
    parser.add_argument("--pixels", default="fashion-mnist", help="data set of gray images")
    parser.add_argument("--peer", action="append", help="peer to measure; may be repeated")
    parser.add_argument("--limit", type=int, help="maximum number of database vectors")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="folder for peers.json and peers.md")
    given = parser.parse_args()
    names = given.peer or list(PEERS)
    for name in names:
        if name not in PEERS:
            raise SystemExit(str(UnknownName("peer", name, PEERS)))
    try:
        if given.random:
            queries, database = draw(RANDOM_QUERIES, seed=1), draw(given.random, seed=2)
            metric = Metric.COSINE
        elif given.embeddings:
            queries, database, metric = embedded(*given.embeddings)
        else:
            queries, database, metric = pixels(given.pixels)
    except BadInput as problem:
        raise SystemExit(str(problem)) from None
    results = run(queries, database[: given.limit], metric, names, given.rounds)
    print(table(results))
    if given.out is not None:
        made_folder(given.out)
        document = {"machine": machine.describe(), "metric": metric, "results": results}
        (given.out / "peers.json").write_text(json.dumps(document, indent=2, default=asdict) + "\n")
        (given.out / "peers.md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
