"""Fixtures: the command, and a gallery that is encoded and indexed once."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import save
from running import Retr, fork, launch, snapshot

from retrieval import build_index, open_embeddings, open_encoder
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source

LABELS = ("blue", "green", "red")
PER_LABEL = 20
BACKENDS = ("exact", "hnsw", "ivf")


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures of three labels, their toy embeddings, and an index of each backend."""

    folder: Path

    @property
    def images(self) -> Path:
        """images/{blue,green,red}/0.png to 19.png"""
        return self.folder / "images"

    @property
    def image(self) -> Path:
        """One of the images."""
        return self.images / "green" / "7.png"

    @property
    def embeddings(self) -> Path:
        """The embeddings folder."""
        return self.folder / "embeddings"

    def index(self, backend: str = "exact") -> Path:
        """The index folder of the backend."""
        return self.folder / backend

    def read(self) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
        """The rows (id, label, path) and vectors (60, 3)."""
        rows, vectors = open_embeddings(self.embeddings).read()
        return rows.to_pylist(), vectors


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    """Return the gallery, and fail if a command changed it."""
    made = Gallery(tmp_path_factory.mktemp("gallery"))
    for group, label in enumerate(LABELS):
        for number in range(PER_LABEL):
            save(made.images / label / f"{number}.png", seed=100 * group + number)
    encode_source(open_source(str(made.images)), open_encoder("toy"), made.embeddings)
    for backend in BACKENDS:
        build_index([open_embeddings(made.embeddings)], backend, made.index(backend))
    before = snapshot(made.folder)
    yield made
    assert snapshot(made.folder) == before


@pytest.fixture
def launched() -> None:
    """Start each run as a new process, as a user does."""


@pytest.fixture
def retr(tmp_path: Path, request: pytest.FixtureRequest) -> Retr:
    """Return the command, run in the folder of the test."""
    return Retr(tmp_path, start=launch if "launched" in request.fixturenames else fork)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Return a function that copies a folder, so that the copy can be damaged."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copied-{folder.name}"))

    return copy
