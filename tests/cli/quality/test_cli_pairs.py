"""`retr pairs`: how well distances separate pairs of the same class from others."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.pictures import draw_pairs
from retrieval import open_embeddings, open_encoder
from retrieval.contracts import Metric
from retrieval.drawing.figures import PairPicture
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.pairs.verification import Procedure, split, verify
from retrieval.quality.labelled import Labelled
from tests.cli.colors import color_photos, other_photos
from tests.cli.gallery import Gallery
from tests.cli.pictures import save
from tests.cli.running import Retr


def test_pairs_are_judged_by_a_threshold_from_other_images(retr: Retr, gallery: Gallery) -> None:
    found = retr.json("pairs", gallery.embeddings, "--threshold", "0", "--threshold", "10")
    assert found["pairs"] == 10_000
    assert found["accuracy_at"] == {"0": 0.5, "10": 0.5}  # no pair is the same class, and all are
    assert found["measured"] == "euclidean distance"
    # The toy encoder has no card that names its classes.
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


def test_separate_colors_are_told_apart(retr: Retr) -> None:
    color_photos(retr.cwd / "photos")
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


def test_validation_images_from_another_set(retr: Retr) -> None:
    color_photos(retr.cwd / "photos")
    color_photos(retr.cwd / "others", seed=50)
    for name in ("photos", "others"):
        encode_source(
            open_source(str(retr.cwd / name)), open_encoder("toy"), retr.cwd / f"e-{name}"
        )
    found = retr.json("pairs", "e-photos", "--validation", "e-others")
    assert found["accuracy"] == 1
    shutil.copytree(retr.cwd / "e-photos", retr.cwd / "copy")
    message = retr.refused("pairs", "e-photos", "--validation", "copy", leaves=True)
    assert "80 images are in both the validation and the test set, such as" in message
    retr("encode", "photos", "--limit", "30", "--encoder", "toy", "--out", "some")
    message = retr.refused("pairs", "e-photos", "--validation", "some", leaves=True)
    assert "30 images are in both the validation and the test set, such as" in message


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pairs", "{e}", "--classes", "blue,rad"], "'rad'; did you mean 'red'"),
        (["pairs", "{e}", "--classes", "blue,"], "write names separated by commas"),
        (
            ["pairs", "{e}", "--classes", "blue"],
            "pairs of different classes need 2 classes, and there are 1;",
        ),
        (["pairs", "{e}", "--held-out", "violet"], "unknown class of these images 'violet'"),
        (["pairs", "{e}", "--seed", "-1"], "greater than or equal to 0"),
        (["pairs", "{e}", "--count", "7"], "the number of pairs is 7; give an even number"),
        (["pairs", "{e}", "--count", "0"], "give an even number, 2 or more"),
        (["pairs", "{e}", "--scheme", "rondom"], "did you mean 'random'"),
        (["pairs", "{e}", "--calibration", "given"], "isotonic, logistic"),
        (["pairs", "{e}", "--scorer", "toy"], "encoder 'toy' cannot score pairs; give 'layers'"),
        (["pairs", "{e}", "--metric", "l2"], "manhattan"),
        (["pairs", "{e}", "--scorer", "s", "--metric", "cosine"], "leave --metric or --scorer"),
        (["pairs", "gone"], "gone"),
        (["pairs"], "there is no queries in the workspace"),
        (["compare", "{i}"], "1 image given, not 2"),
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


def test_class_with_a_single_image_is_named(retr: Retr) -> None:
    color_photos(retr.cwd / "photos")
    save(retr.cwd / "photos" / "alone" / "0.png", seed=9)
    encode_source(open_source(str(retr.cwd / "photos")), open_encoder("toy"), retr.cwd / "made")
    for more in ([], ["--validation", other_photos(retr.cwd)]):
        err = retr("pairs", "made", *more).err
        assert (
            "class 'alone' has a single image to test, so that it has no pair that is alike" in err
        )
