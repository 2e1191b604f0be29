"""Resizing gives the same pixels as Pillow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval.contracts import Framing, Images, Resample
from retrieval.images import frame
from retrieval.images.pixels import resizing
from retrieval.images.pixels.reducing import reduced
from retrieval.images.pixels.resizing import Order, coefficients
from tests.examples import examples


def noise(width: int, height: int, seed: int) -> Images:
    """Return noise with extremes that overshoot under a bicubic filter."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[rng.random((height, width)) < 0.3] = 255
    pixels[rng.random((height, width)) < 0.3] = 0
    return pixels


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    side=st.integers(1, 130),
    crop=st.sampled_from([1.0, 0.875, 0.95, 0.5]),
    resample=st.sampled_from([*Resample]),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(300), deadline=None)
def test_the_same_pixels_as_pillow(
    width: int, height: int, side: int, crop: float, resample: Resample, seed: int
) -> None:
    framing = Framing(side, crop, resample)
    for each in range(seed, seed + 3):  # the first two of a size are resized by Pillow
        image = Image.fromarray(noise(width, height, each))
        np.testing.assert_array_equal(frame(image, framing, many=True), frame(image, framing))


@pytest.mark.parametrize("size", [(640, 480), (3000, 2000), (2500, 2600), (9000, 20)])
def test_photographs_have_the_same_pixels(size: tuple[int, int]) -> None:
    for framing in (Framing(224, 0.875), Framing(32), Framing(256, 1.0, Resample.BILINEAR)):
        for seed in range(3):
            image = Image.fromarray(noise(*size, seed))
            np.testing.assert_array_equal(frame(image, framing, many=True), frame(image, framing))


def test_pillow_uses_one_of_the_two_orders() -> None:
    for size in ((640, 480), (480, 640), (300, 300), (90, 200), (40, 30)):
        for seed in range(2):
            frame(Image.fromarray(noise(*size, seed)), Framing(64), many=True)
    assert Order.NEITHER not in resizing._orders.values()


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    across=st.integers(1, 40),
    down=st.integers(1, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(300), deadline=None)
def test_the_same_means_as_pillow(
    width: int, height: int, across: int, down: int, seed: int
) -> None:
    pixels = noise(width, height, seed)
    expected = np.asarray(Image.fromarray(pixels).reduce((across, down)))
    np.testing.assert_array_equal(reduced(pixels, across, down), expected)


def test_coefficients_sum_to_one() -> None:
    for filter_ in Resample:
        _, counts, weights = coefficients(480, 256, 16, 224, filter_)
        assert (counts <= weights.shape[1]).all()
        np.testing.assert_allclose(weights.sum(1), 1 << 22, atol=8)
