"""Images and sources that cannot be read: a one-line error, and no data loss."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.cli.gallery import Gallery
from tests.cli.pictures import BAD, picture, png, save, save_bad, save_parquet
from tests.cli.running import Retr

REASONS = {name: reason for name, (_, reason) in BAD.items()} | {"missing.png": "no such file"}


@pytest.mark.parametrize("name", REASONS)
def test_search_names_the_problem_of_a_bad_image(retr: Retr, gallery: Gallery, name: str) -> None:
    save_bad(retr.cwd)
    message = retr.refused("search", name, "--index", gallery.index())
    assert name in message
    assert REASONS[name] in message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("empty-folder", "no images"),
        ("letters", "no images"),
        ("nothing-*.png", "no images"),
        ("nowhere/*.png", "nowhere"),
        ("images.parquet#6", "no such row"),
        ("missing.parquet#0", "no such file"),
        ("cut.parquet#0", "cut.parquet"),
        ("digits#1797", "no such row"),
        ("two\nlines.png", "no such file"),
        ("", "empty name"),
    ],
)
def test_search_names_the_problem_of_a_bad_source(
    retr: Retr, gallery: Gallery, given: str, said: str
) -> None:
    make_sources(retr.cwd)
    assert said in retr.refused("search", given, "--index", gallery.index())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("empty-folder", "no images"),
        ("letters", "no images"),
        ("nothing-*.png", "no images"),
        ("nowhere", "'nowhere' is neither a data set nor a path"),
        ("missing.png", "missing.png"),
        ("cut.parquet", "cannot read"),
        ("text.parquet", "cannot read"),
        ("numbers.parquet", "its columns are numbers (int64); wanted img, image or another"),
        ("", "is neither a data set nor a path"),
    ],
)
def test_encode_names_the_problem_of_a_bad_source(retr: Retr, given: str, said: str) -> None:
    make_sources(retr.cwd)
    message = retr.refused("encode", given, "--encoder", "toy", "--out", "made")
    assert said in message
    assert not (retr.cwd / "made").exists()


def make_sources(folder: Path) -> None:
    (folder / "empty-folder").mkdir()
    (folder / "letters").mkdir()
    (folder / "letters" / "letter.txt").write_text("Dear all")
    save_parquet(folder / "images.parquet", [png(picture(seed)) for seed in range(6)], ["a"] * 6)
    whole = (folder / "images.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "text.parquet").write_text("no Parquet at all")
    pq.write_table(pa.table({"numbers": [1, 2, 3]}), folder / "numbers.parquet")


@pytest.mark.parametrize("name", BAD)
def test_encode_of_one_bad_image_names_the_problem(retr: Retr, name: str) -> None:
    save_bad(retr.cwd)
    message = retr.refused("encode", name, "--encoder", "toy", "--out", "made", leaves=True)
    assert name in message
    assert REASONS[name] in message


def test_encode_of_only_bad_images_is_refused(retr: Retr) -> None:
    save_bad(retr.cwd / "bad")
    message = retr.refused("encode", "bad", "--encoder", "toy", "--out", "made", leaves=True)
    assert f"cannot read any of the {len(BAD)} images" in message
    assert "skipped.parquet" in message
    skipped = pq.read_table(retr.cwd / "made" / "skipped.parquet").to_pylist()
    assert sorted(Path(row["path"]).name for row in skipped) == sorted(BAD)
    # No unfinished embeddings remain.
    assert "not complete" in retr.refused("index", "made", "--out", "index")


def test_bad_images_that_arrive_leave_earlier_embeddings(retr: Retr, photos: Path) -> None:
    first = retr.json("encode", photos, "--encoder", "toy", "--out", "made")
    before = (retr.cwd / "made" / "part-00000.parquet").read_bytes()
    save_bad(photos)
    outcome = retr.run("encode", photos, "--encoder", "toy", "--out", "made")
    assert outcome.code == 0
    assert "could not be read; made/skipped.parquet lists them" in outcome.err
    assert (retr.cwd / "made" / "part-00000.parquet").read_bytes() == before
    again = retr.run("encode", photos, "--encoder", "toy", "--out", "made", "--json").document
    assert (again["rows"], again["encoded"], again["kept"]) == (first["rows"], 0, first["rows"])


def test_parquet_rows_without_an_image_are_skipped(retr: Retr) -> None:
    contents = [png(picture(0)), b"", b"no image", png(picture(1))]
    save_parquet(retr.cwd / "images.parquet", contents, ["a", "b", None, "c"])
    outcome = retr("encode", "images.parquet", "--encoder", "toy", "--out", "made", "--json")
    assert (outcome.document["rows"], outcome.document["skipped"]) == (2, 2)
    skipped = pq.read_table(retr.cwd / "made" / "skipped.parquet").to_pylist()
    path = str(retr.cwd / "images.parquet")
    assert [(row["path"], row["reason"]) for row in skipped] == [
        (f"{path}#1", "empty file"),
        (f"{path}#2", "not an image"),
    ]


def test_damaged_row_group_is_a_one_line_error(retr: Retr) -> None:
    contents = [png(picture(seed)) for seed in range(50)]
    save_parquet(retr.cwd / "images.parquet", contents, ["a"] * 50)
    content = bytearray((retr.cwd / "images.parquet").read_bytes())
    content[40:80] = bytes(40)  # inside the first page, far from the footer
    (retr.cwd / "images.parquet").write_bytes(content)
    message = retr.refused(
        "encode", "images.parquet", "--encoder", "toy", "--out", "made", leaves=True
    )
    assert "images.parquet" in message


def test_image_with_the_wrong_suffix_is_read(retr: Retr, gallery: Gallery) -> None:
    save(retr.cwd / "really-png.jpg", seed=1)
    assert retr.json("search", "really-png.jpg", "--index", gallery.index())


def test_max_megapixels_limits_the_size_of_images(retr: Retr) -> None:
    """A PNG counts by its own size, a JPEG by the size at which it is decoded."""
    folder = retr.cwd / "large"
    folder.mkdir()
    image = Image.fromarray(picture(1)).resize((1600, 1200))
    image.save(folder / "a.png")
    image.save(folder / "b.jpg")
    encode = ("encode", folder, "--encoder", "toy", "--out")
    done = retr(*encode, "some", "--max-megapixels", "1")
    assert "1 image could not be read" in done.err
    skipped = pq.read_table(retr.cwd / "some" / "skipped.parquet").to_pylist()
    assert [(Path(row["path"]).name, row["reason"]) for row in skipped] == [
        ("a.png", "1,920,000 pixels; the maximum is 1,000,000 (raise it with --max-megapixels 2)")
    ]
    assert retr.json(*encode, "all", "--max-megapixels", "2")["rows"] == 2
    retr("index", "some", "--out", "index")
    search = ("search", folder / "a.png", "--index", "index")
    assert "--max-megapixels 2" in retr.refused(*search, "-k", "1", "--max-megapixels", "1")
    assert retr.json(*search, "-k", "1", "--max-megapixels", "2")[0]["hits"][0]["id"] == "b.jpg"
    warned = retr("duplicates", "all", "--max-megapixels", "1").err
    assert "a.png: 1,920,000 pixels; the maximum is 1,000,000" in warned


@pytest.mark.parametrize("value", ["0", "-3"])
def test_max_megapixels_below_one_is_refused(retr: Retr, value: str) -> None:
    message = retr.refused("encode", "digits", "--encoder", "toy", "--max-megapixels", value)
    assert f"--max-megapixels {value} is below 1; give 1 or more" in message


def test_max_megapixels_is_read_from_the_environment(retr: Retr) -> None:
    limited = replace(retr, env={"RETR_MAX_MEGAPIXELS": "many"})
    Image.fromarray(picture(1)).save(retr.cwd / "a.png")
    message = limited.refused("encode", "*.png", "--encoder", "toy", "--out", "out")
    assert "RETR_MAX_MEGAPIXELS is 'many'; set it to a whole number" in message
