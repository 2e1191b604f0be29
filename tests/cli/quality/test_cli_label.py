"""`retr label`, and evaluations and measurements of queries in words."""

from pathlib import Path

import pytest

from tests.cli.gallery import Gallery
from tests.cli.pictures import save
from tests.cli.running import Retr

COLORS = {"red": (250, 10, 10), "lime": (10, 250, 10), "blue": (10, 10, 250)}


@pytest.fixture
def photos(retr: Retr) -> Path:
    """Six plain pictures in one folder, two of each color."""
    from PIL import Image

    for name, color in COLORS.items():
        for number in range(2):
            path = retr.cwd / "photos" / f"{name}-{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (16, 16), tuple(c - number for c in color)).save(path)
    return retr.cwd / "photos"


def test_a_folder_is_labelled_and_searched_by_its_labels(retr: Retr, photos: Path) -> None:
    said = retr("label", "photos", "--with", "red, lime,blue", "--encoder", "toy").out
    assert "probabilities are the encoder's own, not fitted to labels" in said
    found = retr.json("label", "photos", "--with", "red,lime,blue")
    assert found["counts"] == {"red": 2, "lime": 2, "blue": 2}
    assert (found["images"], found["labelled"], found["agreement"]) == (6, 6, None)
    search = ["search", "photos/red-0.png", "--in", "photos"]
    (answer,) = retr.json(*search, "--where", "label = blue", "--show", "label_probability")
    assert {hit["id"] for hit in answer["hits"]} == {"blue-0.png", "blue-1.png"}
    assert all(hit["columns"]["label_probability"] > 0.34 for hit in answer["hits"])
    (none,) = retr.json(*search, "--where", "label = red and label_probability > 1")
    assert none["hits"] == []


def test_labels_stay_with_renamed_images_and_not_with_changed_ones(
    retr: Retr, photos: Path
) -> None:
    retr("label", "photos", "--with", "red,lime,blue", "--encoder", "toy")
    (photos / "red-0.png").rename(photos / "renamed.png")
    (photos / "blue-0.png").write_bytes((photos / "lime-0.png").read_bytes())
    save(photos / "new.png", seed=1)
    (answer,) = retr.json("search", "photos/renamed.png", "-k", "7", "--in", "photos")
    labels = {hit["id"]: hit["label"] for hit in answer["hits"]}
    assert labels["renamed.png"] == "red"
    assert labels["blue-0.png"] == "lime", "the content has this label"
    assert labels["new.png"] is None
    assert retr.json("verify", answer_folder(retr))["problems"] == []


def answer_folder(retr: Retr) -> str:
    """Return the embeddings folder of the photographs."""
    return str(retr.json("label", "photos", "--clear")["embeddings"])


def test_labels_can_be_cleared(retr: Retr, gallery: Gallery, photos: Path) -> None:
    folder = retr.json("encode", gallery.images, "--encoder", "toy", "--out", "gallery")["out"]
    own = retr.json("eval", "--queries", folder, "--database", folder)["map"]
    retr("label", folder, "--with", "red,blue")
    other = retr.run("eval", "--queries", folder, "--database", folder, "--json")
    assert other.document["map"] != own
    assert other.err.count("the labels of gallery are from 'retr label', not given") == 1
    assert "their own labels again" in retr("label", folder, "--clear").out
    assert retr.json("eval", "--queries", folder, "--database", folder)["map"] == own


def test_probabilities_are_fitted_to_labels(retr: Retr, gallery: Gallery) -> None:
    retr("encode", gallery.images, "--encoder", "toy", "--out", "gallery")
    given = ["label", "gallery", "--with", "red,green,blue"]
    found = retr.json(*given)
    assert found["calibration"]["images"] == 60
    assert found["calibration"]["error_after"] is not None
    assert found["compared"] == 60
    said = retr(*given, "--calibrate-on", str(gallery.embeddings)).out
    assert "probabilities fitted to 60 labels: temperature" in said
    few = retr.json(*given, "--min-probability", "0.999")
    assert few["labelled"] < 60


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no classes are given; name them with --with"),
        (["--with", "a,b", "--clear"], "--with and --clear exclude each other"),
        (["--with", "red"], "1 class is nothing to choose from; give two or more"),
        (["--with", "red,red"], "the class 'red' is given twice"),
        (["--with", "a,b", "--template", "photo"], "the template 'photo' has no {} for the name"),
    ],
)
def test_wrong_labels_are_refused(
    retr: Retr, gallery: Gallery, arguments: list[str], said: str
) -> None:
    assert said in retr.refused("label", str(gallery.embeddings), *arguments)


def test_texts_with_labels_are_evaluated(retr: Retr, gallery: Gallery) -> None:
    texts = retr.cwd / "texts.csv"
    texts.write_text("text,label\na red thing,red\nred,red\nblue sky,blue\nnothing,none\n")
    database = ["--database", gallery.embeddings]
    found = retr.json("eval", "--texts", "texts.csv", *database)
    assert found["queries"] == 3 and found["left_out"]["without_relevant"] == 1
    assert 0 < found["map"] <= 1 and len(found["intervals"]["map"]) == 2
    zero_shot = found["zero_shot"]
    assert (zero_shot["images"], zero_shot["classes"]) == (40, 3)
    assert set(zero_shot["per_class"]) == {"red", "blue"}
    exact = retr.json("eval", "--texts", "texts.csv", *database, "--index", gallery.index())
    assert exact["precision_at"] == found["precision_at"] and exact["map"] is None
    out = retr("eval", "--texts", "texts.csv", *database, "--in-templates").out
    assert "zero-shot accuracy" in out and "mAP" in out
    files = ["--export-run", "run.txt", "--export-qrels", "qrels.txt", "--save", "words.parquet"]
    retr("eval", "--texts", "texts.csv", *database, *files)
    assert (retr.cwd / "qrels.txt").read_text().startswith("texts.csv:%201 0 ")
    again = retr.json("eval", "--texts", "texts.csv", *database, "--against", "words.parquet")
    assert again["differences"]["map"]["difference"] == 0


def test_captions_are_evaluated_both_ways(retr: Retr, gallery: Gallery) -> None:
    ids = [f"{label}/{number}.png" for label in ("red", "blue") for number in range(3)]
    lines = [f"a {id_.split('/')[0]} picture,{id_}" for id_ in ids] + ["lost,gone.png"]
    (retr.cwd / "captions.csv").write_text("text,id\n" + "\n".join(lines) + "\n")
    given = ["eval", "--texts", "captions.csv", "--database", gallery.embeddings]
    found = retr.json(*given, "-k", "1,5,10")
    assert found["left_out"] == {"without_image": 1}
    for direction in ("text_to_image", "image_to_text"):
        recalls = found[direction]["recall_at"]
        assert [*recalls] == ["1", "5", "10"]
        assert recalls["1"] <= recalls["5"] <= recalls["10"]
        assert found[direction]["queries"] == 6
    assert found["image_to_text"]["recall_at"]["10"] == 1.0
    out = retr(*given).out
    assert "text → image" in out and "median rank" in out
    said = retr.refused(*given, "--index", gallery.index())
    assert "captions are ranked in both directions" in said
    retr(*given, "--export-run", "run.txt", "--export-qrels", "qrels.txt")
    assert len((retr.cwd / "qrels.txt").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--texts", "gone.csv"], "cannot read gone.csv"),
        (["--texts", "texts.csv", "--queries", "x"], "--texts takes the place of --queries"),
        (["--texts", "texts.csv", "--protocol", "unseen"], "--texts takes the place of"),
    ],
)
def test_wrong_evaluations_of_texts_are_refused(
    retr: Retr, gallery: Gallery, arguments: list[str], said: str
) -> None:
    (retr.cwd / "texts.csv").write_text("text,label\nred,red\n")
    assert said in retr.refused("eval", *arguments, "--database", gallery.embeddings)


def test_indices_are_measured_with_queries_in_words(retr: Retr, gallery: Gallery) -> None:
    (retr.cwd / "texts.csv").write_text("text\n" + "\n".join(COLORS) + "\n")
    asked = ["--queries", "texts.csv"]
    bench = ["bench", "--backend", "exact", "--database", gallery.embeddings]
    found = retr.json(*bench, *asked)
    assert found["data"]["queries"] == "texts.csv"
    assert found["rows"][0]["recall_at"]["10"] == 1.0
    built = retr.json("index", gallery.embeddings, "--backend", "auto", *asked, "--out", "index")
    assert built["tuning"]["queries"] == 3


def test_an_encoder_without_words_is_refused_before_anything_is_encoded(
    retr: Retr, photos: Path
) -> None:
    retr("label", "photos", "--with", "red,lime", "--encoder", "toy")
    outcome = retr.run("label", "photos", "--with", "red,lime", "--encoder", "siamese-quick")
    assert outcome.code == 2 and "siamese-quick cannot embed text" in outcome.err
    outcome = retr.run("search", "red", "--in", "photos", "--encoder", "siamese-quick")
    assert outcome.code == 2 and "siamese-quick cannot embed text" in outcome.err
    (answer,) = retr.json("search", "red", "-k", "2", "--in", "photos", "--where", "label = red")
    assert {hit["label"] for hit in answer["hits"]} == {"red"}


def test_few_labels_among_the_names_are_counted(retr: Retr, gallery: Gallery) -> None:
    given = ["label", gallery.embeddings, "--with", "zebra,lion"]
    said = retr.refused(*given, "--calibrate-on", gallery.embeddings)
    assert "0 of 60 images of" in said and "have a label among zebra, lion; give" in said
