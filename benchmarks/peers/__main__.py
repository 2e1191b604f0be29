"""Compare retr with other libraries for nearest neighbors, in one table.

Each library builds an index over the same vectors in a process of its own, one after the other. It
searches the same queries with increasing effort: one at a time on one thread, and all in one call
on all threads. The table has the most queries per second with a recall@10 of at least the target,
and the ratio to hnswlib's. hnswlib is measured first and last, and the faster run counts. Its two
rows show how much the machine's speed changed. Install the libraries with 'retr[peers]'.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.peers.peer import PEERS
from benchmarks.peers.worker import K
from benchmarks.suite import machine
from retrieval.contracts import Framing, Metric, Vectors
from retrieval.errors import BadInput, UnknownName
from retrieval.images import load, open_source
from retrieval.quality.ranking import nearest
from retrieval.storage.files import made_folder
from retrieval.storage.sets.embeddings import open_embeddings

TARGETS = (0.90, 0.95, 0.99)
BASELINE = "hnswlib"
BASELINE_AGAIN = "hnswlib again"
Found = list[dict[str, Any]]


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
    queries: Vectors, database: Vectors, metric: Metric, names: Sequence[str]
) -> dict[str, Found | str]:
    """Return each peer's rows, or its error; hnswlib's second measurement is `BASELINE_AGAIN`."""
    results: dict[str, Found | str] = {}
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
        others = [name for name in names if name != BASELINE]
        for label, name in [
            (BASELINE, BASELINE),
            *zip(others, others, strict=True),
            (BASELINE_AGAIN, BASELINE),
        ]:
            print(f"{label} …", file=sys.stderr, flush=True)
            rows = folder / f"{name}.jsonl"
            rows.unlink(missing_ok=True)
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.peers.worker", name, str(folder)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            results[label] = (
                words[-1]
                if done.returncode
                else [json.loads(line) for line in rows.read_text().splitlines()]
            )
    return results


def best(rows: Found, target: float, what: str) -> float | None:
    """Return the most queries per second with at least this recall; None if it is not reached."""
    reached = [row[f"{what}_qps"] for row in rows if row["recall"] >= target]
    return max(reached, default=None)


def table(results: dict[str, Found | str]) -> str:
    """Return queries per second, and ratios to the faster run of hnswlib, as Markdown."""
    header = [f"{what} {target:.2f}" for what in ("single", "batch") for target in TARGETS]
    lines = ["| | build s | " + " | ".join(header) + " |", "|---" * (len(header) + 2) + "|"]
    base = [
        row
        for each in (BASELINE, BASELINE_AGAIN)
        for row in results.get(each, [])
        if isinstance(row, dict)
    ]
    for name, rows in results.items():
        if isinstance(rows, str):
            lines.append(f"| {name} | {rows} |" + " |" * len(header))
            continue
        cells = [f"{rows[0]['build_seconds']:.1f}"]
        for what in ("single", "batch"):
            for target in TARGETS:
                mine = best(rows, target, what)
                theirs = best(base, target, what)
                ratio = "" if mine is None or theirs is None else f" ({mine / theirs:.2f})"
                cells.append("–" if mine is None else f"{mine:,.0f}{ratio}")
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
    parser.add_argument("--pixels", default="fashion-mnist", help="data set of gray images")
    parser.add_argument("--peer", action="append", help="peer to measure; may be repeated")
    parser.add_argument("--limit", type=int, help="maximum number of database vectors")
    parser.add_argument("--out", type=Path, help="folder for peers.json and peers.md")
    given = parser.parse_args()
    names = given.peer or list(PEERS)
    for name in names:
        if name not in PEERS:
            raise SystemExit(str(UnknownName("peer", name, PEERS)))
    try:
        queries, database, metric = (
            embedded(*given.embeddings) if given.embeddings else pixels(given.pixels)
        )
    except BadInput as problem:
        raise SystemExit(str(problem)) from None
    results = run(queries, database[: given.limit], metric, names)
    print(table(results))
    if given.out is not None:
        made_folder(given.out)
        document = {"machine": machine.describe(), "metric": metric, "results": results}
        (given.out / "peers.json").write_text(json.dumps(document, indent=2) + "\n")
        (given.out / "peers.md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
