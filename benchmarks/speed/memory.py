"""Measure the peak memory of indexing and encoding: `python -m benchmarks.speed.memory --help`.

Each measurement runs in its own process, and is the largest growth of its resident memory after its
libraries were loaded. `index` builds each backend from embeddings on disk, and hnswlib itself
from the same shards, opens the index and searches it, and compares with the bytes of the vectors.
`encode` encodes small images in two numbers: the peak must not grow with them.
"""

import argparse
import gc
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
from retrieval.contracts import Json, Metric, Vectors
from retrieval.runtime.memory import give_back
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import Dtype, EncoderFacts, Facts, SourceFacts
from retrieval.storage.sets.shard_writer import ShardWriter
from retrieval.storage.sets.shards import vectors_of

BACKENDS = ("exact", "ivf", "ivfpq", "hnsw", "hnswlib", "hnsw-pca", "vamana")
SHARD_ROWS = 10_000
ENCODED = (50_000, 500_000)
EMBEDDINGS = "embeddings"
Options = dict[str, str]


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


def grown(work: Callable[[], object]) -> tuple[int, int]:
    """Return the largest growth of this process's resident memory during `work`, and that after
    it, while its result is held: in bytes.

    Linux only: writing to `clear_refs` resets the peak. What is free is given back first, so that
    the work cannot use it without growth.
    """
    gc.collect()
    give_back()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = work()
    grown = _status("VmHWM") - before, _status("VmRSS") - before
    del result
    return grown


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kilobytes)


def index(backend: str, home: Path, options: Options, opening: bool) -> tuple[int, int]:
    """Return the growth while the backend, or hnswlib itself, builds or opens home/BACKEND."""
    from retrieval.index.build import build_index
    from retrieval.index.folder import open_index

    opened = open_embeddings(home / EMBEDDINGS)
    dim = opened.facts.dim
    few = clustered(100, dim, seed=0)
    with tempfile.TemporaryDirectory() as folder:  # the libraries' own memory
        write_embeddings(Path(folder) / EMBEDDINGS, 100, dim)
        if backend == "hnswlib":
            next(open_embeddings(Path(folder) / EMBEDDINGS).tables())
            return grown(lambda: _hnswlib(opened))
        small = [open_embeddings(Path(folder) / EMBEDDINGS)]
        build_index(small, backend, Path(folder) / "index", options=options)
        open_index(Path(folder) / "index").index.search(few, 10)
    if opening:
        return grown(lambda: _searched(home / backend, few))
    return grown(lambda: build_index([opened], backend, home / backend, options=options))


def _searched(folder: Path, queries: Vectors) -> object:
    from retrieval.index.folder import open_index

    opened = open_index(folder)
    opened.index.search(queries, 10)
    return opened


def _hnswlib(opened: Any) -> None:
    import hnswlib

    graph = hnswlib.Index("cosine", opened.facts.dim)
    graph.init_index(len(opened), M=16, ef_construction=200)
    for table in opened.tables():
        graph.add_items(vectors_of(table))


def encode(images: Path) -> tuple[int, int]:
    """Return the growth while the toy encoder encodes the file."""
    from retrieval.embedding.encode import encode_source
    from retrieval.images import open_source
    from retrieval.registry import open_encoder

    source, encoder = open_source(str(images)), open_encoder("toy")
    with tempfile.TemporaryDirectory() as folder:
        return grown(lambda: encode_source(source, encoder, Path(folder) / "out"))


def _apart(*arguments: str) -> tuple[int, int]:
    command = [sys.executable, "-m", "benchmarks.speed.memory", *arguments]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak, after = finished.stdout.split()
    return int(peak), int(after)


def measure_indices(
    rows: int, dim: int, backends: Sequence[str], options: Options
) -> dict[str, Json]:
    """Return bytes for each backend, and as ratios to the vectors' bytes.

    `building` and `opening`: the peaks while it is built, and while it is opened and searched;
    `opened`: after that; `files`: the size of the index folder. hnswlib itself is only built.
    """
    size = 4 * rows * dim
    found: dict[str, Json] = {"rows": rows, "dim": dim, "vectors_bytes": size}
    with tempfile.TemporaryDirectory() as folder:
        write_embeddings(Path(folder) / EMBEDDINGS, rows, dim)
        for backend in backends:
            given = ["index", "--backend", backend, "--at", folder]
            given += [f"--set={name}={value}" for name, value in options.items()]
            bytes_ = {"building": _apart(*given)[0]}
            if backend != "hnswlib":
                bytes_["opening"], bytes_["opened"] = _apart(*given, "--open")
                files = [path for path in (Path(folder) / backend).rglob("*") if path.is_file()]
                bytes_["files"] = sum(path.stat().st_size for path in files)
            found[backend] = {
                name: {"bytes": met, "ratio": met / size} for name, met in bytes_.items()
            }
    return found


def measure_encoding(counts: Sequence[int]) -> dict[str, Json]:
    """Return the growth for each number of images in bytes."""
    found: dict[str, Json] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            path = Path(folder) / f"{count}.parquet"
            write_images(path, count)
            peak, _ = _apart("encode", "--at", os.fspath(path))
            found[str(count)] = {"bytes": peak}
    return found


def main() -> None:
    """Print the measurements as JSON; with the internal option --at, two numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("index", "encode"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--backend", action="append", help="default: all")
    parser.add_argument("--images", type=int, action="append", help="default: 50000, 500000")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    backends = given.backend or BACKENDS
    options: Options = dict(option.split("=", 1) for option in given.set)
    if given.at is not None and given.what == "index":
        print(*index(backends[0], given.at, options, given.open))
        return
    if given.at is not None:
        print(*encode(given.at))
        return
    if given.what == "index":
        found = measure_indices(given.rows, given.dim, backends, options)
    else:
        found = measure_encoding(given.images or ENCODED)
    print(json.dumps({**found, "machine": machine.describe()}, indent=2))


if __name__ == "__main__":
    main()
