"""Recipes that cannot be trained are refused before the run begins."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from encoders.training.recipe import Augmentation, Data, Loss, Recipe, Sampler
from encoders.training.trainer import train
from retrieval.errors import BadInput, RetrError, UnknownName
from retrieval.storage.cards import IMAGES
from tests.training_runs import CLUSTERED, SMALL


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
            "images, and data.per_class wants 500",
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
            "need class proxies, and no loss of the recipe has any; add the loss normalised-soft",
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
            "needs clusters, and there are none; set data.clusters and data.clustered_by",
        ),
        (
            replace(SMALL, data=replace(SMALL.data, clustered_by="siamese")),
            BadInput,
            "no loss uses clusters; remove data.clusters",
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
            "siamese-quick takes images of 32 pixels, and data.side is 16",
        ),
        (
            replace(
                CLUSTERED, data=replace(SMALL.data, clusters=9999, clustered_by="siamese-quick")
            ),
            BadInput,
            "data.clusters 9,999 is more than the number of training images",
        ),
        (replace(SMALL, keep_start=0.5), BadInput, "keep_start needs an encoder to start from"),
        (
            replace(SMALL, start="here/siamese-three"),
            BadInput,
            "start: here/siamese-three not found; run 'retr train siamese-three --out "
            "here/siamese-three' first",
        ),
        (
            replace(SMALL, start="toy"),
            BadInput,
            "start: toy is neither a folder that 'retr train' made",
        ),
        (replace(SMALL, start="autoencoder"), BadInput, "has another kind of network"),
        (
            replace(SMALL, start="siamese-quick"),
            BadInput,
            "siamese-quick has no weights for blocks.0.convs.0.weight (8, 24, 3, 3)",
        ),
        (
            replace(SMALL, augmentation=Augmentation(crop_side=5)),
            BadInput,
            "cannot process crops of 5 × 5 pixels",
        ),
        (
            replace(SMALL, losses=(*SMALL.losses, Loss("reconstruction"))),
            BadInput,
            "siamese draws no images; remove it",
        ),
        (
            replace(SMALL, data=replace(SMALL.data, side=5)),
            BadInput,
            "cannot process images of 5 × 5",
        ),
        (
            replace(SMALL, network={**SMALL.network, "shift": 32}),
            BadInput,
            "cannot embed images of 32 × 32 pixels",
        ),
        (
            replace(SMALL, augmentation=Augmentation(translate=32)),
            BadInput,
            "images of 32 pixels cannot be shifted by 32",
        ),
        (
            replace(SMALL, losses=(Loss("contrastive", distance="cosine"),)),
            BadInput,
            "loss contrastive does not take {} (contrastive needs a distance",
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
            "needs two views of each image; set augmentation.views to 2",
        ),
        (
            replace(
                SMALL,
                losses=(Loss("normalised-softmax", labels="image"),),
                augmentation=Augmentation(views=2),
            ),
            BadInput,
            "needs a proxy for each class, and there are too many images",
        ),
        (
            replace(
                SMALL,
                losses=(Loss("contrastive"),),
                sampler=Sampler("pairs", batch=40),
                augmentation=Augmentation(views=2),
            ),
            BadInput,
            "the sampler pairs needs one view of each image",
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
            'has labels = "cluster"; take another sampler',
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
            "whitening to 160 numbers needs more training images than that, got 160",
        ),
        (
            replace(
                SMALL,
                encoder="autoencoder",
                network={"width": 8, "frozen": True},
                losses=(Loss("supervised-contrastive"),),
            ),
            BadInput,
            "no weight of this autoencoder network learns from the recipe's losses",
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


def test_unlabeled_images_need_losses_without_classes(photos: Path, tmp_path: Path) -> None:
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
    assert 0 < rows.pop()["map"] <= 1  # labeled images count
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
