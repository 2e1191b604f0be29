"""A small recipe for tests of training, and the means to stop a run and compare weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from encoders.training.recipe import Augmentation, Data, Loss, Optimizer, Recipe, Sampler
from encoders.training.trainer import train
from retrieval.storage.cards import WEIGHTS

SMALL = Recipe(
    encoder="siamese",
    network={"widths": [8, 8, 8], "dim": 6, "class_sharpness": 16.0},
    losses=(
        Loss("normalised-softmax", options={"temperature": 0.125}),
        Loss("supervised-contrastive", weight=0.5),
    ),
    epochs=2,
    data=Data("digits", per_class=20, validation=40),
    sampler=Sampler(batch=40),
    augmentation=Augmentation(flip="alternating", translate=2),
    optimizer=Optimizer("muon", lr=0.1, other_lr=0.02),
)


CLUSTERED = replace(SMALL, losses=(Loss("normalised-softmax", labels="cluster"),))


class Stop(Exception):
    """Raised in the midst of a run."""


def stop_after(steps: int) -> Callable[[int, int], None]:
    calls = 0

    def on_step(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == steps:
            raise Stop

    return on_step


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def same(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def train_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the small recipe and return the folder of the encoder."""
    folder = tmp_path_factory.mktemp("trained") / "encoder"
    train(SMALL, folder)
    return folder
