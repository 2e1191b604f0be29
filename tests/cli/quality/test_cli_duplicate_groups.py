"""`retr duplicates`: groups, the image to keep of each, and the files that list them."""

import csv
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.cli.running import Retr, snapshot


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path, retr: Retr) -> Path:
    """Ten scenes; copies of 1, 2 and 3: exact, rotated and smaller, mirrored."""
    folder = tmp_path / "photos"
    (folder / "copies").mkdir(parents=True)
    for seed in range(10):
        scene(seed).save(folder / f"{seed}.png")
    shutil.copy2(folder / "1.png", folder / "copies" / "1 again.png")
    shutil.copy2(folder / "1.png", folder / "copies" / "1 <b>once & more.png")
    small = scene(2, (80, 60))
    small.transpose(Image.Transpose.ROTATE_270).save(folder / "copies" / "2 rotated.jpg")
    ImageOps.mirror(scene(3)).save(folder / "copies" / "3 mirrored.jpg", quality=90)
    os.utime(folder / "copies" / "3 mirrored.jpg", (1_000_000_000, 1_000_000_000))
    retr("encode", folder, "--encoder", "toy")
    return folder


def test_crops_are_found_if_asked_for(retr: Retr, photos: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(256, size=(24, 32, 3), dtype=np.uint8)
    whole = Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)
    whole.save(photos / "whole.png")
    whole.crop((32, 24, 288, 216)).resize((640, 480)).save(photos / "crop.png")
    retr("encode", photos, "--encoder", "toy")
    assert "crop.png" not in str(retr.json("duplicates")["groups"])
    found = retr.json("duplicates", "--crops", "-k", 20, "--csv", "crops.csv")
    assert groups(found)["whole.png"] == ["crop.png"], "the crop has more pixels"
    (pair,) = (pair for pair in found["pairs"] if pair["crop"])
    assert (pair["a"], pair["b"], pair["crop"]) == ("crop.png", "whole.png", "a")
    assert pair["box"] == pytest.approx([0.1, 0.1, 0.9, 0.9], abs=0.01)
    assert {each["box"] for each in found["pairs"] if not each["crop"]} == {None}
    with (retr.cwd / "crops.csv").open(newline="") as file:
        assert {row["remove"] for row in csv.DictReader(file) if row["crop"] == "True"} == {
            "crop.png"
        }
    out = retr("duplicates", "--crops", "-k", 20).out
    assert "1 crop" in out


def groups(document: Any) -> dict[str, list[str]]:
    return {group["keep"]: sorted(group["remove"]) for group in document["groups"]}


COPIES_OF_1 = ["copies/1 <b>once & more.png", "copies/1 again.png"]


def test_groups_name_the_image_to_keep(retr: Retr, photos: Path) -> None:
    before = snapshot(photos)
    found = retr.json("duplicates")
    assert groups(found) == {
        "1.png": COPIES_OF_1,
        "2.png": ["copies/2 rotated.jpg"],
        "copies/3 mirrored.jpg": ["3.png"],  # it is older, and as large
    }
    assert found["pairs"] == found["duplicates"]
    assert {*found} == {
        *("groups", "pairs", "duplicates", "images", "compared", "proposed", "unreadable")
    }
    turned = {
        (pair["a"], pair["b"]): (pair["mirrored"], pair["rotated"]) for pair in found["pairs"]
    }
    assert turned["2.png", "copies/2 rotated.jpg"] == (False, 90)
    assert turned["3.png", "copies/3 mirrored.jpg"] == (True, 0)
    exact = [(pair["a"], pair["b"]) for pair in found["pairs"] if pair["exact"]]
    assert exact == [("1.png", each) for each in COPIES_OF_1]
    assert snapshot(photos) == before, "nothing is deleted"


def test_keep_and_as_is_choose(retr: Retr, photos: Path) -> None:
    assert groups(retr.json("duplicates", "--keep", "first")) == {
        "1.png": COPIES_OF_1,
        "2.png": ["copies/2 rotated.jpg"],
        "3.png": ["copies/3 mirrored.jpg"],
    }
    assert "copies/2 rotated.jpg" in groups(retr.json("duplicates", "--keep", "newest"))
    assert "copies/3 mirrored.jpg" in groups(retr.json("duplicates", "--keep", "oldest"))
    assert groups(retr.json("duplicates", "--as-is")) == {"1.png": COPIES_OF_1}
    out = retr("duplicates").out
    assert "rotated 90°" in out
    assert "exact copy" in out
    assert "3 groups: 4 images to remove" in out
    assert "nothing was deleted" in out


def test_only_images_that_are_there_are_proposed(retr: Retr, photos: Path) -> None:
    """The original of an exact copy was deleted or changed after it was encoded."""
    (photos / "1.png").unlink()
    scene(50).save(photos / "copies" / "1 again.png")
    outcome = retr("duplicates", "--json")
    assert "1.png: no such file" in outcome.err
    found = outcome.document
    assert "1.png" not in groups(found)
    assert not any({*COPIES_OF_1} & {pair["a"], pair["b"]} for pair in found["pairs"])


def test_csv_lists_keep_and_remove(retr: Retr, photos: Path) -> None:
    retr("duplicates", "--csv", "groups.csv", "--out", "pairs.csv")
    with (retr.cwd / "groups.csv").open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert sorted((row["keep"], row["remove"]) for row in rows) == [
        ("1.png", COPIES_OF_1[0]),
        ("1.png", COPIES_OF_1[1]),
        ("2.png", "copies/2 rotated.jpg"),
        ("copies/3 mirrored.jpg", "3.png"),
    ]
    rotated = next(row for row in rows if row["keep"] == "2.png")
    assert rotated["remove_path"] == str(photos / "copies" / "2 rotated.jpg")
    assert [rotated[key] for key in ("keep_width", "remove_width", "rotated")] == [
        "160",
        "60",
        "90",
    ]
    assert int(rotated["remove_bytes"]) == Path(rotated["remove_path"]).stat().st_size
    assert {row["group"] for row in rows} == {"1", "2", "3"}
    with (retr.cwd / "pairs.csv").open(newline="", encoding="utf-8") as file:
        assert {"a", "b", "label_a", "label_b", "correlation"} <= {*next(csv.DictReader(file))}
    retr("duplicates", "--correlation", "1", "--as-is", "--csv", "groups.csv")
    assert len((retr.cwd / "groups.csv").read_text().splitlines()) == 3, "the exact copies"


def test_page_shows_groups_side_by_side(retr: Retr, photos: Path) -> None:
    outcome = retr("duplicates", "--page", "page.html")
    assert "written: page.html, 3 groups" in outcome.out
    page = (retr.cwd / "page.html").read_text("utf-8")
    assert page.count("<figure") == 7
    assert page.count('<figure class="keep">') == 3
    assert page.count('src="data:image/') == 7
    assert not re.search(r"(src|href)=\"(?!data:|file:)", page), "nothing is loaded from elsewhere"
    assert "<b>once" not in page
    assert "1 &lt;b&gt;once &amp; more.png" in page
    assert "160 × 120" in page
    assert "remove: mirrored, correlation 0.99" in page
    assert "remove: exact copy" in page
    assert str(photos / "copies" / "2 rotated.jpg") in page
    (retr.cwd / "page.html").unlink()
    retr("duplicates", "--as-is", "--correlation", "1", "--keep", "first", "--page", "page.html")
    assert (retr.cwd / "page.html").read_text("utf-8").count("<figure") == 3


def test_between_keeps_the_first_set(retr: Retr, photos: Path, tmp_path: Path) -> None:
    """Images of both sets may have the same id; those of the second set are removed."""
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy2(photos / "1.png", new / "1.png")
    scene(2, (320, 240)).save(new / "1b.png")
    scene(30).save(new / "3.png")
    scene(30).save(new / "3 again.png")
    retr("encode", photos, "--encoder", "toy", "--out", "a")
    retr("encode", new, "--encoder", "toy", "--out", "b")
    found = retr.json("duplicates", "--between", "a", "b")
    assert groups(found) == {"1.png": ["1.png"], "2.png": ["1b.png"]}
    exact = {(pair["a"], pair["b"]) for pair in found["pairs"] if pair["exact"]}
    assert exact == {("1.png", "1.png"), *((each, "1.png") for each in COPIES_OF_1)}
    assert found["images"] == [14, 4]


def test_sets_without_files_have_groups(retr: Retr) -> None:
    retr("encode", "digits", "--limit", "40", "--encoder", "toy", "--out", "digits")
    found = retr.json("duplicates", "digits", "--correlation", "0.9")
    removed = [id_ for group in found["groups"] for id_ in group["remove"]]
    assert len(removed) == len({*removed})
    assert not any(pair["exact"] for pair in found["pairs"])
    retr("duplicates", "digits", "--correlation", "0.9", "--page", "page.html", "--csv", "a.csv")


def test_bad_options_are_refused(retr: Retr, photos: Path) -> None:
    assert "largest, newest, oldest" in retr.refused("duplicates", "--keep", "best")
    for option in ("--csv", "--page", "--out"):
        message = retr.refused("duplicates", option, "missing/file")
        assert "missing is not a folder" in message
