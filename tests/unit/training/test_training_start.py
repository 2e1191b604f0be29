"""Training that starts from the weights of a trained encoder."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.autoencoder import Autoencoder
from encoders.siamese import SiameseNetwork, SiameseSettings
from encoders.trained import TrainedEncoder
from encoders.training.batches.training_set import read_training_set
from encoders.training.optimization.losses import Term
from encoders.training.recipe import Augmentation, Data, Loss, Optimizer, Recipe, Sampler
from encoders.training.start import start_from
from encoders.training.trainer import train
from retrieval.contracts import Framing
from retrieval.errors import BadInput, Mismatch
from retrieval.images import load, open_source
from retrieval.quality.provenance import Provenance
from retrieval.registry import open_encoder
from retrieval.storage.cards import IMAGES, Card
from retrieval.storage.sets.manifest import SourceFacts
from tests.training_runs import CLUSTERED, SMALL, Stop, same, stop_after, train_small, weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory)


def test_training_starts_from_an_encoder(trained: Path, tmp_path: Path) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_weights_are_averaged_with_those_at_the_start(
    trained: Path, tmp_path: Path, share: float
) -> None:
    """Weights are averaged; proxies, which are directions, are turned by the share of the way."""
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


def test_class_proxies_start_from_the_encoder_s_proxies(trained: Path, tmp_path: Path) -> None:
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


@pytest.mark.slow
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


def test_images_seen_by_the_start_count_as_seen(trained: Path, tmp_path: Path) -> None:
    """Images of the same source count by id, other sources as a whole, over all earlier starts."""
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
    with pytest.raises(Mismatch, match="or its start encoder has changed since"):
        train(recipe, tmp_path / "out")
