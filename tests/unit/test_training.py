"""Training runs: that they learn, can be killed and go on, and refuse what does not fit."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from encoders.autoencoder import Autoencoder
from encoders.siamese import SiameseNetwork, SiameseSettings
from encoders.trained import TrainedEncoder
from encoders.training import trainer
from encoders.training.batches.augmentation import Mixed
from encoders.training.batches.training_set import read_training_set
from encoders.training.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from encoders.training.optimization.losses import Term
from encoders.training.recipe import Augmentation, Data, Loss, Optimizer, Recipe, Sampler
from encoders.training.reports import CURVES, RECONSTRUCTIONS, draw_reconstructions
from encoders.training.start import start_from
from encoders.training.trainer import train
from retrieval.contracts import Framing, Json
from retrieval.errors import BadData, BadInput, CannotWrite, Mismatch, RetrError, UnknownName
from retrieval.images import load, open_source
from retrieval.quality.provenance import Provenance
from retrieval.registry import open_encoder
from retrieval.storage.cards import CARD, IMAGES, LOG, WEIGHTS, Card
from retrieval.storage.files import sealed
from retrieval.storage.shards import SourceFacts

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "encoder"
    train(SMALL, folder)
    return folder


def test_a_run_leaves_weights_card_log_and_curves(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()} - {".lock"}
    assert names == {WEIGHTS, CARD, LOG, CURVES, IMAGES}
    card = Card.read(trained)
    assert (card.encoder, card.dim, card.classes) == ("siamese", 16, tuple("0123456789"))
    assert card.network == SiameseSettings((8, 8, 8), dim=6, class_sharpness=16.0).to_json()
    written_out = replace(SMALL, network=card.network, data=replace(SMALL.data, side=32))
    assert card.training.recipe == written_out.to_json()
    assert card.training.data["images"] == 160
    assert card.training.data["held_out"] == 40
    assert card.training.metrics["scored_on"] == "40 held-out images"
    with (trained / LOG).open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert 0 < float(rows[1]["map"]) <= 1
    with Image.open(trained / CURVES) as picture:
        assert min(picture.size) > 500
    ids = (trained / IMAGES).read_text().split()
    assert len(ids) == len(set(ids)) == 160


def test_the_result_is_an_encoder(trained: Path) -> None:
    encoder = open_encoder(str(trained))
    assert encoder.name == f"siamese:{trained}"
    assert encoder.dim == 16
    assert open_encoder(encoder.name).fingerprint == encoder.fingerprint
    assert open_encoder("siamese").fingerprint != encoder.fingerprint


def test_a_moved_encoder_is_the_same_encoder(trained: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(trained, tmp_path / "moved"))
    assert open_encoder(str(moved)).fingerprint == open_encoder(str(trained)).fingerprint


def test_settings_that_are_new_had_their_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was begun before a setting was there goes on, and is known when it is done."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
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


def test_mixed_images_count_by_the_labels_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept of the images' own: their losses are those of the others' labels alone."""

    def swapped(images: torch.Tensor, share: float, generator: torch.Generator) -> Mixed:
        partners = torch.arange(len(images)).roll(1)
        return Mixed(images[partners], partners, kept)

    recipe = replace(SMALL, epochs=1, sampler=Sampler(batch=160))  # one step, from equal weights
    train(recipe, tmp_path / "plain")
    monkeypatch.setattr(trainer, "cut_mixed", swapped)
    losses = {}
    for kept in (0.0, 0.5, 1.0):
        train(recipe, tmp_path / str(kept))
        with (tmp_path / str(kept) / LOG).open() as file:
            losses[kept] = float(next(csv.DictReader(file))["loss"])
    with (tmp_path / "plain" / LOG).open() as file:
        wanted = float(next(csv.DictReader(file))["loss"])
    assert losses[0.0] == pytest.approx(wanted, rel=0.01)
    assert losses[0.5] == pytest.approx((losses[0.0] + losses[1.0]) / 2)
    assert abs(losses[1.0] - losses[0.0]) > 0.01 * wanted


def test_the_same_recipe_gives_the_same_weights(trained: Path, tmp_path: Path) -> None:
    train(SMALL, tmp_path)
    assert same(trained, tmp_path)
    train(replace(SMALL, seed=1), tmp_path / "other")
    assert not same(trained, tmp_path / "other")


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 7])
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)  # behind every step
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
        replace(SMALL, encoder="autoencoder",
                network={"width": 8, "blocks": [8, 8, 8], "dim": 10, "whitening": 0.5},
                losses=(Loss("reconstruction"), Loss("nt-xent", 0.05, "image"),
                        Loss("normalised-softmax", 0.1, "cluster")),
                data=replace(SMALL.data, clusters=5, clustered_by="siamese-quick"),
                augmentation=Augmentation(flip="random", smallest_crop=0.5, views=2)),
    ],
    ids=["adamw", "sgd", "autoencoder"],
)  # fmt: skip
def test_any_stopped_run_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    train(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        train(recipe, tmp_path / "stopped", on_step=stop_after(3))
    train(recipe, tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped")


def test_a_killed_run_goes_on(trained: Path, tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "from encoders.training import trainer\n"
        "from encoders.training.recipe import *\n"
        "trainer.CHECKPOINT_SECONDS = 0\n"
        f"recipe = {SMALL!r}\n"
        f"trainer.train(recipe, Path({str(tmp_path)!r}), on_step=lambda d, t: time.sleep(0.2))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 100
    while not (tmp_path / CHECKPOINT).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
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
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(Stop):
        train(SMALL, tmp_path, on_step=stop_after(3))
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(Mismatch, match=r"checkpoint.safetensors is of another recipe"):
        train(other, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_another_description_is_the_same_recipe(trained: Path) -> None:
    train(replace(SMALL, about="small", network={**SMALL.network, "depth": 2}), trained)


def test_a_checkpoint_of_another_version_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"version": 99})
    with pytest.raises(BadData, match="is of version 99, this retr writes 1; delete it"):
        train(SMALL, tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(BadData, match=r"cannot read .*checkpoint.safetensors .* delete it"):
        train(SMALL, tmp_path)


def test_embeddings_that_are_no_numbers_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :5] / 0

    monkeypatch.setattr(SiameseNetwork, "embedder", lambda network: Broken())
    with pytest.raises(RetrError, match="embeddings of its own images are not finite; there is no"):
        train(replace(SMALL, epochs=1), tmp_path)


def broken_loss(loss: torch.Tensor) -> torch.Tensor:
    return loss * math.nan


def broken_gradient(loss: torch.Tensor) -> torch.Tensor:
    loss.register_hook(lambda gradient: gradient * math.inf)
    return loss


@pytest.mark.parametrize("size", [1e6, math.nan])
def test_what_grew_too_large_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    whole = trainer.Run.epoch

    def epoch(run: trainer.Run, on_step: Callable[[int, int], None]) -> dict[str, Json]:
        row = whole(run, on_step)
        torch.nn.init.constant_(cast(SiameseNetwork, run.network).neck.weight, size)
        return row

    monkeypatch.setattr(trainer.Run, "epoch", epoch)
    with pytest.raises(RetrError) as raised:
        train(replace(SMALL, epochs=1), tmp_path)
    assert str(raised.value).startswith(
        f"the weights neck.weight reach {size:.3g}, which float16 does not hold; the last good "
        "checkpoint is of epoch 2, step 0, in "
    )
    assert "a lower optimizer.lr than 0.1" in str(raised.value)
    assert not (tmp_path / CARD).exists()


@pytest.mark.parametrize(
    ("broken", "step", "said"),
    [
        (broken_loss, 2, "the loss is nan in epoch 2, step 3; "),
        (broken_gradient, 3, "the length of its gradient is nan in epoch 2, step 4; "),  # the last
    ],
)
def test_what_is_no_number_stops_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[torch.Tensor], torch.Tensor],
    step: int,
    said: str,
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    whole = trainer.Run.loss

    def loss_of(run: trainer.Run, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = whole(run, images, labels)
        here = run.position
        return broken(loss) if (here.epoch, here.step) == (1, step) else loss

    monkeypatch.setattr(trainer.Run, "loss", loss_of)
    with pytest.raises(RetrError) as raised:
        train(SMALL, tmp_path)
    message = str(raised.value)
    assert message.startswith(said)
    assert f"last good checkpoint is of epoch 2, step {step}, in " in message
    assert "optimizer.lr than 0.1" in message
    assert raised.value.exit_code == 1
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert all(tensor.isfinite().all() for tensor in state["network"].values())


def test_a_full_disk_leaves_the_last_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    limit = 40_000  # bytes; a checkpoint takes more
    with pytest.raises(Stop):
        train(SMALL, tmp_path, on_step=stop_after(3))
    before = (tmp_path / CHECKPOINT).read_bytes()
    assert len(before) > limit
    code = (
        "import resource, signal\n"
        "from pathlib import Path\n"
        "from encoders.training import trainer\n"
        "from encoders.training.recipe import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "trainer.CHECKPOINT_SECONDS = 0\n"
        f"recipe = {SMALL!r}\n"
        "try:\n"
        f"    trainer.train(recipe, Path({str(tmp_path)!r}))\n"
        "except trainer.RetrError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write into {tmp_path}")
    assert "the last checkpoint is whole" in done.stdout
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [p for p in tmp_path.iterdir() if "partial" in p.name] == []
    train(SMALL, tmp_path)
    assert same(trained, tmp_path)


def test_a_disk_that_is_full_for_the_curves_alone(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, rows: object) -> None:
        raise CannotWrite(folder / CURVES, OSError(28, "No space left on device"))

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "write_reports", full)
        with pytest.raises(RetrError, match="the last checkpoint is whole") as e:
            train(SMALL, tmp_path)
    assert e.value.exit_code == 1
    train(SMALL, tmp_path)
    assert same(trained, tmp_path)


@pytest.mark.parametrize(
    ("recipe", "error", "said"),
    [
        (replace(SMALL, encoder="siamees"), UnknownName, "'siamees'; did you mean 'siamese'?"),
        (replace(SMALL, encoder="toy"), UnknownName, "unknown trainable encoder 'toy'"),
        (replace(SMALL, network={"width": 3}), UnknownName, "did you mean 'widths'?"),
        (replace(SMALL, losses=(Loss("tripet"),)), UnknownName, "did you mean 'triplet'?"),
        (
            replace(SMALL, data=Data("digits", classes=("3", "three"))),
            UnknownName,
            "unknown class of digits 'three'",
        ),
        (
            replace(SMALL, data=Data("digits", per_class=500)),
            BadInput,
            "images, data.per_class wants 500",
        ),
        (
            replace(SMALL, data=Data("digits", per_class=20, validation=200)),
            BadInput,
            "data.validation 200 leaves none of 200 images",
        ),
        (
            replace(SMALL, sampler=Sampler("balanced", batch=160, per_class=20)),
            BadInput,
            "sampler balanced needs 20 of each",
        ),
        (
            replace(SMALL, losses=(Loss("supervised-contrastive"),)),
            BadInput,
            "want class proxies, and no loss of the recipe has any; add the loss normalised-soft",
        ),
        (replace(SMALL, losses=()), BadInput, "no loss to train by"),
        (
            replace(SMALL, encoder="autoencoder", network={}, data=replace(SMALL.data, side=20)),
            BadInput,
            "the network cannot be built",
        ),
        (
            CLUSTERED,
            BadInput,
            "wants clusters, and there are none; set data.clusters and data.clustered_by",
        ),
        (
            replace(SMALL, data=replace(SMALL.data, clustered_by="siamese")),
            BadInput,
            "no loss wants clusters; remove data.clusters",
        ),
        (
            replace(CLUSTERED, data=replace(SMALL.data, clusters=5, clustered_by="siamees")),
            UnknownName,
            "'siamees'; did you mean 'siamese'?",
        ),
        (
            replace(
                CLUSTERED,
                data=replace(SMALL.data, side=16, clusters=5, clustered_by="siamese-quick"),
            ),
            BadInput,
            "siamese-quick wants images of 32 pixels, and data.side is 16",
        ),
        (
            replace(
                CLUSTERED, data=replace(SMALL.data, clusters=9999, clustered_by="siamese-quick")
            ),
            BadInput,
            "data.clusters 9,999 is more than there are images",
        ),
        (replace(SMALL, keep_start=0.5), BadInput, "keep_start wants an encoder to start from"),
        (
            replace(SMALL, start="here/siamese-three"),
            BadInput,
            "start: here/siamese-three is not there; 'retr train siamese-three --out "
            "here/siamese-three' makes it",
        ),
        (replace(SMALL, start="toy"), BadInput, "start: toy is no folder that 'retr train' made"),
        (replace(SMALL, start="autoencoder"), BadInput, "runs another kind of network"),
        (
            replace(SMALL, start="siamese-quick"),
            BadInput,
            "siamese-quick has no weights for blocks.0.convs.0.weight (8, 24, 3, 3)",
        ),
        (
            replace(SMALL, augmentation=Augmentation(crop_side=5)),
            BadInput,
            "takes no crops of 5 × 5 pixels",
        ),
        (
            replace(SMALL, losses=(*SMALL.losses, Loss("reconstruction"))),
            BadInput,
            "siamese draws no images; remove it",
        ),
        (replace(SMALL, data=replace(SMALL.data, side=5)), BadInput, "takes no images of 5 × 5"),
        (
            replace(SMALL, network={**SMALL.network, "shift": 32}),
            BadInput,
            "cannot embed images of 32 × 32 pixels",
        ),
        (
            replace(SMALL, augmentation=Augmentation(translate=32)),
            BadInput,
            "images of 32 pixels cannot be moved by 32",
        ),
        (
            replace(SMALL, losses=(Loss("contrastive", distance="cosine"),)),
            BadInput,
            "loss contrastive does not take {} (it wants a distance",
        ),
        (
            replace(
                SMALL, losses=(Loss("supervised-contrastive", options={"temperature": "hot"}),)
            ),
            BadInput,
            "loss supervised-contrastive fails with {'temperature': 'hot'}",
        ),
        (
            replace(SMALL, losses=(Loss("normalised-softmax", options={"temperature": 0.0}),)),
            BadInput,
            "loss normalised-softmax is nan with {'temperature': 0.0}",
        ),
        (
            replace(SMALL, losses=(Loss("nt-xent", labels="image"),)),
            BadInput,
            "wants two views of each image; set augmentation.views to 2",
        ),
        (
            replace(
                SMALL,
                losses=(Loss("normalised-softmax", labels="image"),),
                augmentation=Augmentation(views=2),
            ),
            BadInput,
            "has a proxy for each class, and images are too many",
        ),
        (
            replace(
                SMALL,
                losses=(Loss("contrastive"),),
                sampler=Sampler("pairs", batch=40),
                augmentation=Augmentation(views=2),
            ),
            BadInput,
            "the sampler pairs wants one view of each image",
        ),
        (
            replace(SMALL, augmentation=Augmentation(views=2, cutmix=0.5)),
            BadInput,
            "augmentation.cutmix mixes images of a batch",
        ),
        (
            replace(
                SMALL,
                losses=(Loss("contrastive"),),
                sampler=Sampler("pairs", batch=40),
                augmentation=Augmentation(cutmix=0.5),
            ),
            BadInput,
            "take one view and another sampler than pairs",
        ),
        (
            replace(
                CLUSTERED,
                data=replace(SMALL.data, clusters=5, clustered_by="siamese-quick"),
                sampler=Sampler("pairs", batch=40),
            ),
            BadInput,
            'wants labels = "cluster"; take another sampler',
        ),
        (
            replace(SMALL, sampler=Sampler("pairs", batch=40)),
            BadInput,
            "loss supervised-contrastive learns nothing from pairs",
        ),
        (
            replace(
                SMALL,
                encoder="autoencoder",
                network={"width": 8, "dim": 160, "whitening": 0.5},
                losses=(Loss("reconstruction"),),
            ),
            BadInput,
            "whitening to 160 numbers wants more images than that, got 160",
        ),
        (
            replace(
                SMALL,
                encoder="autoencoder",
                network={"width": 8, "frozen": True},
                losses=(Loss("supervised-contrastive"),),
            ),
            BadInput,
            "nothing of this autoencoder network learns from the recipe's losses",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, recipe: Recipe, error: type[RetrError], said: str
) -> None:
    with pytest.raises(error) as raised:
        train(recipe, tmp_path / "out")
    assert said in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_images_without_labels_are_for_losses_that_want_none(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "red" / "0.png", photos / "stray.png")
    recipe = replace(SMALL, data=Data(str(photos)), sampler=Sampler(batch=10), epochs=1)
    with pytest.raises(BadInput, match=r"some images of .* have no label, which"):
        train(recipe, tmp_path / "out")
    chosen = replace(recipe, data=replace(recipe.data, classes=("red", "blue")))
    assert train(chosen, tmp_path / "out").classes == ("blue", "red")
    drawing = replace(
        recipe, encoder="autoencoder", network={"width": 8}, losses=(Loss("reconstruction"),)
    )
    rows = []
    train(drawing, tmp_path / "drawing", on_epoch=rows.append)
    assert 0 < rows.pop()["map"] <= 1  # of those that have one
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(photos.glob("*/*.png"))):
        shutil.copy(path, tmp_path / "flat" / f"{number}.png")
    flat = replace(drawing, data=Data(str(tmp_path / "flat")))
    metrics = train(flat, tmp_path / "none", on_epoch=rows.append).training.metrics
    assert rows[0]["map"] is metrics["map"] is metrics["knn_accuracy"] is None
    assert (tmp_path / "none" / "curves.png").stat().st_size > 5_000


def test_images_that_cannot_be_read_are_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "3.png").write_bytes(b"no image")
    recipe = replace(SMALL, data=Data(str(photos)), sampler=Sampler(batch=10), epochs=1)
    card = train(recipe, tmp_path / "out")
    assert card.training.data["images"] == 29
    (why,) = cast(list[str], card.training.data["unreadable"])
    assert why.startswith(f"cannot read image {photos / 'red' / '3.png'}: ")
    ids = (tmp_path / "out" / IMAGES).read_text().split()
    assert len(ids) == 29
    assert "red/3.png" not in ids
    with pytest.raises(BadInput, match="29 leaves none of 29 images"):
        train(replace(recipe, data=replace(recipe.data, validation=29)), tmp_path / "no")


def test_a_class_that_is_named_twice_is_one(tmp_path: Path) -> None:
    data = replace(SMALL.data, classes=("3", "4", "3"), validation=0)
    assert train(replace(SMALL, data=data, epochs=1), tmp_path).classes == ("3", "4")


@pytest.mark.parametrize(
    "recipe",
    [
        replace(SMALL, network={"widths": [8, 8, 8], "dim": 10, "unit_length": False},
                losses=(Loss("contrastive", distance="euclidean", options={"margin": 1.0}),),
                sampler=Sampler("pairs", batch=40), optimizer=Optimizer("sgd", lr=0.05)),
        replace(SMALL, sampler=Sampler("balanced", batch=40, per_class=4)),
        replace(SMALL, encoder="autoencoder", network={"width": 8, "dim": 10},
                losses=(Loss("reconstruction"), Loss("nt-xent", 0.05, "image")),
                augmentation=Augmentation(flip="random", smallest_crop=0.5, recolour=0.3, views=2),
                optimizer=Optimizer("adamw", lr=2e-3, schedule="cosine", warmup=0.2)),
        replace(SMALL, data=replace(SMALL.data, clusters=5, clustered_by="siamese-quick"),
                network={"widths": [8, 8, 8], "dim": 10},
                losses=(Loss("normalised-softmax", labels="cluster"),)),
        replace(SMALL, encoder="autoencoder",
                network={"blocks": [8, 8, 8], "width": 8, "dim": 10, "projection": 12},
                losses=(Loss("reconstruction"), Loss("supervised-contrastive", 0.1, "image")),
                augmentation=Augmentation(smallest_crop=0.5, crop_side=16, views=2)),
    ],
    ids=["pairs", "balanced", "autoencoder", "clusters", "crops"],
)  # fmt: skip
def test_every_way_of_training_learns(tmp_path: Path, recipe: Recipe) -> None:
    rows = []
    train(replace(recipe, epochs=3), tmp_path, on_epoch=rows.append)
    assert rows[2]["loss"] < rows[0]["loss"]


def test_training_goes_on_from_an_encoder(trained: Path, tmp_path: Path) -> None:
    before = open_encoder(str(trained))
    bare = {"widths": [8, 8, 8], "dim": 6}
    card = train(
        replace(SMALL, start=str(trained), network=bare, losses=(), epochs=0), tmp_path / "same"
    )
    images = np.stack([load(i, Framing(32)) for i in open_source("digits").items()][:50])
    vectors = open_encoder(str(tmp_path / "same")).encode(images)
    with_shares = before.encode(images)[:, :6]
    with_shares /= np.linalg.norm(with_shares, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, with_shares, atol=0.01)
    assert card.training.data["started_from"] == before.fingerprint
    rows = []
    train(replace(SMALL, start=str(trained)), tmp_path / "on", on_epoch=rows.append)
    fresh = []
    train(SMALL, tmp_path / "fresh", on_epoch=fresh.append)
    assert rows[0]["loss"] < fresh[0]["loss"]


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_weights_are_averaged_with_those_at_the_start(
    trained: Path, tmp_path: Path, share: float
) -> None:
    """Those of the network; proxies, which are directions, are turned by the share of the way."""
    recipe = replace(SMALL, start=str(trained), keep_start=share)
    train(replace(recipe, keep_start=0.0), tmp_path / "trained-on")
    train(recipe, tmp_path / "mean")
    with pytest.raises(Stop):
        train(recipe, tmp_path / "resumed", on_step=stop_after(7))
    train(recipe, tmp_path / "resumed")
    assert same(tmp_path / "mean", tmp_path / "resumed")
    before, after, mean = (
        weights(folder) for folder in (trained, tmp_path / "trained-on", tmp_path / "mean")
    )
    proxies = [kind.pop("proxies").float() for kind in (after, before, mean)]
    assert any(not torch.equal(before[name], after[name]) for name in after)
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            wanted = after[name].float().lerp(before[name].float(), share)
            torch.testing.assert_close(tensor.float(), wanted, atol=2e-3, rtol=2e-3)
    wanted = torch.nn.functional.normalize(proxies[0].lerp(proxies[1], share), dim=1)
    torch.testing.assert_close(proxies[2], wanted, atol=2e-3, rtol=2e-3)


def test_class_proxies_go_on_from_those_of_the_start_class_by_class(
    trained: Path, tmp_path: Path
) -> None:
    """A class that the start does not know, and losses without classes, start from chance."""
    kept = open_encoder(str(trained))
    assert isinstance(kept, TrainedEncoder)
    learned = kept.trained.proxies
    assert learned is not None
    two = replace(SMALL, data=Data("digits", classes=("4", "3")))
    data = read_training_set(two.data, Framing(32), 0)
    terms = [Term(loss, classes=3, dim=6) for loss in (*SMALL.losses, CLUSTERED.losses[0])]
    before = [term.proxies() for term in terms]
    lengths = before[0].norm(dim=1)
    by_chance = before[0][2].clone()
    network = SiameseNetwork(SiameseSettings((8, 8, 8), dim=6, class_sharpness=16.0), 3, 32)
    start_from(str(trained), network, data).hand_over(terms, ["4", "3", "unknown"])
    after = terms[0].proxies()
    cosines = torch.cosine_similarity(after[:2], learned[[4, 3]])
    torch.testing.assert_close(cosines, torch.ones(2))
    torch.testing.assert_close(after.norm(dim=1), lengths)
    torch.testing.assert_close(after[2], by_chance)
    assert before[1:] == [None, None]


def test_a_frozen_autoencoder_learns_to_draw_and_embeds_as_before(tmp_path: Path) -> None:
    network = {"width": 8, "blocks": [8, 8, 16], "dim": 10, "whitening": 0.5}
    views = Recipe(
        "autoencoder",
        network=network,
        losses=(Loss("supervised-contrastive", labels="image"),),
        epochs=2,
        data=SMALL.data,
        sampler=Sampler(batch=40),
        augmentation=Augmentation(smallest_crop=0.5, views=2),
        optimizer=SMALL.optimizer,
    )
    train(views, tmp_path / "views")
    drawing = replace(
        views,
        network=network | {"frozen": True},
        start=str(tmp_path / "views"),
        losses=(Loss("reconstruction"),),
        epochs=4,
        augmentation=Augmentation(),
        optimizer=Optimizer(lr=0.01),
    )
    train(drawing, tmp_path / "drawing")
    images = np.stack([load(i, Framing(32)) for i in open_source("digits").items()][:50])
    before, after = (
        cast(Autoencoder, open_encoder(str(tmp_path / name))) for name in ("views", "drawing")
    )
    np.testing.assert_allclose(after.encode(images), before.encode(images), atol=1e-4)
    truth = images / np.float32(255)
    errors = [np.square(e.reconstruct(images) - truth).mean() for e in (before, after)]
    assert errors[1] < 0.8 * errors[0]


def test_what_the_start_has_seen_counts_as_seen(trained: Path, tmp_path: Path) -> None:
    """Of the same source by the list of images, of others as a whole; twice removed too."""
    other = Recipe(
        "siamese",
        network=SMALL.network,
        losses=SMALL.losses,
        epochs=1,
        start=str(trained),
        data=Data("digits", classes=("3", "4"), per_class=30),
        sampler=Sampler(batch=40),
    )
    with pytest.raises(BadInput, match="of the images that are held out now"):
        train(replace(other, data=Data("digits", per_class=20, validation=90)), tmp_path / "no")
    train(other, tmp_path / "same")
    ids = (tmp_path / "same" / IMAGES).read_text().split()
    before = set((trained / IMAGES).read_text().split())
    assert len(ids) == len(set(ids)) > 60
    assert before <= set(ids)
    photos = tmp_path / "photos"
    for number in range(12):
        path = photos / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 100, 50)).save(path)
    mine = replace(
        other, start=str(tmp_path / "same"), data=Data(str(photos)), sampler=Sampler(batch=12)
    )
    card = train(mine, tmp_path / "mine")
    assert (tmp_path / "mine" / IMAGES).read_text().split() == [
        f"{'ab'[n % 2]}/{n}.png" for n in (0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11)
    ]
    digits = open_source("digits")
    encoder = open_encoder(str(tmp_path / "mine"))
    found = Provenance(tmp_path / "mine", card)
    assert found.classes == {*"0123456789", "a", "b"}
    minutes = [Card.read(folder).training.minutes for folder in (trained, tmp_path / "same")]
    assert card.training.data["start_minutes"] == pytest.approx(sum(minutes), abs=0.02)
    assert found.has_seen(SourceFacts(digits.name, digits.fingerprint, 1797), ["1", "2"]).all()
    assert not found.has_seen(SourceFacts("elsewhere", "0", 1), ["1"]).any()
    assert encoder.fingerprint != open_encoder(str(tmp_path / "same")).fingerprint


def test_a_start_that_has_changed_is_refused(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "start"
    shutil.copytree(trained, copy)
    recipe = replace(SMALL, start=str(copy))
    with pytest.raises(Stop):
        train(recipe, tmp_path / "out", on_step=stop_after(6))
    shutil.rmtree(copy)
    train(replace(SMALL, seed=0, epochs=1), copy)
    with pytest.raises(Mismatch, match="from an encoder that is another by now"):
        train(recipe, tmp_path / "out")


def test_an_autoencoder_leaves_a_picture_of_what_it_draws(tmp_path: Path) -> None:
    recipe = replace(
        SMALL,
        encoder="autoencoder",
        network={"width": 8, "dim": 10, "projection": 0},
        losses=(Loss("reconstruction"),),
        epochs=6,
        data=Data("digits", per_class=80, validation=60),
        optimizer=Optimizer("adamw", lr=1e-2),
    )
    train(recipe, tmp_path)
    images = np.stack([load(i, Framing(32)) for i in open_source("digits").items()])[:50]
    encoder = cast(Autoencoder, open_encoder(str(tmp_path)))
    drawn = encoder.reconstruct(images)
    assert drawn.shape == images.shape
    truth = images / np.float32(255)
    assert np.square(drawn - truth).mean() < np.square(truth - truth.mean(0)).mean()
    with Image.open(tmp_path / RECONSTRUCTIONS) as picture:
        pixels = np.asarray(picture)
    # Five times a row of 10 images above a row of drawings, with white between, three times as big.
    assert pixels.shape == (3 * (10 * 32 + 4 * 4), 3 * 10 * 32, 3)
    ids = {item.id: item for item in open_source("digits").items()}
    trained_on = set((tmp_path / IMAGES).read_text().split())
    first = pixels[: 3 * 32 : 3, : 3 * 32 : 3]
    shown = [n for n, item in ids.items() if np.array_equal(load(item, Framing(32)), first)]
    assert shown
    assert not set(shown) <= trained_on  # held-out images are drawn


@pytest.mark.parametrize("images", [1, 9, 25])
def test_reconstructions_of_few_images(tmp_path: Path, images: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 8, 8, 3), np.uint8)
    drawn = (pixels / np.float32(255))[..., ::-1]
    draw_reconstructions(tmp_path / "drawn.png", pixels, drawn, scale=1)
    with Image.open(tmp_path / "drawn.png") as picture:
        sheet = np.asarray(picture)
    assert sheet.shape[1] == 8 * min(images, 10)
    np.testing.assert_array_equal(sheet[:8, :8], pixels[0])
    np.testing.assert_array_equal(sheet[8:16, :8], pixels[0, ..., ::-1])


def test_training_separates_classes(tmp_path: Path) -> None:
    card = train(replace(SMALL, epochs=8, data=Data("digits", validation=300)), tmp_path)
    metrics = card.training.metrics
    assert metrics["map"] > 0.8  # type: ignore[operator]
    assert metrics["precision_at_10"] > 0.85  # type: ignore[operator]


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


def test_a_card_must_be_understood(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    document = json.loads((folder / CARD).read_text())
    for change, said in (
        ({"format": "retr-index"}, "is not of the format retr-encoder"),
        ({"version": 3}, "is of version 3 of retr-encoder, this retr reads up to 2"),
        ({"metric": "cosin"}, "lacks or misstates"),
        ({"dim": "many"}, "lacks or misstates"),
        ({"network": {"widths": [8, 8, 9], "dim": 6}}, "does not fit its card"),
        ({"network": {"width": 8}}, "does not fit its card"),
        ({"weights_sha256": "0" * 64}, "is not the file that card.json describes"),
        ({"encoder": "siamees"}, "unknown encoder 'siamees'"),
    ):
        (folder / CARD).write_text(json.dumps(sealed(document | change)))
        with pytest.raises(BadInput) as raised:
            open_encoder(str(folder))
        assert said in str(raised.value), change
    (folder / CARD).write_text(json.dumps(document | {"classes": ["cats", "dog"]}))
    with pytest.raises(BadData, match="is damaged: it does not say what its checksum is of; copy"):
        open_encoder(str(folder))
    (folder / CARD).write_text(json.dumps(document))
    os.truncate(folder / WEIGHTS, 1000)
    with pytest.raises(BadData, match=r"is not the file that card.json describes; train anew"):
        open_encoder(str(folder))
    (folder / WEIGHTS).unlink()
    with pytest.raises(BadData, match=r"weights.safetensors is missing"):
        open_encoder(str(folder))
    (folder / CARD).unlink()
    with pytest.raises(BadInput, match=r"is no trained encoder \(no card.json\)"):
        open_encoder(str(folder))
