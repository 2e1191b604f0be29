"""Compare GPU and CPU: `python -m benchmarks.speed.gpu --help`, on a machine with a GPU.

Run the tests that need a GPU, if the repository is available. Then measure exact search, inverted
lists and an encoder on the CPU and on the GPU: one table with both, their ratio, recall compared
with exact search on the CPU, and the GPU memory as planned and as used.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.speed.overhead import clustered
from benchmarks.suite import machine
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadInput
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import distances_of
from retrieval.registry import make_indexer, open_encoder

TESTS = Path("tests/gpu")
DEVICES = ("cpu", "cuda")
SINGLE_QUERIES = 200  # timed one at a time
Distances = NDArray[np.floating[Any]]
Row = tuple[str, float, float, str]
"""What, on the CPU, on the GPU, and how far the results agree."""


def indices(database: Vectors, queries: Vectors, k: int, repeats: int) -> list[Row]:
    """Yield build seconds, queries per second in one call and milliseconds of a single query.

    For each backend with GPU support. Lists are trained on each device, so they differ.
    """
    rows: list[Row] = []
    truth: Distances | None = None
    for backend, options in (("exact", {}), ("ivf", {"n_probe": 32})):
        built, qps, alone, found = [], [], [], []
        for device in DEVICES:
            settings = {**options, "metric": Metric.COSINE, "device": device}
            free = _free_bytes()
            began = time.perf_counter()
            index = make_indexer(backend, settings).build(database)
            built.append(time.perf_counter() - began)
            hits = index.search(queries, k)
            found.append(distances_of(queries, database, hits.rows, Metric.COSINE))
            taken = (free - _free_bytes()) / 1e6
            qps.append(len(queries) / _seconds(partial(index.search, queries, k), repeats))
            single = [partial(index.search, query[None], k) for query in queries[:SINGLE_QUERIES]]
            alone.append(1000 * median(_seconds(search, 1) for search in single))
        planned = cast(int, index.details["gpu_bytes"]) / 1e6
        truth = found[0] if truth is None else truth
        recall = [index_recall_at(distances, truth, k, Metric.COSINE).mean() for distances in found]
        memory = f"{planned:,.0f} MB planned, {taken:,.0f} taken"
        same = f"recall@{k} {recall[0]:.4f} and {recall[1]:.4f}"
        rows.append((f"{backend}, build, s", built[0], built[1], memory))
        rows.append((f"{backend}, queries/s", qps[0], qps[1], same))
        rows.append((f"{backend}, one query, ms", alone[0], alone[1], ""))
    return rows


def encoding(name: str, images: int, repeats: int) -> Row:
    """Return images per second of an encoder, on images of noise."""
    rates, found = [], []
    for device in DEVICES:
        encoder = open_encoder(name, device)
        side = encoder.framing.side
        noise = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8)
        found.append(encoder.encode(noise))
        taken = _seconds(partial(encoder.encode, noise), repeats)
        rates.append(images / taken)
    cosine = (found[0] * found[1]).sum(1) / np.prod([np.linalg.norm(f, axis=1) for f in found], 0)
    return f"{name}, images/s", rates[0], rates[1], f"least cosine {cosine.min():.5f}"


def _free_bytes() -> int:
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return median(taken)


def tests() -> int:
    """Run the tests that need a GPU, and return their exit code; 0 without a repository."""
    if not TESTS.is_dir():
        print(f"no {TESTS} here: tests skipped; they need the repository")
        return 0
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", str(TESTS)]
    return subprocess.run(command, check=False).returncode


def main() -> None:
    """Print the table. Exit code 2 without a GPU, 1 if a test fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--encoder", action="append", help="default: siamese, siamese-quick")
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-tests", action="store_true", help="skip the tests")
    given = parser.parse_args()
    vectors = clustered(given.rows + given.queries, given.dim, seed=0)
    try:
        make_indexer("exact", {"device": "cuda"}).build(vectors[:10])
        code = 0 if given.no_tests else tests()
        rows = indices(vectors[given.queries :], vectors[: given.queries], given.k, given.repeats)
        for name in given.encoder or ["siamese", "siamese-quick"]:
            rows.append(encoding(name, given.images, given.repeats))
    except BadInput as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(problem.exit_code) from None
    there = machine.describe()
    print(f"{there['cpu']}, {there['cores']} cores; {torch.cuda.get_device_name()}")
    print(f"{given.rows:,} × {given.dim}, {given.queries:,} queries, k = {given.k}\n")
    print("| | CPU | GPU | ratio | |\n|---|---|---|---|---|")
    for what, cpu, gpu, remark in rows:
        ratio = cpu / gpu if what.endswith((" s", " ms")) else gpu / cpu
        print(f"| {what} | {cpu:,.4g} | {gpu:,.4g} | {ratio:.2f} | {remark} |")
    raise SystemExit(1 if code else 0)


if __name__ == "__main__":
    main()
