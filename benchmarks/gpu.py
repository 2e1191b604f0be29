"""What a GPU changes: `python -m benchmarks.gpu --help`, on a machine that has one.

Runs the tests that want a GPU, where the repository is at hand, and then measures exact search,
inverted lists and an encoder on the CPU and on the GPU: one table of both, their ratio, and how
many of the neighbours are the same.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np

from benchmarks import machine
from benchmarks.overhead import clustered
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadInput
from retrieval.registry import make_indexer, open_encoder

TESTS = Path("tests/gpu")
DEVICES = ("cpu", "cuda")
Row = tuple[str, float, float, str]
"""What, on the CPU, on the GPU, and how far the results agree."""


def indices(database: Vectors, queries: Vectors, k: int, repeats: int) -> list[Row]:
    """Seconds to build, and queries per second in one call, of each backend that knows GPUs."""
    rows: list[Row] = []
    for backend, options in (("exact", {}), ("ivf", {"n_probe": 32})):
        built, qps, found = [], [], []
        for device in DEVICES:
            settings = {**options, "metric": Metric.COSINE, "device": device}
            began = time.perf_counter()
            index = make_indexer(backend, settings).build(database)
            built.append(time.perf_counter() - began)
            found.append(index.search(queries, k).rows)
            taken = _seconds(lambda index=index: index.search(queries, k), repeats)  # type: ignore[misc]
            qps.append(len(queries) / taken)
            if device == "cuda":
                planned = cast(int, index.details["gpu_bytes"]) / 1e6
        same = f"{(found[0] == found[1]).mean():.4f} of {k} rows equal"
        rows.append((f"{backend}, build, s", built[0], built[1], f"{planned:,.0f} MB"))
        rows.append((f"{backend}, queries/s", qps[0], qps[1], same))
    return rows


def encoding(name: str, images: int, repeats: int) -> Row:
    """Images per second of an encoder, on images of noise."""
    rates, found = [], []
    for device in DEVICES:
        encoder = open_encoder(name, device)
        side = encoder.framing.side
        noise = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8)
        found.append(encoder.encode(noise))
        taken = _seconds(lambda encoder=encoder, noise=noise: encoder.encode(noise), repeats)  # type: ignore[misc]
        rates.append(images / taken)
    cosine = (found[0] * found[1]).sum(1) / np.prod([np.linalg.norm(f, axis=1) for f in found], 0)
    return f"{name}, images/s", rates[0], rates[1], f"least cosine {cosine.min():.5f}"


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return median(taken)


def tests() -> int:
    """Run the tests that want a GPU; their exit code, 0 where they are not at hand."""
    if not TESTS.is_dir():
        print(f"no {TESTS} here: the tests are run in the repository")
        return 0
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", str(TESTS)]
    return subprocess.run(command, check=False).returncode


def main() -> None:
    """Print the table. Exit code 2 without a GPU, 1 where a test fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--encoder", default="siamese-quick")
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    vectors = clustered(given.rows + given.queries, given.dim, seed=0)
    try:
        make_indexer("exact", {"device": "cuda"}).build(vectors[:10])
        code = tests()
        rows = indices(vectors[given.queries :], vectors[: given.queries], given.k, given.repeats)
        rows.append(encoding(given.encoder, given.images, given.repeats))
    except BadInput as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(problem.exit_code) from None
    print(f"{machine.describe()['cpu']}; {given.rows:,} × {given.dim}")
    print("| | CPU | GPU | ratio | |\n|---|---|---|---|---|")
    for what, cpu, gpu, remark in rows:
        ratio = cpu / gpu if what.endswith(" s") else gpu / cpu
        print(f"| {what} | {cpu:,.4g} | {gpu:,.4g} | {ratio:.2f} | {remark} |")
    raise SystemExit(1 if code else 0)


if __name__ == "__main__":
    main()
