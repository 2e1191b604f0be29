"""Facts about images, read from their headers."""

import os
from datetime import datetime
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from retrieval.errors import BadImage
from retrieval.images import decode
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


def photographed(**tags: object) -> Image.Exif:
    """EXIF data of a photograph taken in Munich, with some tags of the position replaced."""
    found = Image.Exif()
    found[ExifTags.Base.Model] = " Pixel  8\0\x07"
    found.get_ifd(EXIF)[TAKEN] = "2024:05:01 10:11:12"
    place = {"1": "N", "2": (48.0, 8.0, 15.0), "3": "E", "4": (11.0, 34.5, 0.0)} | tags
    for tag, value in place.items():
        if value is not None:
            found.get_ifd(ExifTags.IFD.GPSInfo)[int(tag)] = value
    return found


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
def test_camera_and_place(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (30, 20)).save(path, exif=photographed())
    facts = image_facts(str(path))
    assert facts.camera == "Pixel 8"
    assert facts.taken == datetime(2024, 5, 1, 10, 11, 12)
    assert facts.latitude == pytest.approx(48.1375)
    assert facts.longitude == pytest.approx(11.575)


@pytest.mark.parametrize(
    ("tags", "place"),
    [
        ({"1": "S", "3": "W"}, (-48.1375, -11.575)),
        ({"1": None, "3": None}, (48.1375, 11.575)),
        ({"2": (0.0, 0.0, 0.0), "4": (0.0, 0.0, 0.0)}, (0, 0)),
        ({"4": None}, (None, None)),
        ({"2": (91.0, 0.0, 0.0)}, (None, None)),
        ({"4": (181.0, 0.0, 0.0)}, (None, None)),
        ({"2": (IFDRational(1, 0), 0.0, 0.0)}, (None, None)),
        ({"2": (48.0, 8.0)}, (None, None)),
    ],
)
def test_positions(
    tmp_path: Path, tags: dict[str, object], place: tuple[float | None, float | None]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=photographed(**tags))
    facts = image_facts(str(tmp_path / "a.jpg"))
    assert (facts.latitude, facts.longitude) == pytest.approx(place)
    assert facts.camera == "Pixel 8"


def test_heic_on_its_side(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = photographed()
    exif[ORIENTATION] = 6
    image = Image.new("RGB", (64, 48))
    image.info["exif"] = exif.tobytes()
    pillow_heif.from_pillow(image).save(tmp_path / "a.heic")
    facts = image_facts(str(tmp_path / "a.heic"))
    assert (facts.width, facts.height) == decode(tmp_path / "a.heic", "a.heic").size
    assert (facts.format, facts.camera) == ("HEIC", "Pixel 8")
    assert facts.taken == datetime(2024, 5, 1, 10, 11, 12)
    assert facts.latitude == pytest.approx(48.1375)


def test_jpeg_xl(tmp_path: Path) -> None:
    pillow_jxl = pytest.importorskip("pillow_jxl")
    encoder = pillow_jxl.Encoder(
        mode="RGB",
        lossless=True,
        quality=100,
        decoding_speed=0,
        effort=1,
        use_container=True,
        use_original_profile=False,
        num_threads=1,
    )
    tags = photographed().tobytes().removeprefix(b"Exif\0\0")
    pixels = Image.new("RGB", (30, 20)).tobytes()
    content = bytes(encoder(pixels, 30, 20, jpeg_encode=False, exif=tags))
    (tmp_path / "a.jxl").write_bytes(content)
    facts = image_facts(str(tmp_path / "a.jxl"))
    assert (facts.width, facts.height, facts.format) == (30, 20, "JPEG XL")
    assert facts.camera == "Pixel 8"


def test_a_date_before_1970_counts() -> None:
    assert ImageFacts(1, 1, taken=datetime(1931, 2, 3), changed=5.0).date == pytest.approx(
        datetime(1931, 2, 3).timestamp()
    )


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
