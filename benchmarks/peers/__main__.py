"""retr beside other libraries for nearest neighbours, as one table.

Every library builds an index over the same vectors in a process of its own, one after the other,
and is asked the same queries with rising effort: one at a time on one thread, and all in one call
on all of them. The table has the most queries per second at which recall@10 is at least the target,
and their ratio to hnswlib's. hnswlib is measured first and last, and the faster one counts: its two
rows say how much the machine's speed changed meanwhile. The others are the extra 'retr[peers]'.
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
from retrieval.storage.embeddings import open_embeddings
from retrieval.storage.files import made_folder

TARGETS = (0.90, 0.95, 0.99)
FIRST = "hnswlib"
AGAIN = "hnswlib again"
Found = list[dict[str, Any]]


def pixels(data_set: str) -> tuple[Vectors, Vectors, Metric]:
    """Test and training images as grey values from 0 to 255, as ann-benchmarks has them."""
    both = []
    for split in ("test", "train"):
        items = open_source(data_set, split).items()
        images = np.stack([load(item, Framing(28))[:, :, 0] for item in items])
        both.append(images.reshape(len(images), -1).astype(np.float32))
    return both[0], both[1], Metric.EUCLIDEAN


def embedded(queries: Path, database: Path) -> tuple[Vectors, Vectors, Metric]:
    """The vectors of two embeddings folders. Raises BadInput for a metric not all of them have."""
    asked, searched = open_embeddings(queries), open_embeddings(database)
    metric = searched.facts.metric
    if metric not in (Metric.COSINE, Metric.EUCLIDEAN):
        raise BadInput(f"not all of the libraries know {metric}; give embeddings for cosines")
    return asked.read()[1], searched.read()[1], metric


def run(
    queries: Vectors, database: Vectors, metric: Metric, names: Sequence[str]
) -> dict[str, Found | str]:
    """The rows of each, or what went wrong; hnswlib's second measurement under `AGAIN`."""
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
        others = [name for name in names if name != FIRST]
        for label, name in [(FIRST, FIRST), *zip(others, others, strict=True), (AGAIN, FIRST)]:
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
    """The most queries per second with at least this recall; None where it is not reached."""
    reached = [row[f"{what}_qps"] for row in rows if row["recall"] >= target]
    return max(reached, default=None)


def table(results: dict[str, Found | str]) -> str:
    """Queries per second, and their ratios to the faster of hnswlib's two, as Markdown."""
    header = [f"{what} {target:.2f}" for what in ("single", "batch") for target in TARGETS]
    lines = ["| | build s | " + " | ".join(header) + " |", "|---" * (len(header) + 2) + "|"]
    base = [
        row for each in (FIRST, AGAIN) for row in results.get(each, []) if isinstance(row, dict)
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
    """Print the table, and keep all that was measured as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--embeddings", type=Path, nargs=2, metavar=("QUERIES", "DATABASE"), help="folders"
    )
    parser.add_argument("--pixels", default="fashion-mnist", help="a data set of grey images")
    parser.add_argument("--peer", action="append", help="one of them; may be repeated")
    parser.add_argument("--limit", type=int, help="so many vectors of the database alone")
    parser.add_argument("--out", type=Path, help="a folder for peers.json and peers.md")
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
