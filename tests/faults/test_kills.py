"""Runs killed at any moment: running again completes them, and readers never see half a result.

`make faults` kills each run at 100 random moments and at every step that changes a file; `make
test` at 3 moments and 6 steps, and a training at 1 moment and 2 steps.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval import build_index, open_embeddings, open_index
from retrieval.errors import BadInput
from retrieval.inspection import verify
from retrieval.storage.cards import Card, is_trained
from tests.faults import victims
from tests.made import embeddings

MOMENTS = int(os.environ.get("RETR_FAULTS", "3"))
STEPS = None if victims.ALL else 6  # steps at which a run is killed; None for all
MAX_EXTRA_STEPS = 20  # steps of a run after a kill, beyond those of an undisturbed one

Prepare = Callable[[Path], None]


def images(folder: Path) -> None:
    for number in range(45):
        place = folder / "images" / f"label{number % 3}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        color = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(color).save(place)
    (folder / "images" / "label0" / "3.png").write_bytes(b"not an image")


def changed_images(folder: Path) -> None:
    """Encode images; then add 30, delete 2, rename one, change one and touch one."""
    images(folder)
    victims.encode(folder)
    place = folder / "images"
    for number in range(30):
        file = place / "more" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (8 * number, 0, 99)).save(file)
    (place / "label1" / "1.png").unlink()
    (place / "label1" / "40.png").unlink()
    (place / "label2" / "2.png").rename(place / "label2" / "renamed.png")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(place / "label0" / "9.png")
    os.utime(place / "label0" / "12.png", (1, 1))


def vectors(rows: int, seed: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.random.default_rng(seed).standard_normal((rows, 8), dtype=np.float32)


def sets(folder: Path) -> None:
    embeddings(folder / "first", vectors(400, 1))
    embeddings(folder / "second", vectors(200, 2))


def with_index(folder: Path) -> None:
    sets(folder)
    build_index([open_embeddings(folder / "first")], "exact", folder / "out")


def nothing(folder: Path) -> None:
    folder.mkdir()


CASES = {
    "encode": (images, victims.encode),
    "update": (changed_images, victims.update),
    "index": (sets, victims.index),
    "index-again": (with_index, victims.index),
    "parts": (sets, victims.parts),
    "parts-again": (with_index, victims.parts),
    "add": (with_index, victims.add),
    "train": (nothing, victims.train),
}


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a result but locks and files with times."""
    timed = {"card.json", "log.csv", "curves.png"}  # they hold the duration of a training
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and path.name not in timed
    }


class Case:
    """A run, the folder that it starts with, and its result if it is not killed."""

    def __init__(self, prepare: Prepare, victim: victims.Victim, home: Path) -> None:
        self.victim = victim
        self.prepared = home / "prepared"
        self.work = home / "work"
        prepare(self.prepared)
        self.before = self._out(self.prepared)
        self._fresh()
        victims.run(victim, self.work)  # fills caches, so that the next run is timed without them
        self._fresh()
        self.ended = victims.run(victim, self.work)
        self.whole = content(self.work / "out")

    @staticmethod
    def _out(folder: Path) -> dict[str, bytes] | None:
        return content(folder / "out") if (folder / "out").exists() else None

    def _fresh(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.prepared, self.work)

    def kill(self, after: float | None = None, at: int | None = None) -> bool:
        """Kill a run, check readers, run it again, and check the result.

        Return whether the run was killed before its end.
        """
        self._fresh()
        ended = victims.run(self.victim, self.work, after, at)
        self._check_readers()
        again = victims.run(self.victim, self.work)
        assert not again.killed
        assert again.steps <= self.ended.steps + MAX_EXTRA_STEPS
        assert content(self.work / "out") == self.whole
        return ended.killed

    def _check_readers(self) -> None:
        """Check that readers get the earlier result or the final one, whole."""
        out = self.work / "out"
        try:
            if (out / "manifest.json").exists():
                rows, _ = open_embeddings(out).read()
                assert len(rows) in (44, 72)  # before and after an update
                problems = verify(out).problems if self.before else ()
                assert all("is not in the manifest" in problem for problem in problems), problems
            elif is_trained(out):
                Card.read(out).check_weights(out)
            else:
                opened = open_index(out)
                found = opened.index.search(vectors(5, 1), 1).rows[:, 0]
                assert found.tolist() == [0, 1, 2, 3, 4]
                assert len(opened.index) in (400, 600)
                assert not verify(out).problems
        except BadInput as error:
            message = str(error)
            unfinished = ("is not complete", "not an index", "neither embeddings", "is missing")
            assert any(words in message for words in unfinished), message
            assert self.before is None, f"the earlier result is lost: {message}"


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(*CASES[request.param], tmp_path_factory.mktemp(request.param))


def test_runs_killed_at_random_moments(case: Case) -> None:
    draw = random.Random(0)
    for _ in range(MOMENTS if victims.ALL or case.victim is not victims.train else 1):
        after = draw.uniform(0, case.ended.seconds)
        while not case.kill(after):  # this run ended sooner than the timed one
            after /= 2


def test_runs_killed_at_steps_that_change_files(case: Case) -> None:
    steps = range(case.ended.steps)
    assert len(steps) > 6
    few = 2 if case.victim is victims.train else STEPS  # a training takes seconds to continue
    for step in steps if STEPS is None else random.Random(0).sample(steps, few):
        assert case.kill(at=step), f"step {step} was not reached"
