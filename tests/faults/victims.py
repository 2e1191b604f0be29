"""Runs that write, each in its own process, to be killed by tests."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.forking import forking

# Audit events (`sys.addaudithook`) of the changes of files that count as steps.
STEPS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"})
TIMEOUT_SECONDS = 120
ALL = "RETR_FAULTS" in os.environ
"""Whether to test all faults (`make faults`) or some (`make test`)."""

Victim = Callable[[Path], None]
"""Function of a folder that it works in. Running it again completes a killed run."""


def encode(folder: Path) -> None:
    """Encode the folder `images` into `out`, in shards of 10."""
    from encoders.toy import Toy
    from retrieval.embedding.encode import encode_source
    from retrieval.images import open_source

    encode_source(open_source(str(folder / "images")), Toy(), folder / "out", shard_images=10)


def update(folder: Path) -> None:
    """Bring the embeddings in `out` up to date with the folder `images`, which was moved."""
    from retrieval.storage.sets.shard_writer import relocate_embeddings

    relocate_embeddings(folder / "out", str(folder / "images"))
    encode(folder)


def index(folder: Path) -> None:
    """Build an HNSW index over `first` in `out`, which may hold an exact index."""
    from retrieval import build_index, open_embeddings

    options = {"build_threads": 1}
    build_index([open_embeddings(folder / "first")], "hnsw", folder / "out", options=options)


def parts(folder: Path) -> None:
    """Build an index over `first` in two segments."""
    from retrieval import open_embeddings
    from retrieval.index.build_segments import build_segments

    build_segments(
        [open_embeddings(folder / "first")],
        "exact",
        folder / "out",
        2,
        engine=lambda build, tasks: ((n, build(task)) for n, task in enumerate(tasks)),
    )


def add(folder: Path) -> None:
    """Add the rows of `second` to the index in `out`."""
    from retrieval import open_embeddings
    from retrieval.index.update import add_rows

    add_rows(folder / "out", [open_embeddings(folder / "second")])


def train(folder: Path) -> None:
    """Train a small encoder of digits."""
    import torch

    from encoders.training import run as training_run
    from encoders.training.recipe import Augmentation, Data, Loss, Optimizer, Recipe, Sampler
    from encoders.training.trainer import train

    torch.set_num_threads(1)
    if ALL:
        training_run.CURVES_SECONDS = 0  # kill while curves are drawn after each epoch, too
    recipe = Recipe(
        encoder="siamese",
        network={"widths": [8, 8, 8], "dim": 6},
        losses=(Loss("supervised-contrastive"),),
        epochs=2,
        data=Data("digits", per_class=12, validation=20),
        sampler=Sampler(batch=40),
        augmentation=Augmentation(flip="alternating", translate=2),
        optimizer=Optimizer("muon", lr=0.1, other_lr=0.02),
    )
    train(replace(recipe), folder / "out")


@dataclass(frozen=True, slots=True)
class Ended:
    """End of a run: whether it was killed, its seconds, and its number of steps."""

    killed: bool
    seconds: float
    steps: int


def run(victim: Victim, folder: Path, after: float | None = None, at: int | None = None) -> Ended:
    """Run a victim in another process, and kill it after some seconds or at a step if given."""
    context = forking()
    counter = context.Value("i", 0, lock=False)  # a killed process would keep the lock
    started = context.Event()
    arguments = (victim, folder, at, counter, started)
    process = context.Process(target=_run, args=arguments)
    process.start()
    assert started.wait(TIMEOUT_SECONDS), "the process did not start"
    began = time.perf_counter()
    process.join(TIMEOUT_SECONDS if after is None else after)
    if after is not None and process.is_alive():
        process.kill()
        process.join(TIMEOUT_SECONDS)
    seconds = time.perf_counter() - began
    assert process.exitcode in (0, -signal.SIGKILL), f"exit code {process.exitcode}"
    return Ended(process.exitcode != 0, seconds, counter.value)


def _run(victim: Victim, folder: Path, at: int | None, counter: Any, started: Any) -> None:
    steps = 0
    inside = str(folder)

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if event not in STEPS or not str(arguments[0]).startswith(inside):
            return
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        counter.value = steps

    sys.addaudithook(on_event)
    started.set()
    victim(folder)
