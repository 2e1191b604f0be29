"""Results of training runs: folders, cards, pictures, weights, and that every loss learns."""

import csv
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.autoencoder import Autoencoder
from encoders.siamese import SiameseNetwork, SiameseSettings
from encoders.training import run as training_run
from encoders.training.batches.augmentation import Mixed
from encoders.training.checkpoints import load_checkpoint
from encoders.training.optimization import batch_loss
from encoders.training.recipe import Augmentation, Data, Loss, Optimizer, Recipe, Sampler
from encoders.training.reports import CURVES, RECONSTRUCTIONS, draw_reconstructions
from encoders.training.trainer import train
from retrieval.contracts import Framing, Json
from retrieval.errors import BadData, BadInput, RetrError
from retrieval.images import load, open_source
from retrieval.registry import open_encoder
from retrieval.storage.cards import CARD, IMAGES, LOG, WEIGHTS, Card
from retrieval.storage.files import sealed
from tests.training_runs import SMALL, same, train_small


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory)


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


@pytest.mark.parametrize(("seconds", "drawn"), [(0, True), (100, False)])
def test_curves_are_drawn_at_intervals_and_the_log_is_always_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, drawn: bool
) -> None:
    monkeypatch.setattr(training_run, "CURVES_SECONDS", seconds)
    found: list[tuple[int, bool]] = []

    def look(row: object) -> None:
        rows = (tmp_path / LOG).read_text().splitlines()
        found.append((len(rows) - 1, (tmp_path / CURVES).exists()))

    train(SMALL, tmp_path, on_epoch=look)
    assert found == [(1, drawn), (2, drawn)]
    assert (tmp_path / CURVES).exists()


def test_the_result_is_an_encoder(trained: Path) -> None:
    encoder = open_encoder(str(trained))
    assert encoder.name == f"siamese:{trained}"
    assert encoder.dim == 16
    assert open_encoder(encoder.name).fingerprint == encoder.fingerprint
    assert open_encoder("siamese").fingerprint != encoder.fingerprint


def test_a_moved_encoder_is_the_same_encoder(trained: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(trained, tmp_path / "moved"))
    assert open_encoder(str(moved)).fingerprint == open_encoder(str(trained)).fingerprint


@pytest.mark.slow
def test_mixed_images_count_by_the_labels_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept of the images' own: their losses are those of the others' labels alone."""

    def swapped(images: torch.Tensor, share: float, generator: torch.Generator) -> Mixed:
        partners = torch.arange(len(images)).roll(1)
        return Mixed(images[partners], partners, kept)

    recipe = replace(SMALL, epochs=1, sampler=Sampler(batch=160))  # one step, from equal weights
    train(recipe, tmp_path / "plain")
    monkeypatch.setattr(batch_loss, "cut_mixed", swapped)
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


def test_non_finite_embeddings_stop_the_run(
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
def test_weights_too_large_for_float16_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    whole = training_run.Run.epoch

    def epoch(run: training_run.Run, on_step: Callable[[int, int], None]) -> dict[str, Json]:
        row = whole(run, on_step)
        torch.nn.init.constant_(cast(SiameseNetwork, run.network).neck.weight, size)
        return row

    monkeypatch.setattr(training_run.Run, "epoch", epoch)
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
def test_non_finite_loss_or_gradient_stops_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[torch.Tensor], torch.Tensor],
    step: int,
    said: str,
) -> None:
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0)
    whole = batch_loss.BatchLoss.of_step

    def loss_of(
        loss_of_batch: batch_loss.BatchLoss, rows: torch.Tensor, epoch: int, here: int
    ) -> torch.Tensor:
        loss = whole(loss_of_batch, rows, epoch, here)
        return broken(loss) if (epoch, here) == (1, step) else loss

    monkeypatch.setattr(batch_loss.BatchLoss, "of_step", loss_of)
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


def test_duplicate_class_names_count_once(tmp_path: Path) -> None:
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
def test_loss_falls_in_every_kind_of_training(tmp_path: Path, recipe: Recipe) -> None:
    rows = []
    train(replace(recipe, epochs=3), tmp_path, on_epoch=rows.append)
    assert rows[2]["loss"] < rows[0]["loss"]


def test_autoencoder_writes_a_picture_of_reconstructions(tmp_path: Path) -> None:
    recipe = replace(
        SMALL,
        encoder="autoencoder",
        network={"width": 8, "dim": 10, "projection": 0},
        losses=(Loss("reconstruction"),),
        epochs=3,
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


@pytest.mark.slow
def test_training_separates_classes(tmp_path: Path) -> None:
    card = train(replace(SMALL, epochs=4, data=Data("digits", validation=300)), tmp_path)
    metrics = card.training.metrics
    assert metrics["map"] > 0.8  # type: ignore[operator]
    assert metrics["precision_at_10"] > 0.85  # type: ignore[operator]


def test_damaged_or_unknown_cards_are_refused(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    document = json.loads((folder / CARD).read_text())
    for change, said in (
        ({"format": "retr-index"}, "is not of the format retr-encoder"),
        ({"version": 3}, "has version 3 of retr-encoder, this retr reads up to 2"),
        ({"metric": "cosin"}, "field 'metric' must be one of cosine, euclidean"),
        ({"dim": "many"}, "field 'dim' must be a whole number, not 'many'"),
        ({"network": {"widths": [8, 8, 9], "dim": 6}}, "does not match its card"),
        ({"network": {"width": 8}}, "does not match its card"),
        ({"weights_sha256": "0" * 64}, "has a checksum mismatch with card.json"),
        ({"encoder": "siamees"}, "unknown encoder 'siamees'"),
    ):
        (folder / CARD).write_text(json.dumps(sealed(document | change)))
        with pytest.raises(BadInput) as raised:
            open_encoder(str(folder))
        assert said in str(raised.value), change
    (folder / CARD).write_text(json.dumps(document | {"classes": ["cats", "dog"]}))
    with pytest.raises(BadData, match="is damaged: checksum mismatch; copy"):
        open_encoder(str(folder))
    (folder / CARD).write_text(json.dumps(document))
    os.truncate(folder / WEIGHTS, 1000)
    with pytest.raises(BadData, match=r"has a checksum mismatch with card.json; train again"):
        open_encoder(str(folder))
    (folder / WEIGHTS).unlink()
    with pytest.raises(BadData, match=r"weights.safetensors is missing"):
        open_encoder(str(folder))
    (folder / CARD).unlink()
    with pytest.raises(BadInput, match=r"is not a trained encoder \(no card.json\)"):
        open_encoder(str(folder))
