"""Fixtures: the command, and a gallery that is encoded and indexed once."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retrieval import build_index, open_embeddings, open_encoder
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from tests.cli.gallery import BACKENDS, Gallery
from tests.cli.pictures import save
from tests.cli.running import Retr, fork, launch, snapshot

LABELS = ("blue", "green", "red")
PER_LABEL = 20


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
