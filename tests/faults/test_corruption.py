"""Flipped bits in files: each is harmless or reported, on load and by `retr verify`.

`make faults` flips 1,000 bits in each folder, `make test` 60.
"""

import json
import random
import resource
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest

from retrieval import build_index, open_embeddings, open_index
from retrieval.contracts import Metric
from retrieval.errors import BadInput, RetrError
from retrieval.index.build_segments import build_segments
from retrieval.index.folder import INDEX
from retrieval.inspection import verify
from retrieval.pairs.calibration import Calibration, file_name
from retrieval.storage.cards import CARD, Card
from retrieval.storage.files import sealed, sha256_of
from tests.faults import victims
from tests.forking import forking
from tests.made import embeddings

FLIPS = 1000 if victims.ALL else 60
ROWS = 400
BACKENDS = ("exact", "ivf", "hnsw", "hnsw-pca", "hnsw-pca compact", "ivfpq", "vamana")
ADDRESS_SPACE_BYTES = 8 << 30  # the limit of a process that reads small files
CPU_SECONDS = 100  # the limit of such a process
CALIBRATION = file_name(Metric.COSINE)


def vectors() -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.random.default_rng(1).standard_normal((ROWS, 16), dtype=np.float32)


def made_embeddings(home: Path) -> Path:
    return embeddings(home / "set", vectors()).folder


def made_index(backend: str) -> Callable[[Path], Path]:
    def make(home: Path) -> Path:
        if backend == "vamana":
            pytest.importorskip("svs")
        sets = [embeddings(home / "set", vectors())]
        name, _, compact = backend.partition(" ")
        build_index(sets, name, home / "index", options={"compact": True} if compact else None)
        return home / "index"

    return make


def made_parts(home: Path) -> Path:
    sets = [embeddings(home / name, vectors()) for name in ("a", "b")]
    build_segments(
        sets,
        "exact",
        home / "index",
        2,
        engine=lambda build, tasks: ((number, build(task)) for number, task in enumerate(tasks)),
    )
    return home / "index"


def made_encoder(home: Path) -> Path:
    """Copy the golden trained encoder, with a calibration."""
    golden = Path(__file__).parents[1] / "golden" / "v2"
    shutil.copytree(golden / "encoder", home / "encoder")
    shutil.copy(golden / "calibration-isotonic.json", home / "encoder" / CALIBRATION)
    return home / "encoder"


FOLDERS = {
    "embeddings": made_embeddings,
    "encoder": made_encoder,
    "parts": made_parts,
    **{backend: made_index(backend) for backend in BACKENDS},
}


def content(folder: Path) -> Any:
    """Return what a reader gets: rows and vectors, neighbors, or card, weights and calibration."""
    if (folder / CARD).exists():
        card = Card.read(folder)
        weights = card.check_weights(folder).read_bytes()
        return card, weights, asdict(Calibration.read(folder / CALIBRATION))
    if (folder / "manifest.json").exists():
        rows, numbers = open_embeddings(folder).read()
        return rows.to_pydict(), numbers.tolist()
    opened = open_index(folder)
    hits = opened.index.search(vectors()[:9], 5)
    return opened.rows.to_pydict(), hits.rows.tolist(), hits.distances.tolist()


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_flipped_bit_is_harmless_or_reported(kind: str, tmp_path: Path) -> None:
    folder = FOLDERS[kind](tmp_path)
    whole = content(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    draw = random.Random(0)
    found = 0
    for _ in range(FLIPS):
        file = draw.choice(files)
        before = file.read_bytes()
        after = bytearray(before)
        after[draw.randrange(len(after))] ^= 1 << draw.randrange(8)
        file.write_bytes(after)
        what = f"{file.name}, {sum(a != b for a, b in zip(before, after, strict=True))} byte"
        try:
            assert content(folder) == whole, f"wrong content without an error: {what}"
            loaded = True
        except BadInput:
            loaded = False
        try:
            verified = not verify(folder).problems
        except BadInput:
            verified = False
        assert loaded or not verified, f"verify reported no problem: {what}"
        found += not loaded
        file.write_bytes(before)
    assert found > FLIPS / 2
    assert content(folder) == whole


@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_native_files_with_right_hashes_are_read_or_refused(
    backend: str, tmp_path: Path
) -> None:
    """A file whose bit was flipped before it was hashed crashes no process."""
    folder = made_index(backend)(tmp_path)
    log = tmp_path / "log"
    for seed in range(1, 1 + max(1, FLIPS // 100)):
        process = forking().Process(target=_flip_many, args=(folder, seed, log))
        process.start()
        process.join()
        lines = log.read_text().splitlines()
        assert process.exitcode == 0, f"killed by signal {-(process.exitcode or 0)}: {lines[-1]}"
        assert len(lines) == min(FLIPS, 100)
        assert not [line for line in lines if "unexpected" in line]


def _flip_many(folder: Path, seed: int, log_file: Path) -> None:
    with log_file.open("w", buffering=1) as log:
        _flip_and_read(folder, seed, log)


def _flip_and_read(folder: Path, seed: int, log: TextIO) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    draw = random.Random(seed)
    copy = folder.parent / f"copy{seed}"
    facts = json.loads((folder / INDEX).read_text())
    native = [name for name in facts["files"] if name != "rows.parquet"]
    for _ in range(min(FLIPS, 100)):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        file = copy / draw.choice(native)
        size = file.stat().st_size
        at = draw.randrange(min(size, 300)) if draw.random() < 0.4 else draw.randrange(size)
        after = bytearray(file.read_bytes())
        after[at] ^= 1 << draw.randrange(8)
        file.write_bytes(after)
        files = {name: sha256_of(copy / name) for name in facts["files"]}
        (copy / INDEX).write_text(json.dumps(sealed({**facts, "files": files})))
        log.write(f"\n{file.name} at {at}" if log.tell() else f"{file.name} at {at}")
        try:
            index = open_index(copy).index
            hits = index.search(vectors()[:9], 5)
            assert ((hits.rows >= -1) & (hits.rows < ROWS)).all()
            index.search(vectors()[:9], 5, np.arange(ROWS) % 7 == 0)
        except RetrError:
            pass
        except Exception as error:
            log.write(f" unexpected: {error!r}")
