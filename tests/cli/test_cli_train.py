"""`retr train`, and other commands on the folder of its encoder."""

import json
from pathlib import Path

import pytest

from tests.cli.pictures import save
from tests.cli.running import Retr

RECIPE = """
about = "a test"
encoder = "siamese"
epochs = 2

[network]
widths = [8, 8, 8]
dim = 6
class_sharpness = 16.0
mirror = false

[data]
source = "digits"
per_class = 20
validation = 40

[[losses]]
name = "normalised-softmax"
temperature = 0.125

[sampler]
batch = 40

[optimizer]
name = "muon"
lr = 0.1
other_lr = 0.02
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recipe and the encoder trained by it."""
    place = tmp_path_factory.mktemp("train")
    (place / "tiny.toml").write_text(RECIPE)
    retr = Retr(place)
    said = retr("train", "tiny.toml", "--out", "mine").out
    assert "epoch" in said
    assert "among 40 held-out images" in said
    assert "use it: retr encode --encoder ./mine" in said
    return place


def test_document_describes_the_training(folder: Path) -> None:
    retr = Retr(folder)
    document = retr.json("train", "tiny.toml", "--out", "mine")  # it is trained already
    assert document["out"] == "mine"
    assert document["dim"] == 16
    assert document["encoder"]["name"] == f"siamese:{folder / 'mine'}"
    assert document["metrics"]["scored_on"] == "40 held-out images"
    assert json.loads((folder / "mine" / "card.json").read_text())["dim"] == 16


def test_mirroring_of_unmirrored_data_is_a_warning(folder: Path) -> None:
    retr = Retr(folder)
    doubted = ("train", "tiny.toml", "--set", "epochs=1", "--set", "network.mirror=true")
    assert "network.mirror to false" in retr(*doubted, "--out", "doubted").err
    flipped = retr(*doubted, "--set", 'augmentation.flip="random"', "--out", "flipped")
    assert "warning" not in flipped.err


def test_trained_folder_is_an_encoder_of_every_command(folder: Path) -> None:
    retr = Retr(folder, {"RETR_WORKSPACE": str(folder / "workspace")})
    encoded = retr.json("encode", "digits", "--encoder", "mine", "--limit", "50")
    assert encoded["encoder"]["name"] == f"siamese:{folder / 'mine'}"
    retr("index", "--backend", "exact")
    save(folder / "picture.png", seed=0)
    hits = retr.json("search", "picture.png", "-k", "3")  # opens the encoder by its name
    assert [hit["rank"] for hit in hits[0]["hits"]] == [1, 2, 3]
    message = retr.refused("search", "picture.png", "--encoder", "toy")
    assert f"built with encoder siamese:{folder / 'mine'}" in message


def test_info_and_verify_read_a_trained_folder(folder: Path) -> None:
    retr = Retr(folder)
    document = retr.json("info", "mine")
    assert (document["kind"], document["dim"]) == ("encoder", 16)
    said = retr("info", "mine").out
    assert "encoder: siamese of 16 dimensions" in said
    assert "trained   on 160 images of digits/train" in said
    assert retr.json("verify", "mine")["ok"]
    assert "mine (encoder) is intact: 2 files" in retr("verify", "mine").out
    weights = folder / "mine" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        outcome = retr.run("verify", "mine")
        assert outcome.code == 2
        assert "has a checksum mismatch with card.json" in outcome.out
    finally:
        weights.write_bytes(whole)


def test_train_without_a_recipe_lists_recipes(folder: Path) -> None:
    retr = Retr(folder)
    assert "siamese-quick" in retr("train").out
    assert "siamese-quick" in retr.json("train")["recipes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["siamese-quik"], ["unknown recipe 'siamese-quik'", "did you mean 'siamese-quick'?"]),
        (["none.toml"], ["recipe none.toml not found"]),
        (["tiny.toml", "--set", "epoch=3"], ["'epoch'", "did you mean 'epochs'?"]),
        (["tiny.toml", "--set", "epochs"], ["write --set KEY=VALUE"]),
        (["tiny.toml", "--set", "losses.0.name=arcfase"], ["did you mean 'arcface'?"]),
        (["tiny.toml", "--set", "data.classes=['11']"], ["unknown class of digits '11'"]),
        (["tiny.toml", "--set", "data.source=digitz"], ["'digitz'", "did you mean 'digits'?"]),
        (["tiny.toml", "--set", "sampler.batch=200"], ["only 160 images"]),
        (["tiny.toml", "--device", "tpu"], ["device cannot be 'tpu'"]),
    ],
)
def test_bad_input_of_train_is_refused_and_writes_nothing(
    folder: Path, arguments: list[str], said: list[str]
) -> None:
    message = Retr(folder).refused("train", *arguments, "--out", "bad")
    for words in said:
        assert words in message


def test_another_recipe_does_not_overwrite_an_encoder(folder: Path) -> None:
    message = Retr(folder).refused("train", "tiny.toml", "--set", "seed=1", "--out", "mine")
    assert "is of another recipe (its seed is 0, not 1); name another folder" in message
