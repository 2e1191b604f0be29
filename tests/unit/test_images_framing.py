"""Framing: against torchvision's Resize and CenterCrop, and by hand."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from retrieval.contracts import Framing, Images, Resample
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
