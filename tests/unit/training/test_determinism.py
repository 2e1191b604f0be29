"""Determinism: the same seed, machine and versions give the same files, byte by byte."""

import json
from pathlib import Path

import numpy as np
import pytest

from encoders.toy import Toy
from retrieval import build_index, open_embeddings
from retrieval.contracts import Vectors
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.registry import open_encoder
from tests.made import embeddings

THREADED = {"hnsw": {"build_threads": 1}}
"""Options by which a backend builds the same graph every time."""


def vectors() -> Vectors:
    return np.random.default_rng(5).standard_normal((3000, 24), dtype=np.float32)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("backend", ["exact", "ivf", "hnsw", "hnsw-pca", "ivfpq"])
def test_indices(tmp_path: Path, backend: str) -> None:
    sets = [embeddings(tmp_path / "set", vectors())]
    options = THREADED.get(backend, {})
    for name in ("one", "two"):
        build_index(sets, backend, tmp_path / name, options=options)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_seed_is_another_index(tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "set", vectors())]
    for seed in (1, 2):
        options = {"seed": seed, "build_threads": 1}
        build_index(sets, "hnsw", tmp_path / str(seed), options=options)
    files = [content(tmp_path / str(seed))["index.hnsw"] for seed in (1, 2)]
    assert files[0] != files[1]


@pytest.mark.parametrize("name", ["toy", "siamese-quick"])
def test_shards(photos: Path, tmp_path: Path, name: str) -> None:
    for folder in ("one", "two"):
        encoder = Toy() if name == "toy" else open_encoder(name, "cpu")
        encode_source(open_source(str(photos)), encoder, tmp_path / folder, shard_images=11)
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert one == two
    assert len(json.loads(one["manifest.json"])["shards"]) == 3
    assert np.isfinite(open_embeddings(tmp_path / "one").vectors()).all()
