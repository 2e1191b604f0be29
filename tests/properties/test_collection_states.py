"""A collection whose files change at random has the rows and answers of a fresh run.

`RETR_STATES` sets the number of steps; `make test-all` takes 2,000.
"""

import os
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image

from encoders.toy import Toy
from retrieval.contracts import Images, Vectors
from retrieval.embedding.encode import bring_up_to_date
from retrieval.images import open_source
from retrieval.index.build import build_index
from retrieval.index.folder import open_index
from retrieval.index.follow import follow_embeddings
from retrieval.inspection import verify
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import Manifest
from retrieval.storage.sets.shard_writer import relocate_embeddings

SHARD_IMAGES = 4
STEPS = int(os.environ.get("RETR_STATES", "60"))
STEPS_OF_A_RUN = 20
UPDATED_STEPS = 3
NUMBERS = st.integers(0, 10**6)


class Stopped(Exception):
    """The run was killed."""


class Stopping(Toy):
    """The toy encoder, which stops the run after some batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def encode(self, images: Images) -> Vectors:
        self.batches -= 1
        if self.batches < 0:
            raise Stopped
        return super().encode(images)


class Collection(RuleBasedStateMachine):
    """A folder, its embeddings and an index, and what may happen to them.

    Whatever rules hypothesis chooses, the collection is brought up to date and checked after every
    third step, and at the end.
    """

    done: ClassVar[Counter[str]] = Counter()  # steps, and updates that were checked

    @initialize()
    def start(self) -> None:
        self.home = TemporaryDirectory()
        self.base = Path(self.home.name)
        self.folder = self.base / "photos"
        self.embeddings = self.base / "embeddings"
        self.index = self.base / "index"
        self.clock = 10**18
        for seed in range(3):
            self.write(f"{seed}.png", seed)

    def teardown(self) -> None:
        if hasattr(self, "home"):
            self.update()
            self.home.cleanup()

    def write(self, name: str, seed: int) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        color = np.random.default_rng(seed).integers(256, size=3, dtype=np.uint8)
        Image.fromarray(np.broadcast_to(color, (9, 9, 3)).copy()).save(path)
        self.touch(path)

    def touch(self, path: Path) -> None:
        """Give the file a time of its own, as changes some milliseconds apart have."""
        self.clock += 10**7
        os.utime(path, ns=(self.clock, self.clock))

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*.png"))

    def pick(self, number: int) -> Path:
        files = self.files()
        return files[number % len(files)]

    @rule(seed=NUMBERS, folder=st.sampled_from(["", "a/", "b/c/"]))
    def add(self, seed: int, folder: str) -> None:
        self.write(f"{folder}{seed}.png", seed)

    @precondition(lambda self: len(self.files()) > 1)
    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        self.pick(number).unlink()

    @rule(number=NUMBERS, seed=NUMBERS)
    def change(self, number: int, seed: int) -> None:
        self.write(str(self.pick(number).relative_to(self.folder)), seed)

    @rule(number=NUMBERS)
    def spoil(self, number: int) -> None:
        if len(self.files()) > 2:
            path = self.pick(number)
            path.write_bytes(b"no image")
            self.touch(path)
            self.write("always.png", 1)

    @rule(number=NUMBERS, seed=NUMBERS)
    def rename(self, number: int, seed: int) -> None:
        path = self.pick(number)
        path.rename(path.with_name(f"renamed{seed}.png"))

    @rule(number=NUMBERS, seed=NUMBERS)
    def copy(self, number: int, seed: int) -> None:
        path, copy = self.pick(number), self.folder / f"copy{seed}.png"
        if path != copy:
            shutil.copy2(path, copy)

    @rule(one=NUMBERS, other=NUMBERS)
    def swap(self, one: int, other: int) -> None:
        a, b = self.pick(one), self.pick(other)
        aside = self.base / "aside"
        a.rename(aside)
        if a != b:
            b.rename(a)
        aside.rename(b)

    @rule(number=NUMBERS)
    def touch_one(self, number: int) -> None:
        self.touch(self.pick(number))

    @rule(number=NUMBERS, stars=st.integers(0, 5))
    def describe(self, number: int, stars: int) -> None:
        path = self.pick(number).relative_to(self.folder)
        metadata = self.folder / "metadata.csv"
        metadata.write_text(f"file_name,stars\n{path},{stars}\n")
        self.touch(metadata)

    @rule()
    def describe_nothing(self) -> None:
        (self.folder / "metadata.csv").unlink(missing_ok=True)

    @rule()
    def move(self) -> None:
        moved = self.base / ("photos" if self.folder.name == "moved" else "moved")
        self.folder.rename(moved)
        self.folder = moved
        if (self.embeddings / "manifest.json").exists():
            relocate_embeddings(self.embeddings, str(moved))

    @rule(batches=st.integers(0, 3))
    def kill(self, batches: int) -> None:
        with suppress(Stopped):
            self.encode(Stopping(batches))

    @invariant()
    def update_after_every_third_step(self) -> None:
        self.done["steps"] += 1
        if self.done["steps"] % UPDATED_STEPS == 0 and hasattr(self, "home"):
            self.update()

    def update(self) -> None:
        self.encode(Toy())
        sets = [open_embeddings(self.embeddings)]
        metric = sets[0].facts.metric
        if follow_embeddings(sets, "hnsw", self.index, metric) is None:
            build_index(sets, "hnsw", self.index)
        self.check()

    def encode(self, encoder: Toy, folder: Path | None = None) -> None:
        bring_up_to_date(
            open_source(str(self.folder)),
            encoder,
            folder or self.embeddings,
            shard_images=SHARD_IMAGES,
        )

    def check(self) -> None:
        """Check that embeddings and index are those of a fresh run."""
        self.done["updates"] += 1
        fresh = self.base / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        self.encode(Toy(), fresh)
        assert rows_of(self.embeddings) == rows_of(fresh)
        assert columns_of(self.embeddings) == columns_of(fresh)
        assert Manifest.read(self.embeddings).skipped == Manifest.read(fresh).skipped
        rows, vectors = open_embeddings(self.embeddings).read()
        opened = open_index(self.index)
        assert opened.rows.equals(rows)
        assert opened.columns.table().equals(open_embeddings(self.embeddings).columns())
        nearest = opened.index.search(vectors, 1).distances[:, 0]
        np.testing.assert_allclose(nearest, 0, atol=1e-4)
        for folder in (self.embeddings, self.index):
            assert verify(folder).problems == ()

    @invariant()
    def a_set_that_was_complete_stays_readable(self) -> None:
        if hasattr(self, "embeddings") and (self.embeddings / "manifest.json").exists():
            manifest = Manifest.read(self.embeddings)
            if manifest.complete:
                open_embeddings(self.embeddings).read()


def rows_of(folder: Path) -> list[str]:
    return sorted(
        repr(row) for table in open_embeddings(folder).tables() for row in table.to_pylist()
    )


def columns_of(folder: Path) -> dict[str, object]:
    """The columns for filters of each image, by its id."""
    embeddings = open_embeddings(folder)
    rows = embeddings.columns().to_pylist()
    return dict(zip(embeddings.ids().to_pylist(), rows, strict=True))


def run(steps: int) -> None:
    Collection.done.clear()
    Collection.TestCase.settings = settings(
        max_examples=-(-2 * steps // STEPS_OF_A_RUN),  # some have fewer steps
        stateful_step_count=STEPS_OF_A_RUN,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )
    Collection.TestCase("runTest").runTest()
    assert Collection.done["steps"] >= steps
    assert Collection.done["updates"] >= steps / UPDATED_STEPS


def test_a_collection_equals_a_fresh_run_after_random_changes() -> None:
    run(STEPS)


@pytest.mark.slow
def test_a_collection_equals_a_fresh_run_after_two_thousand_changes() -> None:
    run(2000)
