"""`retr pairs` of an encoder whose training is known."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from encoders.training.recipe import Data, Loss, Recipe, Sampler
from encoders.training.trainer import train
from retrieval import open_embeddings, open_encoder
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from tests.cli.pictures import save
from tests.cli.running import Retr


@dataclass(frozen=True)
class Learned:
    """An encoder trained on ten images of each of the digits 0 to 4, and its embeddings."""

    encoder: Path
    test: Path
    train: Path


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learned]:
    folder = tmp_path_factory.mktemp("learned")
    recipe = Recipe(
        "siamese",
        network={"widths": [4, 4, 4], "dim": 4},
        losses=(Loss("supervised-contrastive"),),
        epochs=1,
        data=Data("digits", classes=tuple("01234"), per_class=10),
        sampler=Sampler(batch=25),
    )
    made = Learned(folder / "encoder", folder / "test", folder / "train")
    train(recipe, made.encoder)
    for part in ("test", "train"):
        source = open_source("digits", part)
        encode_source(source, open_encoder(str(made.encoder), "cpu"), folder / part)
    yield made


def test_trained_and_held_out_classes_are_reported_apart(retr: Retr, learned: Learned) -> None:
    found = retr.json("pairs", learned.test)
    groups = found["groups"]
    assert [*groups] == ["joint", "trained", "held_out"]
    assert [*groups["trained"]["per_class"]] == [*"01234"]
    assert [*groups["held_out"]["per_class"]] == [*"56789"]
    assert found["validation"]["classes"] == [*"01234"]
    for more in ([], ["--validation", learned.train]):
        new = retr.json("pairs", learned.test, "--classes", "5,6,7", *more)
        assert new["validation"]["classes"] == [*"01234"]
        assert new["groups"]["trained"] is None
        assert new["left_out"]["trained"] == "there are none"
        assert [*new["groups"]["held_out"]["per_class"]] == [*"567"]
    named = retr.json("pairs", learned.test, "--held-out", "5,6")["groups"]
    assert [*named["held_out"]["per_class"]] == [*"56"]
    assert [*named["trained"]["per_class"]] == [*"01234"]
    outcome = retr("pairs", learned.test, "--held-out", "7")
    assert "no pairs of classes held out: pairs of different classes need 2 classes" in outcome.out
    assert "trained on (5)" in outcome.out
    message = retr.refused("pairs", learned.test, "--held-out", "7,3")
    assert "class '3' is not held out: the encoder was trained on it; name classes" in message


def test_trained_images_are_left_out_of_validation(retr: Retr, learned: Learned) -> None:
    rows, _ = open_embeddings(learned.train).read()
    known = Counter(label for label in rows["label"].to_pylist() if label in "01234")
    outcome = retr("pairs", learned.test, "--validation", learned.train)
    assert f"pairs of {known.total() - 50:,} images that siamese:" in outcome.out
    assert outcome.err == ""
    # Given as test images, they are tested with a warning, and not used for validation.
    outcome = retr("pairs", learned.train)
    assert "was trained on 50 images of" in outcome.err
    fifths = sum((count - 10) // 5 for count in known.values())
    assert f"pairs of {fifths} images that are not tested" in outcome.out


def test_trained_images_are_recognized_in_a_renamed_source(retr: Retr, learned: Learned) -> None:
    """A limited source is recognized as a part of the source that was trained on."""
    rows, _ = open_embeddings(learned.train).read()
    encode_source(
        open_source("digits", "train", limit=200), open_encoder(str(learned.encoder), "cpu"),
        retr.cwd / "first",
    )  # fmt: skip
    trained = {*(learned.encoder / "training-images.txt").read_text().split()}
    first = open_embeddings(retr.cwd / "first")
    assert first.facts.source.whole == open_embeddings(learned.train).facts.source.fingerprint
    known = trained & {*rows["id"].to_pylist()[:200]}
    assert f"was trained on {len(known)} images of" in retr("pairs", "first").err


def test_missing_encoder_folder_is_a_warning(retr: Retr, learned: Learned) -> None:
    copy = Path(shutil.copytree(learned.encoder, retr.cwd / "copy"))
    encode_source(open_source("digits", "test"), open_encoder(str(copy), "cpu"), retr.cwd / "made")
    assert retr.json("pairs", "made")["groups"]["trained"] is not None
    copy.rename(retr.cwd / "moved")
    outcome = retr("pairs", "made", "--json")
    assert outcome.document["groups"]["trained"] is None
    assert "folder is missing, or now holds other weights" in outcome.err


def test_a_trained_encoder_keeps_its_calibration(retr: Retr, learned: Learned) -> None:
    own = Path(shutil.copytree(learned.encoder, retr.cwd / "own"))
    encode_source(open_source("digits", "test"), open_encoder(str(own), "cpu"), retr.cwd / "made")
    retr("pairs", "made", "--save", "--calibration", "isotonic")
    assert (own / "calibration-cosine.json").is_file()
    save(retr.cwd / "a.png", 1)
    asked = ["compare", "a.png", "a.png", "--encoder", "own"]
    assert 0.5 < retr.json(*asked)["probability_same"] <= 1
    assert retr.json(*asked, "--metric", "manhattan")["probability_same"] is None
