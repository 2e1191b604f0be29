"""Dual encoders of open_clip compute what open_clip itself computes."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from encoders.inference import fingerprint_of
from encoders.words.clip import TEMPLATES, Clip
from retrieval.contracts import Prompted, Resample, TextExportable, Tokenizing
from retrieval.errors import BadInput
from retrieval.images import frame
from tests.dual_models import CONFIGS, save_model, write_config

TEXTS = [
    "a red car in the snow",
    "two dogs",
    "",
    "word " * 2000,
    "Größe, 犬 and 😀",
    "&amp; Tom_Jones's   PHOTO!",
]


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model, for each kind."""
    kind: str = request.param
    return save_model(kind, tmp_path_factory.mktemp(kind) / "model")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Clip:
    return Clip(str(folder), "cpu")


@pytest.fixture(scope="module")
def model(folder: Path) -> tuple[Any, Any]:
    """Open the same model and its preprocessing by open_clip."""
    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return network.eval(), preprocess


def photographs() -> list[Image.Image]:
    """Images of several proportions, smaller and larger than what the models see."""
    draw = np.random.default_rng(0)
    sizes = [(50, 37), (200, 300), (32, 32), (160, 160), (40, 300)]
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_embeddings_equal_those_of_open_clip(
    folder: Path, encoder: Clip, model: tuple[Any, Any]
) -> None:
    network, preprocess = model
    images = photographs()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        batch = torch.stack([preprocess(image) for image in images])
        by_image = network.encode_image(batch, normalize=True).numpy()
        by_text = network.encode_text(tokens, normalize=True).numpy()
    framed = np.stack([frame(image, encoder.framing) for image in images])
    np.testing.assert_allclose(encoder.encode(framed), by_image, atol=1e-5)
    np.testing.assert_array_equal(encoder.tokenizer(TEXTS), tokens.numpy())
    np.testing.assert_allclose(encoder.encode_text(TEXTS), by_text, atol=1e-5)


def test_framed_pixels_equal_those_of_open_clip(encoder: Clip, model: tuple[Any, Any]) -> None:
    transforms = model[1].transforms[:-1]  # without the last, which standardizes
    for image in photographs():
        pixels = image
        for transform in transforms:
            pixels = transform(pixels)
        expected = (np.asarray(pixels).transpose(1, 2, 0) * 255).round()
        np.testing.assert_array_equal(frame(image, encoder.framing), expected)


def test_exported_networks_equal_the_towers(encoder: Clip, tmp_path: Path) -> None:
    encoder.export(tmp_path / "images.onnx")  # both compare the outputs
    settings = encoder.export_text(tmp_path / "texts.onnx", tmp_path / "tokenizer.json")
    again = type(encoder.tokenizer).read(tmp_path / "tokenizer.json", settings)
    np.testing.assert_array_equal(again(TEXTS), encoder.tokenizer(TEXTS))


def test_protocols(encoder: Clip) -> None:
    assert isinstance(encoder, Tokenizing)
    assert isinstance(encoder, Prompted)
    assert isinstance(encoder, TextExportable)
    assert encoder.max_tokens == encoder.tokenizer.context
    assert encoder.count_tokens(["", "word " * 100])[1] > encoder.max_tokens


def test_framing_is_that_of_the_configuration(folder: Path, encoder: Clip) -> None:
    preprocess = json.loads((folder / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert encoder.framing.resample == Resample(preprocess.get("interpolation", "bicubic"))
    assert encoder.framing.squash == (preprocess.get("resize_mode") == "squash")
    assert encoder.framing.crop == 1.0


def test_prompts_are_those_of_the_weights(folder: Path, encoder: Clip) -> None:
    weights = load_file(folder / "open_clip_model.safetensors")
    assert encoder.prompts.scale == pytest.approx(np.exp(3.0))
    if "logit_bias" in weights:
        assert encoder.prompts.bias == pytest.approx(float(weights["logit_bias"]))
    else:
        assert encoder.prompts.bias is None
    theirs = [template("dog") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]
    assert [template.format("dog") for template in TEMPLATES] == theirs


def test_config_has_no_paths_and_no_tokenizer_names(folder: Path, encoder: Clip) -> None:
    text = json.dumps(encoder.config)
    assert str(folder.parent) not in text
    assert "hf_tokenizer_name" not in text
    assert encoder.name == f"clip:{folder.resolve()}"


def test_fingerprint_is_of_the_weights_as_they_are_saved(
    encoder: Clip, model: tuple[Any, Any]
) -> None:
    saved = model[0].state_dict().items()
    weights = {name: tensor for name, tensor in saved if not name.startswith("text_decoder.")}
    assert fingerprint_of(encoder.config, encoder.framing, weights) == encoder.fingerprint


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("CLIP", tmp_path_factory.mktemp("clip") / "model")


def test_half_precision_weights_become_float32(clip_folder: Path, tmp_path: Path) -> None:
    half = Clip(str(save_model("CLIP", tmp_path / "half", half=True)), "cpu")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert {tensor.dtype for tensor in half.network.state_dict().values()} == {torch.float32}
    whole = Clip(str(clip_folder), "cpu")
    assert half.fingerprint != whole.fingerprint
    np.testing.assert_allclose(half.encode(images), whole.encode(images), atol=0.01)


@pytest.mark.parametrize("tower", ["visual.proj", "text_projection"])
def test_fingerprint_covers_the_weights_of_both_towers(
    tower: str, clip_folder: Path, tmp_path: Path
) -> None:
    other = copied(clip_folder, tmp_path / "other")
    weights = load_file(other / "open_clip_model.safetensors")
    weights[tower][0, 0] += 1e-3
    save_file(weights, other / "open_clip_model.safetensors")
    assert fingerprint(other) != fingerprint(clip_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model_cfg": {"quick_gelu": False}},
        {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}},
        {"preprocess_cfg": {"interpolation": "bilinear"}},
        {"preprocess_cfg": {"resize_mode": "squash"}},
        {"text_cfg": {"tokenizer_kwargs": {"clean": "whitespace"}}},
    ],
)
def test_fingerprint_covers_architecture_preprocessing_and_tokenizer(
    change: dict[str, dict[str, Any]], clip_folder: Path, tmp_path: Path
) -> None:
    other = copied(clip_folder, tmp_path / "other")
    model = {**CONFIGS["CLIP"], **change.get("model_cfg", {})}
    model["text_cfg"] = {**model["text_cfg"], **change.get("text_cfg", {})}
    write_config(other, model, change.get("preprocess_cfg", {}))
    assert fingerprint(other) != fingerprint(clip_folder)


def test_fingerprint_does_not_depend_on_the_folder_or_the_names_of_repositories(
    clip_folder: Path, tmp_path: Path
) -> None:
    other = copied(clip_folder, tmp_path / "other")
    model = {**CONFIGS["CLIP"], "vision_cfg": {**CONFIGS["CLIP"]["vision_cfg"]}}
    model["vision_cfg"]["timm_model_pretrained"] = False
    model["text_cfg"] = {**model["text_cfg"], "hf_tokenizer_name": ""}
    write_config(other, model, {})
    (other / "open_clip_model.safetensors").rename(other / "model.safetensors")
    assert fingerprint(other) == fingerprint(clip_folder)


def test_opening_leaves_the_random_state_and_the_root_logger(clip_folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    handlers, filters = list(logging.getLogger().handlers), list(logging.getLogger().filters)
    Clip(str(clip_folder), "cpu")
    assert torch.equal(torch.rand(3), expected)
    assert (logging.getLogger().handlers, logging.getLogger().filters) == (handlers, filters)


def test_texts_that_are_not_str_are_refused(encoder: Clip) -> None:
    for texts in ("one text", [b"bytes"], [None], ["a", 3]):
        with pytest.raises(BadInput, match=r"; give a (str|list of texts)$"):
            encoder.encode_text(texts)  # type: ignore[arg-type]


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def fingerprint(folder: Path) -> str:
    return Clip(str(folder), "cpu").fingerprint
