"""`retr search` with words, alone and together with images."""

import numpy as np
import pytest
from PIL import Image

from tests.cli.gallery import Gallery
from tests.cli.oracle import check_nearest
from tests.cli.pictures import mean_colour, save
from tests.cli.running import Retr

RED, LIME, BLUE = np.eye(3)


def test_words_find_what_they_name(retr: Retr, gallery: Gallery) -> None:
    rows, vectors = gallery.read()
    answers = retr.json("search", "a red car", "lime", "-k", "5", "--index", gallery.index())
    assert [answer["query"] for answer in answers] == ["a red car", "lime"]
    for answer, color in zip(answers, (RED, LIME), strict=True):
        check_nearest(answer["hits"], color, vectors, rows, 5)


def test_words_and_images_are_answered_in_order(retr: Retr, gallery: Gallery) -> None:
    pixels = save(retr.cwd / "b.png", seed=3)
    names = ["blue", "b.png", "red"]
    answers = retr.json("search", *names, "-k", "3", "--index", gallery.index())
    rows, vectors = gallery.read()
    assert [answer["query"] for answer in answers] == names
    check_nearest(answers[0]["hits"], BLUE, vectors, rows, 3)
    check_nearest(answers[1]["hits"], mean_colour(pixels), vectors, rows, 3)


def test_image_and_words_are_one_query(retr: Retr, gallery: Gallery) -> None:
    pixels = save(retr.cwd / "b.png", seed=4)
    asked = ["search", "b.png", "--text", "blue", "--not", "red", "--index", gallery.index()]
    rows, vectors = gallery.read()
    (answer,) = retr.json(*asked)
    assert answer["query"] == {"images": ["b.png"], "texts": ["blue"], "not": ["red"]}
    check_nearest(answer["hits"], mean_colour(pixels) + BLUE - RED / 2, vectors, rows, 10)
    weights = ["--weight", "images=2", "--weight", "text=0", "--weight", "not=-1"]
    (answer,) = retr.json(*asked, *weights)
    check_nearest(answer["hits"], 2 * mean_colour(pixels) + RED, vectors, rows, 10)


def test_words_without_an_option_join_a_query(retr: Retr, gallery: Gallery) -> None:
    (answer,) = retr.json("search", "blue sea", "--not", "red", "--index", gallery.index())
    assert answer["query"] == {"images": [], "texts": ["blue sea"], "not": ["red"]}
    (only,) = retr.json("search", "--text", "img.png", "--index", gallery.index())
    assert only["query"]["texts"] == ["img.png"], "--text is never a path"


@pytest.mark.parametrize("path", ["gone.png", "photos/gone", "gone.JPG", "./gone", "a dog.jpeg"])
def test_a_path_that_is_none_is_no_words(retr: Retr, gallery: Gallery, path: str) -> None:
    said = retr.refused("search", path, "--index", gallery.index())
    assert f"cannot read image {path}: " in said
    assert said.rstrip().endswith("; correct the path, or search for words with --text")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to search for; give an image, or words"),
        (["--text", ""], "a text is empty; give words to search for"),
        (["--not", " "], "a text is empty"),
        (["red", "--weight", "text=2"], "--weight is for queries with --text or --not"),
        (["--text", "red", "--weight", "text=nan"], "give a finite number"),
        (["--text", "red", "--weight", "words=1"], "unknown part of a query 'words'"),
        (["--text", "red", "--weight", "text=0"], "all parts of the query have the weight 0"),
    ],
)
def test_wrong_queries_are_refused(
    retr: Retr, gallery: Gallery, arguments: list[str], said: str
) -> None:
    assert said in retr.refused("search", *arguments, "--index", gallery.index())


def test_the_table_and_the_sheet_show_the_words(retr: Retr, gallery: Gallery) -> None:
    sheet = retr.cwd / "sheet.png"
    out = retr("search", "a red car", "-k", "2", "--index", gallery.index(), "--sheet", sheet).out
    assert out.splitlines()[0] == '"a red car"'
    drawn = np.asarray(Image.open(sheet).convert("L"))
    assert (drawn[45:150, 15:120] < 100).any(), "the words are in the first tile"
    save(retr.cwd / "b.png", seed=4)
    joined = ["search", "b.png", "--text", "sea", "--not", "red", "--not", "pink"]
    out = retr(*joined, "--index", gallery.index()).out
    assert out.splitlines()[0] == 'b.png + "sea", not "red" or "pink"'


def test_words_of_any_script_are_printed(retr: Retr, gallery: Gallery) -> None:
    answers = retr.json("search", "红色的车 🚗", "x" * 10_000, "--index", gallery.index())
    assert answers[0]["query"] == "红色的车 🚗"
    assert len(answers[1]["query"]) == 10_000


def test_an_index_without_words_names_an_encoder_that_has_them(retr: Retr) -> None:
    for number in range(3):
        save(retr.cwd / "three" / f"{number}.png", seed=number)
    retr("encode", "three", "--encoder", "siamese-quick", "--out", "embeddings")
    retr("index", "embeddings", "--backend", "exact", "--out", "index")
    # ONNX Runtime writes into the cache, so that `refused` would find a change.
    outcome = retr.run("search", "imgg", "--index", "index")
    said = outcome.err.rstrip()
    assert (outcome.code, outcome.out, said.count("\n")) == (2, "", 0)
    assert "there is no file 'imgg', and encoder siamese-quick cannot embed text; " in said
    assert said.endswith("encode the images with --encoder clip:ViT-B-32-256 or another that can")
    explicit = retr.run("search", "--text", "imgg", "--index", "index")
    assert explicit.code == 2 and "there is no file" not in explicit.err
