"""`retr search`: forms of queries, and correct answers."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval import build_index, open_embeddings
from retrieval.contracts import Metric
from tests.cli.gallery import BACKENDS, Gallery
from tests.cli.oracle import check_nearest, distances
from tests.cli.pictures import mean_colour, picture, png, save, save_bad, save_parquet
from tests.cli.running import CONSOLE_SCRIPT, Retr


@pytest.mark.parametrize("backend", BACKENDS)
def test_search_of_one_image_finds_the_nearest(retr: Retr, gallery: Gallery, backend: str) -> None:
    pixels = save(retr.cwd / "query.png", seed=1)
    (answer,) = retr.json("search", "query.png", "-k", "7", "--index", gallery.index(backend))
    rows, vectors = gallery.read()
    assert answer["query"] == "query.png"
    check_nearest(answer["hits"], mean_colour(pixels), vectors, rows, 7)


@pytest.mark.parametrize("metric", list(Metric))
def test_distances_are_those_of_the_metric(retr: Retr, gallery: Gallery, metric: Metric) -> None:
    folder = retr.cwd / "index"
    build_index([open_embeddings(gallery.embeddings)], "exact", folder, metric)
    pixels = save(retr.cwd / "query.png", seed=2)
    (answer,) = retr.json("search", "query.png", "-k", "60", "--index", folder)
    rows, vectors = gallery.read()
    check_nearest(answer["hits"], mean_colour(pixels), vectors, rows, 60, metric)


def test_several_images_are_answered_in_order(retr: Retr, gallery: Gallery) -> None:
    names = ["b.png", "a.png", "ein Bild.png", "odd[1]#2.png", "b.png"]
    pixels = {name: save(retr.cwd / name, seed=len(name)) for name in names}
    answers = retr.json("search", *names, "-k", "3", "--index", gallery.index())
    rows, vectors = gallery.read()
    assert [answer["query"] for answer in answers] == names
    for answer in answers:
        query = mean_colour(pixels[answer["query"]])
        check_nearest(answer["hits"], query, vectors, rows, 3)


def test_default_k_is_at_most_the_number_of_rows(retr: Retr) -> None:
    for number in range(6):
        save(retr.cwd / "six" / f"{number}.png", seed=number)
    retr("encode", "six", "--encoder", "toy", "--out", "embeddings")
    retr("index", "embeddings", "--backend", "exact", "--out", "index")
    search = ["search", "six/0.png", "--index", "index"]
    assert [hit["rank"] for hit in retr.json(*search)[0]["hits"]] == [1, 2, 3, 4, 5, 6]
    assert len(retr.json(*search, "--where", "id=1.png,2.png")[0]["hits"]) == 2
    assert len(retr.json(*search, "--where", "id=1.png,2.png", "-k", "6")[0]["hits"]) == 2
    assert "k is 7; give 1 to 6" in retr.refused(*search, "-k", "7")


def test_different_distances_are_printed_differently(retr: Retr) -> None:
    for number in range(12):  # their mean red differs by 1 / 64 / 255
        pixels = np.full((8, 8, 3), 100, np.uint8)
        pixels.reshape(64, 3)[:number, 0] += 1
        path = retr.cwd / "gray" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    retr("encode", "gray", "--encoder", "toy", "--out", "embeddings")
    retr("index", "embeddings", "--backend", "exact", "--out", "index")
    search = ["search", "gray/0.png", "--index", "index"]
    hits = retr.json(*search)[0]["hits"]
    shown = [line.split()[1] for line in retr(*search).out.splitlines()[3:13]]
    assert len({*shown}) == len({hit["distance"] for hit in hits}) > 5
    np.testing.assert_allclose([*map(float, shown)], [hit["distance"] for hit in hits], atol=1e-6)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("queries", ["queries/b/1.png", "queries/a/2.png", "queries/a/10.png"]),
        ("queries/a", ["queries/a/2.png", "queries/a/10.png"]),
        ("queries/a/*.png", ["queries/a/2.png", "queries/a/10.png"]),
        ("queries/**/1*.png", ["queries/a/10.png", "queries/b/1.png"]),
    ],
)
def test_folders_and_globs_are_searched_image_by_image(
    retr: Retr, gallery: Gallery, given: str, found: list[str]
) -> None:
    wanted = {
        str(retr.cwd / name): save(retr.cwd / name, seed)
        for seed, name in enumerate(["queries/b/1.png", "queries/a/2.png", "queries/a/10.png"])
    }
    answers = retr.json("search", given, "-k", "2", "--index", gallery.index())
    rows, vectors = gallery.read()
    assert sorted(answer["query"] for answer in answers) == sorted(
        str(retr.cwd / name) for name in found
    )
    for answer in answers:
        query = mean_colour(wanted[answer["query"]])
        check_nearest(answer["hits"], query, vectors, rows, 2)


def test_row_of_a_parquet_file_is_a_query(retr: Retr, gallery: Gallery) -> None:
    contents = [png(picture(seed)) for seed in range(6)]
    save_parquet(retr.cwd / "images.parquet", contents, [None] * 6)
    answers = retr.json(
        "search", "images.parquet#4", "images.parquet#0", "-k", "4", "--index", gallery.index()
    )
    rows, vectors = gallery.read()
    assert [answer["query"] for answer in answers] == ["images.parquet#4", "images.parquet#0"]
    for answer, seed in zip(answers, (4, 0), strict=True):
        check_nearest(answer["hits"], mean_colour(picture(seed)), vectors, rows, 4)


def test_path_of_a_hit_is_a_query(retr: Retr, gallery: Gallery) -> None:
    contents = [png(picture(seed)) for seed in range(8)]
    labels = ["even" if seed % 2 == 0 else "odd" for seed in range(8)]
    save_parquet(retr.cwd / "images.parquet", contents, labels)
    retr.json("encode", "images.parquet", "--encoder", "toy", "--out", "embeddings")
    retr.json("index", "embeddings", "--backend", "exact", "--out", "index")
    save(retr.cwd / "query.png", seed=3)
    (answer,) = retr.json("search", "query.png", "-k", "1", "--index", "index")
    (hit,) = answer["hits"]
    assert (hit["id"], hit["label"]) == ("images.parquet#3", "odd")
    (again,) = retr.json("search", hit["path"], "-k", "1", "--index", "index")
    assert again["hits"] == [hit]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("where", "labels"), [("label=red", {"red"}), ("label=red,blue", {"red", "blue"})]
)
def test_filter_gives_the_nearest_matching_rows(
    retr: Retr, gallery: Gallery, backend: str, where: str, labels: set[str]
) -> None:
    pixels = save(retr.cwd / "query.png", seed=4)
    (answer,) = retr.json(
        "search", "query.png", "-k", "15", "--where", where, "--index", gallery.index(backend)
    )
    rows, vectors = gallery.read()
    among = [i for i, row in enumerate(rows) if row["label"] in labels]
    matching = [rows[i] for i in among]
    query = mean_colour(pixels)
    check_nearest(answer["hits"], query, vectors[among], matching, 15)
    # Without the filter, the nearest rows are others.
    nearest = np.argsort(distances(query, vectors, "euclidean"))[:15]
    assert {rows[i]["label"] for i in nearest} - labels


def test_filter_with_few_matches_gives_all_of_them(retr: Retr, gallery: Gallery) -> None:
    pixels = save(retr.cwd / "query.png", seed=4)
    (answer,) = retr.json(
        "search", "query.png", "-k", "50", "--where", "label=green", "--index", gallery.index()
    )
    rows, vectors = gallery.read()
    among = [i for i, row in enumerate(rows) if row["label"] == "green"]
    green = [rows[i] for i in among]
    assert len(answer["hits"]) == len(green) == 20
    check_nearest(answer["hits"], mean_colour(pixels), vectors[among], green, 50)


def test_a_filter_by_id_finds_that_row(retr: Retr, gallery: Gallery) -> None:
    (answer,) = retr.json(
        "search", gallery.image, "--where", "id=red/3.png,blue/19.png", "--index", gallery.index()
    )
    assert sorted(hit["id"] for hit in answer["hits"]) == ["blue/19.png", "red/3.png"]


def test_search_options_can_be_changed(retr: Retr, gallery: Gallery) -> None:
    pixels = save(retr.cwd / "query.png", seed=6)
    rows, vectors = gallery.read()
    for backend, option in (("hnsw", "ef=100"), ("ivf", "n-probe=1000")):
        (answer,) = retr.json(
            "search", "query.png", "--set", option, "--index", gallery.index(backend)
        )
        check_nearest(answer["hits"], mean_colour(pixels), vectors, rows, 10)


def test_the_sheet_shows_queries_and_hits(retr: Retr, gallery: Gallery) -> None:
    save(retr.cwd / "a.png", seed=1)
    save(retr.cwd / "b.png", seed=2)
    arguments = ["search", "a.png", "b.png", "--index", str(gallery.index())]
    retr.json(*arguments, "-k", "4", "--sheet", "four.png")
    assert "drawn: eight.png" in retr(*arguments, "-k", "8", "--sheet", "eight.png").out
    sizes = {}
    for name in ("four.png", "eight.png"):
        with Image.open(retr.cwd / name) as sheet:
            assert sheet.format == "PNG"
            sheet.load()
            sizes[name] = sheet.size
            # Not only the background: the colors of the pictures are there.
            assert len(sheet.convert("RGB").getcolors(2**24) or []) > 100
    tile = (sizes["eight.png"][0] - sizes["four.png"][0]) / 4
    assert 64 <= tile <= 512
    assert sizes["four.png"][0] >= 5 * tile
    assert sizes["four.png"][1] == sizes["eight.png"][1] >= 2 * tile


def test_sheet_is_drawn_without_a_missing_image(retr: Retr, gallery: Gallery, photos: Path) -> None:
    retr.json("encode", photos, "--encoder", "toy", "--out", "embeddings")
    retr.json("index", "embeddings", "--backend", "exact", "--out", "index")
    save(retr.cwd / "a.png", seed=1)
    (photos / "red" / "0.png").unlink()
    outcome = retr.run("search", "a.png", "-k", "30", "--index", "index", "--sheet", "sheet.png")
    assert outcome.code == 0
    gone = photos / "red" / "0.png"
    assert f"1 of 30 images found are not where they were, such as {gone}; " in outcome.err
    assert "--root" in outcome.err
    with Image.open(retr.cwd / "sheet.png") as sheet:
        assert sheet.width > 31 * 64


@pytest.mark.parametrize("place", [".", "nowhere/sheet.png", "file/sheet.png", "/proc/sheet.png"])
def test_a_sheet_that_cannot_be_written_is_an_error(
    retr: Retr, gallery: Gallery, place: str
) -> None:
    (retr.cwd / "file").write_text("mine")
    outcome = retr.run("search", gallery.image, "--index", gallery.index(), "--sheet", place)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1
    assert place in outcome.err
    assert (retr.cwd / "file").read_text() == "mine"


def test_a_bad_image_among_good_ones_is_skipped(retr: Retr, gallery: Gallery) -> None:
    pixels = save(retr.cwd / "good.png", seed=1)
    save_bad(retr.cwd)
    outcome = retr(
        "search", "missing.png", "good.png", "empty.png", "truncated.png", "-k", "2",
        "--index", gallery.index(), "--json",
    )  # fmt: skip
    (answer,) = outcome.document
    rows, vectors = gallery.read()
    assert answer["query"] == "good.png"
    check_nearest(answer["hits"], mean_colour(pixels), vectors, rows, 2)
    lines = outcome.err.splitlines()
    assert len(lines) == 3
    for line, name, reason in zip(
        lines,
        ("missing.png", "empty.png", "truncated.png"),
        ("no such file", "empty file", "truncated"),
        strict=True,
    ):
        assert line.startswith("warning: skipped ")
        assert f"{name}: " in line
        assert reason in line


def test_closed_pipe_ends_a_search_silently(retr: Retr, gallery: Gallery) -> None:
    images = [str(gallery.images)] * 30
    command = [str(CONSOLE_SCRIPT), "search", *images, "--index", str(gallery.index())]
    with subprocess.Popen(
        command, cwd=retr.cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_file_name_that_is_not_utf8_is_searched(retr: Retr, gallery: Gallery) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    pixels = save(retr.cwd / "queries" / name, seed=1)
    rows, vectors = gallery.read()
    for given in (f"queries/{name}", "queries"):
        (answer,) = retr.json("search", given, "-k", "2", "--index", gallery.index())
        check_nearest(answer["hits"], mean_colour(pixels), vectors, rows, 2)
        assert "caf" in retr("search", given, "-k", "2", "--index", gallery.index()).out
