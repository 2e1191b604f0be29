"""Facts about images, read from their headers."""

import os
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from retrieval.errors import BadImage
from retrieval.images.facts import ImageFacts, facts_of_each, image_facts

TAKEN, DIGITIZED, CHANGED, ORIENTATION, EXIF = 0x9003, 0x9004, 0x0132, 0x0112, 0x8769


def exif(**dates: str) -> Image.Exif:
    found = Image.Exif()
    ifd = found.get_ifd(EXIF)
    for name, date in dates.items():
        (found if name == "CHANGED" else ifd)[globals()[name]] = date
    return found


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_size_format_and_date(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    dates = exif(CHANGED="2012:01:01 00:00:00", TAKEN="2011:05:06 07:08:09")
    Image.new("RGB", (30, 20)).save(path, exif=dates)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    facts = image_facts(str(path))
    assert (facts.width, facts.height, facts.pixels) == (30, 20, 600)
    assert facts.bytes == path.stat().st_size
    assert facts.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}[suffix]
    assert facts.changed == 1_600_000_000
    taken = datetime(2011, 5, 6, 7, 8, 9)  # Pillow does not write it into a TIFF
    assert facts.date == (datetime(2012, 1, 1) if suffix == "tif" else taken).timestamp()


def test_date_is_that_of_the_file_without_a_date_taken(tmp_path: Path) -> None:
    for name, date in (("none", exif()), ("zero", exif(TAKEN="0000:00:00 00:00:00"))):
        path = tmp_path / f"{name}.jpg"
        Image.new("RGB", (8, 8)).save(path, exif=date)
        os.utime(path, (1_500_000_000, 1_500_000_000))
        facts = image_facts(str(path))
        assert facts.taken is None
        assert facts.date == 1_500_000_000
    path = tmp_path / "digitized.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=exif(DIGITIZED="1999:12:31 23:59:59"))
    assert image_facts(str(path)).date == datetime(1999, 12, 31, 23, 59, 59).timestamp()


def test_width_is_that_of_the_upright_image(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    for suffix in ("jpg", "png", "tif"):
        Image.new("RGB", (30, 20)).save(tmp_path / f"a.{suffix}", exif=turned)
        facts = image_facts(str(tmp_path / f"a.{suffix}"))
        assert (facts.width, facts.height) == (20, 30), suffix


def test_rows_of_data_sets_have_a_size_only() -> None:
    assert image_facts("digits#3") == ImageFacts(8, 8)


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("words")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    paths = [str(tmp_path / name) for name in ("text.jpg", "gone.jpg", "good.png", "a\0b")]
    found = facts_of_each(paths)
    assert [isinstance(each, BadImage) for each in found] == [True, True, False, True]
    with pytest.raises(BadImage, match="no such file"):
        image_facts(str(tmp_path / "gone.jpg"))
