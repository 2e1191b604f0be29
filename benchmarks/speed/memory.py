"""Measure the peak memory of indexing and encoding: `python -m benchmarks.speed.memory --help`.

Each measurement runs in its own process, and is the largest growth of its resident memory after its
libraries were loaded. `index` builds each backend from embeddings on disk, and hnswlib itself
from the same shards, and compares with the bytes of the vectors. `encode` encodes small images in
two numbers: the peak must not grow with them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.speed.overhead import clustered
from benchmarks.suite import machine
from retrieval.contracts import Json, Metric
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import Dtype, EncoderFacts, Facts, SourceFacts
from retrieval.storage.sets.shard_writer import ShardWriter
from retrieval.storage.sets.shards import vectors_of

BACKENDS = ("exact", "ivf", "ivfpq", "hnsw", "hnswlib", "hnsw-pca", "vamana")
SHARD_ROWS = 10_000
ENCODED = (50_000, 500_000)


def write_embeddings(folder: Path, rows: int, dim: int) -> None:
    """Write an embeddings folder with this number of vectors of unit length."""
    facts = Facts(
        encoder=EncoderFacts("none", "0" * 64, {}),
        dim=dim,
        dtype=Dtype.FLOAT32,
        metric=Metric.COSINE,
        source=SourceFacts("none", "0" * 64, rows),
        shard_images=SHARD_ROWS,
    )
    writer = ShardWriter(folder, facts)
    for start in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, rows - start)
        writer.write(
            ids=[f"{row:08d}.jpg" for row in range(start, start + count)],
            labels=[None] * count,
            paths=[None] * count,
            vectors=clustered(count, dim, seed=start),
        )
    writer.finish()


def write_images(path: Path, count: int) -> None:
    """Write a Parquet file with this number of images, a thousand of them distinct."""
    rng = np.random.default_rng(0)
    encoded = []
    with tempfile.TemporaryFile() as file:
        for _ in range(1000):
            file.seek(0)
            file.truncate()
            Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(file, "PNG")
            file.seek(0)
            encoded.append({"bytes": file.read(), "path": None})
    block = pa.table({"image": encoded})
    with pq.ParquetWriter(path, block.schema) as writer:
        for start in range(0, count, len(block)):
            writer.write_table(block.slice(0, count - start))


def grown(work: Callable[[], object]) -> int:
    """Return the largest growth of this process's resident memory during `work`, in bytes.

    Linux only: writing to `clear_refs` resets the peak.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kilobytes)


def index(backend: str, embeddings: Path) -> int:
    """Return the growth while the backend, or hnswlib itself, builds an index."""
    from retrieval.hits import InMemory
    from retrieval.index.build import build_index
    from retrieval.index.recall import measured_recall
    from retrieval.registry import make_indexer

    opened = open_embeddings(embeddings)
    next(opened.tables())  # pyarrow's own memory
    if backend == "hnswlib":
        return grown(lambda: _hnswlib(opened))
    # Load the libraries of a build before the measurement.
    few = clustered(100, opened.facts.dim, seed=0)
    small = make_indexer(backend, {"metric": Metric.COSINE}).build(few)
    measured_recall(small, InMemory(few), Metric.COSINE)
    with tempfile.TemporaryDirectory() as folder:
        return grown(lambda: build_index([opened], backend, Path(folder) / "index"))


def _hnswlib(opened: Any) -> None:
    import hnswlib

    graph = hnswlib.Index("cosine", opened.facts.dim)
    graph.init_index(len(opened), M=16, ef_construction=200)
    for table in opened.tables():
        graph.add_items(vectors_of(table))


def encode(images: Path) -> int:
    """Return the growth while the toy encoder encodes the file."""
    from retrieval.embedding.encode import encode_source
    from retrieval.images import open_source
    from retrieval.registry import open_encoder

    source, encoder = open_source(str(images)), open_encoder("toy")
    with tempfile.TemporaryDirectory() as folder:
        return grown(lambda: encode_source(source, encoder, Path(folder) / "out"))


def _apart(*arguments: str) -> int:
    command = [sys.executable, "-m", "benchmarks.speed.memory", *arguments]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(finished.stdout)


def measure_indices(rows: int, dim: int, backends: Sequence[str]) -> dict[str, Json]:
    """Return the growth for each backend in bytes, and as a ratio to the vectors' bytes."""
    size = 4 * rows * dim
    found: dict[str, Json] = {"rows": rows, "dim": dim, "vectors_bytes": size}
    with tempfile.TemporaryDirectory() as folder:
        write_embeddings(Path(folder) / "embeddings", rows, dim)
        for backend in backends:
            bytes_ = _apart("index", "--backend", backend, "--at", f"{folder}/embeddings")
            found[backend] = {"bytes": bytes_, "ratio": bytes_ / size}
    return found


def measure_encoding(counts: Sequence[int]) -> dict[str, Json]:
    """Return the growth for each number of images in bytes."""
    found: dict[str, Json] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            path = Path(folder) / f"{count}.parquet"
            write_images(path, count)
            found[str(count)] = {"bytes": _apart("encode", "--at", os.fspath(path))}
    return found


def main() -> None:
    """Print the measurements as JSON; with the internal option --at, one number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("index", "encode"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--backend", action="append", help="default: all")
    parser.add_argument("--images", type=int, action="append", help="default: 50000, 500000")
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    backends = given.backend or BACKENDS
    if given.at is not None:
        print(index(backends[0], given.at) if given.what == "index" else encode(given.at))
        return
    if given.what == "index":
        found = measure_indices(given.rows, given.dim, backends)
    else:
        found = measure_encoding(given.images or ENCODED)
    print(json.dumps({**found, "machine": machine.describe()}, indent=2))


if __name__ == "__main__":
    main()
