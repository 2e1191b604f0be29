"""Stopped and killed training runs continue; a folder of another run is refused."""

import json
import resource
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from encoders.training import run as training_run
from encoders.training.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from encoders.training.recipe import Augmentation, Loss, Optimizer, Recipe, Sampler
from encoders.training.reports import CURVES
from encoders.training.trainer import train
from retrieval.errors import BadData, CannotWrite, Mismatch, RetrError
from retrieval.storage.cards import CARD, Card
from retrieval.storage.files import sealed
from tests.examples import slow
from tests.forking import forking
from tests.training_runs import SMALL, Stop, same, stop_after, train_small


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory)


def test_settings_missing_in_old_runs_count_as_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was begun before a setting was there goes on, and is known when it is done."""
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(Stop):
        train(SMALL, tmp_path, on_step=stop_after(3))
    state = load_checkpoint(tmp_path)
    assert state is not None
    for section, name in (("augmentation", "cutmix"), ("network", "mirror")):
        del state["recipe"][section][name]
    save_checkpoint(tmp_path, state)
    seen: list[int] = []
    card = train(SMALL, tmp_path, on_step=lambda done, total: seen.append(done))
    assert seen[0] == 3 * 40  # the stopped step was not saved
    document = json.loads((tmp_path / CARD).read_text())
    del document["training"]["recipe"]["augmentation"]["cutmix"]
    (tmp_path / CARD).write_text(json.dumps(sealed(document)))
    assert train(SMALL, tmp_path).training.minutes == card.training.minutes
    with pytest.raises(Mismatch, match="is of another recipe"):
        train(replace(SMALL, augmentation=Augmentation(cutmix=0.5)), tmp_path)


@pytest.mark.parametrize("steps", [1, 4, *map(slow, (3, 5, 7))])
def test_stopped_run_ends_with_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0)  # after every step
    with pytest.raises(Stop):
        train(SMALL, tmp_path, on_step=stop_after(steps))
    assert not (tmp_path / CARD).exists()
    seen = []
    train(SMALL, tmp_path, on_step=lambda done, total: seen.append(done))
    assert seen == [40 * step for step in range(steps, 9)]  # the stopped step was not saved
    assert same(trained, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize(
    "recipe",
    [
        replace(SMALL, optimizer=Optimizer("adamw", lr=0.01, weight_decay=0.1, warmup=0.3)),
        replace(SMALL, encoder="autoencoder", network={"width": 8, "dim": 6},
                losses=(Loss("reconstruction"),),
                optimizer=Optimizer("sgd", lr=0.05), sampler=Sampler("balanced", batch=40)),
        slow(replace(SMALL, encoder="autoencoder",
                network={"width": 8, "blocks": [8, 8, 8], "dim": 10, "whitening": 0.5},
                losses=(Loss("reconstruction"), Loss("nt-xent", 0.05, "image"),
                        Loss("normalised-softmax", 0.1, "cluster")),
                data=replace(SMALL.data, clusters=5, clustered_by="siamese-quick"),
                augmentation=Augmentation(flip="random", smallest_crop=0.5, views=2))),
    ],
    ids=["adamw", "sgd", "autoencoder"],
)  # fmt: skip
def test_stopped_run_of_any_recipe_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0)
    train(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        train(recipe, tmp_path / "stopped", on_step=stop_after(3))
    train(recipe, tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped")


def train_slowly(folder: Path) -> None:
    training_run.CHECKPOINT_SECONDS = 0
    train(SMALL, folder, on_step=lambda done, total: time.sleep(0.2))


@pytest.mark.slow
def test_killed_run_continues(trained: Path, tmp_path: Path) -> None:
    process = forking().Process(target=train_slowly, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 100
    while not (tmp_path / CHECKPOINT).exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.join()
    assert not (tmp_path / CARD).exists()
    train(SMALL, tmp_path)
    assert same(trained, tmp_path)


def test_a_finished_run_is_not_run_again(trained: Path) -> None:
    before = (trained / CARD).stat().st_mtime_ns
    card = train(SMALL, trained, on_step=stop_after(1))
    assert card == Card.read(trained)
    assert (trained / CARD).stat().st_mtime_ns == before


def test_another_recipe_is_refused_and_nothing_overwritten(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(SMALL, optimizer=replace(SMALL.optimizer, lr=0.2))
    with pytest.raises(Mismatch, match=r"card.json is of another recipe \(its optimizer is"):
        train(other, trained)
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(Stop):
        train(SMALL, tmp_path, on_step=stop_after(3))
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(Mismatch, match=r"checkpoint.safetensors is of another recipe"):
        train(other, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_description_does_not_change_the_recipe(trained: Path) -> None:
    train(replace(SMALL, about="small", network={**SMALL.network, "depth": 2}), trained)


def test_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"version": 99})
    with pytest.raises(BadData, match="has version 99, this retr writes 1; delete it"):
        train(SMALL, tmp_path)


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(BadData, match=r"cannot read .*checkpoint.safetensors .* delete it"):
        train(SMALL, tmp_path)


def train_on_full_disk(folder: Path, limit: int, writer: Connection) -> None:
    """Train where files have at most `limit` bytes, and send the error."""
    sys.dont_write_bytecode = True  # Python does not notice that it wrote half of a .pyc file
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    training_run.CHECKPOINT_SECONDS = 0
    try:
        train(SMALL, folder)
    except RetrError as error:
        writer.send(str(error))


def test_full_disk_keeps_the_last_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0)
    limit = 40_000  # bytes; a checkpoint takes more
    with pytest.raises(Stop):
        train(SMALL, tmp_path, on_step=stop_after(3))
    before = (tmp_path / CHECKPOINT).read_bytes()
    assert len(before) > limit
    (reader, writer) = forking().Pipe(duplex=False)
    process = forking().Process(target=train_on_full_disk, args=(tmp_path, limit, writer))
    process.start()
    process.join(100)
    assert process.exitcode == 0
    message = reader.recv()
    reader.close()
    writer.close()
    assert message.startswith(f"cannot write into {tmp_path}")
    assert "the last checkpoint is whole" in message
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [p for p in tmp_path.iterdir() if "partial" in p.name] == []
    train(SMALL, tmp_path)
    assert same(trained, tmp_path)


def test_full_disk_while_curves_are_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, rows: object) -> None:
        raise CannotWrite(folder / CURVES, OSError(28, "No space left on device"))

    with monkeypatch.context() as patched:
        patched.setattr(training_run, "CURVES_SECONDS", 0)  # after every epoch
        patched.setattr(training_run, "draw_log", full)
        with pytest.raises(RetrError, match="the last checkpoint is whole") as e:
            train(SMALL, tmp_path)
    assert e.value.exit_code == 1
    train(SMALL, tmp_path)
    assert same(trained, tmp_path)


def test_a_checkpoint_keeps_every_bit(tmp_path: Path) -> None:
    state = {
        "epoch": 3,
        "losses": [0.1, 1e-300],
        "none": None,
        "network": {"a": torch.rand(2, 3), "empty": torch.zeros(0), "b": torch.tensor(7)},
        "optimizers": [{"state": {0: {"step": torch.tensor(1.0)}, 1: {}}, "lr": 0.5}],
        "half": torch.rand(3).bfloat16(),
    }
    save_checkpoint(tmp_path, state)
    again = load_checkpoint(tmp_path)
    assert again is not None
    assert repr(again) == repr(state)
    assert again["optimizers"][0]["state"].keys() == {0, 1}
