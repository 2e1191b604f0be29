"""Framing: against torchvision's Resize and CenterCrop, and by hand; large JPEGs, in memory too."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from retrieval.contracts import Framing, Images, Resample
from retrieval.errors import BadImage, BadInput
from retrieval.images import Item, decode, frame, load

MODES = {
    Resample.BICUBIC: InterpolationMode.BICUBIC,
    Resample.BILINEAR: InterpolationMode.BILINEAR,
}


def noise(height: int, width: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_torchvision(image: Image.Image, framing: Framing) -> NDArray[np.uint8]:
    resized = resize(image, round(framing.side / framing.crop), MODES[framing.resample])
    return np.asarray(center_crop(resized, framing.side))


@pytest.mark.parametrize("resample", Resample)
@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize(
    ("width", "height"),
    [(32, 32), (28, 28), (8, 8), (100, 100), (37, 50), (51, 37), (300, 40), (33, 257), (1, 1)],
)
def test_it_resizes_and_crops_as_torchvision_does(
    width: int, height: int, crop: float, resample: Resample
) -> None:
    framing = Framing(32, crop, resample)
    image = Image.fromarray(noise(height, width))
    got = frame(image, framing)
    assert got.shape == (32, 32, 3)
    assert got.dtype == np.uint8
    assert np.array_equal(got, by_torchvision(image, framing))


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image = noise(32, 50)
    assert np.array_equal(frame(Image.fromarray(image), Framing(32)), image[:, 9:41])
    assert np.array_equal(frame(Image.fromarray(image[:, :32]), Framing(32)), image[:, :32])


def test_crop_keeps_the_middle_of_a_larger_square() -> None:
    image = noise(40, 40)
    assert np.array_equal(frame(Image.fromarray(image), Framing(30, crop=0.75)), image[5:35, 5:35])


@pytest.mark.parametrize("size", [(1_000_000, 1), (1, 1_000_000), (300_000, 3)])
def test_a_thread_of_an_image_does_not_outgrow_memory(size: tuple[int, int]) -> None:
    # Resized whole it would have 32 × 32,000,000 pixels.
    image = Image.new("RGB", size, (1, 2, 3))
    assert np.array_equal(frame(image, Framing(32)), np.full((32, 32, 3), [1, 2, 3]))


def test_the_ends_of_a_long_image_are_cut_evenly() -> None:
    image = np.zeros((4, 401, 3), np.uint8)
    image[:, 200] = 240
    framed = frame(Image.fromarray(image), Framing(32))[16, :, 0]
    assert framed.argmax() in (15, 16, 17, 18, 19)
    assert np.count_nonzero(framed) < 26


def test_load_gives_an_array_of_the_right_size_as_it_is() -> None:
    image = noise(32, 32)
    assert load(Item("a", None, "a", image), Framing(32)) is image


def test_load_frames_what_decode_gives() -> None:
    grey = noise(28, 28)[:, :, 0]
    expected = frame(decode(grey, "a"), Framing(32))
    assert np.array_equal(load(Item("a", None, "a", grey), Framing(32)), expected)
    cropped = load(Item("a", None, "a", noise(32, 32)), Framing(32, crop=0.5))
    assert np.array_equal(cropped, frame(Image.fromarray(noise(32, 32)), Framing(32, crop=0.5)))


@pytest.mark.parametrize(
    ("width", "height", "side", "expected"),
    [
        (1600, 1200, 32, (200, 150)),  # an eighth: 150 ≥ 2 × 32
        (1600, 1200, 150, (400, 300)),  # a quarter: 300 ≥ 2 × 150
        (1600, 1200, 151, (800, 600)),
        (1600, 1200, 301, (1600, 1200)),
        (127, 127, 32, (127, 127)),
        (32, 32, 32, (32, 32)),
    ],
)
def test_large_jpegs_are_decoded_at_a_fraction(
    width: int, height: int, side: int, expected: tuple[int, int]
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(stream, "JPEG")
    assert decode(stream.getvalue(), "a", Framing(side)).size == expected
    assert decode(stream.getvalue(), "a").size == (width, height)


def test_a_fraction_looks_like_the_whole() -> None:
    y, x = np.mgrid[0:600, 0:800]
    picture = np.stack([x * 255 // 799, y * 255 // 599, (x + y) * 255 // 1398], axis=-1)
    stream = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(stream, "JPEG", quality=95)
    content = stream.getvalue()
    got = load(Item("a", None, "a", content), Framing(32)).astype(int)
    assert np.abs(got - frame(decode(content, "a"), Framing(32))).max() <= 3


def jpeg(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def reason(content: bytes, framing: Framing | None = None) -> str:
    with pytest.raises(BadImage) as caught:
        decode(content, "a", framing)
    return caught.value.reason


MEASURED = """
import resource, sys
from pathlib import Path
from retrieval.contracts import Framing
from retrieval.images import decode
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
decode(Path(sys.argv[2]), "small", Framing(32))
before = peak()
image = decode(Path(sys.argv[1]), "large", Framing(32))
print(*image.size, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "progressive", "reduced", "megabytes"),
    [
        ((12_000, 9_000), False, (1500, 1125), 20),
        ((16_320, 12_240), False, (2040, 1530), 20),
        ((12_000, 9_000), True, (1500, 1125), 230),  # two bytes for each of the coefficients
    ],
)
def test_phone_jpegs_of_100_megapixels_and_more_take_little_memory(
    size: tuple[int, int],
    progressive: bool,
    reduced: tuple[int, int],
    megabytes: int,
    tmp_path: Path,
) -> None:
    large, small = tmp_path / "large.jpg", tmp_path / "small.jpg"
    Image.new("L", size, 90).save(large, progressive=progressive)
    Image.new("L", (500, 400), 90).save(small, progressive=progressive)
    command = [sys.executable, "-c", MEASURED, str(large), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    width, height, taken = map(int, done.stdout.split())
    assert (width, height) == reduced
    assert taken < megabytes


def test_the_limit_counts_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETR_MAX_MEGAPIXELS", "1")
    image = Image.new("RGB", (1600, 1200), "orange")
    content = jpeg(image)
    assert decode(content, "a", Framing(32)).size == (200, 150)
    refused = "1,920,000 pixels; the maximum is 1,000,000 (raise it with --max-megapixels 2)"
    assert reason(content) == refused
    assert reason(content, Framing(600)) == refused
    assert reason(jpeg(image, "PNG"), Framing(32)) == refused
    assert reason(jpeg(image, "WEBP"), Framing(32)) == refused
    assert reason(jpeg(image, "TIFF"), Framing(32)) == refused
    monkeypatch.setenv("RETR_MAX_MEGAPIXELS", "2")
    assert decode(content, "a").size == decode(jpeg(image, "PNG"), "a").size == (1600, 1200)


def test_coefficients_of_progressive_jpegs_count_as_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two bytes each: 6 a pixel, or 3 where colors are stored at half the width and height."""
    monkeypatch.setenv("RETR_MAX_MEGAPIXELS", "1")
    image = Image.new("RGB", (1600, 1200), "orange")
    halved = jpeg(image, progressive=True, subsampling=2)
    assert decode(halved, "a", Framing(32)).size == (200, 150)
    whole = jpeg(image, progressive=True, subsampling=0)
    # 1,920,000 × 6 + 30,000 × 4 bytes
    assert reason(whole, Framing(32)) == (
        "a progressive JPEG of 1,920,000 pixels takes 12 MB to decode, and 10 MB are allowed "
        "(raise it with --max-megapixels 2)"
    )
    assert decode(jpeg(image, subsampling=0), "a", Framing(32)).size == (200, 150)


def test_a_jpeg_with_a_second_picture_is_reduced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETR_MAX_MEGAPIXELS", "1")
    image = Image.new("RGB", (1600, 1200), "orange")
    content = jpeg(image, "MPO", save_all=True, append_images=[image])
    assert decode(content, "a", Framing(32)).size == (200, 150)


def test_time_for_a_jpeg_is_bounded_by_its_whole_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG of 65,535 × 65,535 pixels would take half a minute at any size."""
    content = jpeg(Image.new("L", (16, 16)))
    size = content.index(b"\xff\xc0") + 5
    content = content[:size] + b"\xff\xff\xff\xff" + content[size + 4 :]
    refused = "a JPEG with 4,294,836,225 pixels; the maximum is 2,000,000,000 pixels in all scans"
    assert reason(content, Framing(32)) == refused + " (raise it with --max-megapixels 215)"
    monkeypatch.setenv("RETR_MAX_MEGAPIXELS", "215")
    assert reason(content, Framing(32)).startswith("truncated")


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_no_number_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETR_MAX_MEGAPIXELS", value)
    with pytest.raises(BadInput, match=r"RETR_MAX_MEGAPIXELS is .*; set it to a whole number"):
        decode(jpeg(Image.new("RGB", (8, 8))), "a")


@pytest.mark.parametrize("size", [(6000, 200), (200, 6000)])
def test_the_ends_of_a_long_image_are_cut_whatever_pillow_allows(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    image = Image.fromarray(noise(size[1], size[0]))
    assert frame(image, Framing(32)).shape == (32, 32, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_images_above_pillows_own_limit_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    image = Image.fromarray(noise(60, 80))
    assert decode(jpeg(image, kind), "a").size == (80, 60)
    assert Image.MAX_IMAGE_PIXELS == 1000
