"""Folders that `clip:` cannot open: missing, incomplete, damaged or not supported."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend

from encoders.words.clip import Clip
from retrieval.errors import BadData, BadInput, RetrError
from tests.dual_models import CONFIGS, save_model, write_config, write_tokenizer

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the small model of the kind CLIP."""
    folder = save_model("CLIP", tmp_path_factory.mktemp("clip") / "model")
    return (folder / WEIGHTS).read_bytes()


@pytest.fixture
def folder(weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that can be opened; nothing may be unpickled or fetched."""
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("encoders.hub.urlopen", refuse)
    monkeypatch.setattr("encoders.hub.hf_hub_download", refuse)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(weights)
    write_config(folder, CONFIGS["CLIP"], {})
    return folder


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("a pickle was loaded, or a file fetched")


def refused(folder: Path, pattern: str, kind: type[RetrError] = BadData) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        Clip(str(folder), "cpu")
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


def with_changes(folder: Path, part: str, **changes: Any) -> Path:
    """Write the configuration with changes of its text, vision or preprocessing."""
    whole = json.loads((folder / CONFIG).read_text())
    (whole if part == "preprocess_cfg" else whole["model_cfg"])[part].update(changes)
    (folder / CONFIG).write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize("spec", ["./none", "~/none-such", "/none/such", "ViT-B/32", "../a#b"])
def test_paths_that_are_no_folders(spec: str) -> None:
    with pytest.raises(BadInput, match=r"there is no folder .*; give a folder with open_clip_conf"):
        Clip(spec, "cpu")


def test_a_folder_by_its_bare_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert Clip("model", "cpu").name == f"clip:{folder.resolve()}"
    assert Clip("./model", "cpu").name == f"clip:{folder.resolve()}"


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.safetensors", "model.safetensors"])
def test_other_names_of_weights(name: str, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / name)
    assert Clip(str(folder), "cpu").dim == 16


def test_folders_that_lack_a_file(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "open_clip_pytorch_model.bin")
    pickle = r"has its weights as a pickle \(open_clip_pytorch_model.bin\), which could run code; "
    refused(folder, pickle + "save them as open_clip_model.safetensors$", BadInput)
    (folder / "open_clip_pytorch_model.bin").unlink()
    refused(folder, "has no weights; put open_clip_model.safetensors there", BadInput)
    (folder / CONFIG).unlink()
    refused(folder, "has no open_clip_config.json; give a folder that open_clip saved", BadInput)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "no tensors"])
def test_damaged_weights(damage: str, folder: Path, weights: bytes) -> None:
    other = {"cut": weights[:-100], "empty": b"", "other": b"PK\x03\x04" * 100}
    if damage == "no tensors":
        save_file({}, folder / WEIGHTS)
    else:
        (folder / WEIGHTS).write_bytes(other[damage])
    refused(folder, r"cannot load the weights .*; save the model again")


@pytest.mark.parametrize("change", ["narrower", "deeper", "a bias"])
def test_weights_of_another_model(change: str, folder: Path) -> None:
    if change == "narrower":
        with_changes(folder, "text_cfg", width=8)
    elif change == "deeper":
        with_changes(folder, "vision_cfg", layers=3)
    else:
        found = load_file(folder / WEIGHTS)
        save_file({**found, "logit_bias": torch.tensor(1.0)}, folder / WEIGHTS)
    refused(folder, r"cannot load the weights .*; save the model again")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[" * 100_000, '{"model_cfg": 3}', '{"model_cfg": {"text_cfg": {}}}']
)
def test_damaged_configurations(text: str, folder: Path) -> None:
    (folder / CONFIG).write_text(text)
    refused(folder, r"cannot read .*open_clip_config.json .*; save the model again")


def test_configurations_that_open_clip_cannot_build(folder: Path) -> None:
    with_changes(folder, "vision_cfg", no_such_option=1)
    refused(folder, r"open_clip cannot build the model .*no_such_option.*; save it again with this")


@pytest.mark.parametrize("name", ["hf-hub:somebody/model", "local-dir:/etc", "no_such_model"])
def test_timm_models_are_not_looked_up_elsewhere(name: str, folder: Path) -> None:
    with_changes(folder, "vision_cfg", timm_model_name=name)
    refused(folder, r"timm has no model .*; install a newer timm")


def test_images_that_are_not_framed_to_a_square(folder: Path) -> None:
    with_changes(folder, "preprocess_cfg", resize_mode="longest")
    refused(folder, "the model pads images to a square; choose one that crops", BadInput)


def test_inputs_that_are_not_square(folder: Path) -> None:
    with_changes(folder, "vision_cfg", image_size=[32, 64])
    found = load_file(folder / WEIGHTS)
    found["visual.positional_embedding"] = torch.zeros(4 * 8 + 1, 32)
    save_file(found, folder / WEIGHTS)
    refused(folder, "the model takes 64x32 pixels; choose one with square input", BadInput)


@pytest.mark.parametrize(
    "changes", [{"mean": [1, 2]}, {"std": [0, 0, 0]}, {"interpolation": "nearest"}, {"mode": "L"}]
)
def test_preprocessing_with_wrong_values(changes: dict[str, Any], folder: Path) -> None:
    with_changes(folder, "preprocess_cfg", **changes)
    refused(folder, r"(wrong preprocess_cfg|cannot build).*; save (the model|it) again")


def test_random_interpolation_is_bicubic_as_in_open_clip(folder: Path) -> None:
    with_changes(folder, "preprocess_cfg", interpolation="random", mean=0.5, std=0.5)
    encoder = Clip(str(folder), "cpu")
    assert encoder.framing.resample == "bicubic"
    assert encoder.config["mean"] == [0.5, 0.5, 0.5]


def test_tokenizers_that_are_missing_or_damaged(folder: Path) -> None:
    with_changes(folder, "text_cfg", hf_tokenizer_name="tiny/tokenizer")
    refused(folder, "model has no tokenizer.json; save the tokenizer there", BadInput)
    write_tokenizer(folder)
    assert Clip(str(folder), "cpu").tokenizer.padding == 1
    (folder / "tokenizer_config.json").write_text("{")
    refused(folder, r"cannot read .*tokenizer_config.json .*; save the tokenizer again")
    (folder / "tokenizer_config.json").unlink()
    assert Clip(str(folder), "cpu").tokenizer.padding == 0  # named in tokenizer.json
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.no_padding()
    backend.save(str(folder / "tokenizer.json"))
    refused(folder, r"tokenizer.json has no token for padding; save the tokenizer again")
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, r"cannot read .*tokenizer.json .*; save the tokenizer again")


def test_a_tokenizer_with_more_tokens_than_the_text_tower(tmp_path: Path) -> None:
    folder = save_model("SigLIP", tmp_path / "siglip")
    numbers = Clip(str(folder), "cpu").tokenizer(["犬", "two dogs in the snow"])
    known = int(numbers[0].max())  # all but the last, which is 犬
    assert known > numbers[1].max()
    with_embeddings(folder, known)
    assert Clip(str(folder), "cpu").encode_text(["犬"]).shape == (1, 64)
    with_embeddings(folder, 8)
    refused(folder, r"the tokenizer has \d+ tokens, the text tower 8; save the model with its own")


def with_embeddings(folder: Path, count: int) -> None:
    """Keep only the first embeddings of tokens."""
    with_changes(folder, "text_cfg", vocab_size=count)
    found = load_file(folder / WEIGHTS)
    found["text.token_embedding.weight"] = found["text.token_embedding.weight"][:count].clone()
    save_file(found, folder / WEIGHTS)


@pytest.mark.parametrize("options", [{"reduction_mask": "random"}, {"language": "fr"}])
def test_options_of_tokenizers_that_are_not_supported(
    options: dict[str, str], folder: Path
) -> None:
    with_changes(folder, "text_cfg", tokenizer_kwargs=options)
    refused(folder, "options .* are not supported; choose another model", BadInput)


def test_transformers_is_named_where_it_is_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name)
    )
    assert Clip(str(folder), "cpu").dim == 16
    with_changes(folder, "text_cfg", hf_model_name="tiny/text", hf_tokenizer_name="tiny/text")
    refused(folder, r"this text tower needs transformers; pip install 'retr\[words\]'", BadInput)


def test_code_of_a_repository_is_not_run(folder: Path) -> None:
    with_changes(folder, "text_cfg", hf_model_name="tiny/text", hf_tokenizer_name="tiny/text")
    write_tokenizer(folder)
    facts = {"model_type": "tiny", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "code.py").write_text("raise AssertionError('code was run')")
    refused(folder, r"config.json names code to run, which is not loaded; choose another", BadInput)


def test_text_towers_of_other_kinds_are_not_built(folder: Path) -> None:
    with_changes(folder, "text_cfg", hf_model_name="tiny/text", hf_tokenizer_name="")
    (folder / "config.json").write_text(json.dumps({"model_type": "detr"}))
    refused(folder, "has no text tower of the kind 'detr'; choose one of roberta, ", BadInput)


def test_a_device_is_checked_before_anything_is_fetched(folder: Path) -> None:
    with pytest.raises(BadInput, match="device cannot be 'tpu'; give auto, cpu or cuda"):
        Clip("ViT-B-32", "tpu")
