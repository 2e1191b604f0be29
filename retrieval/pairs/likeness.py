"""Decide by pixels whether two images show the same picture.

Each image is scaled to a square as a whole; the aspect ratios are compared separately. Brightness
and contrast may differ a little, and are equalized. Then each pixel may differ only as far as the
edges next to it explain.

`tests/unit/pairs/test_likeness.py` has examples of pairs that the constants distinguish.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.contracts import Images, Rows
from retrieval.images.pixels.thumbnail import stretched

Number = TypeVar("Number", bound=np.generic)

MAX_SIDE = 256  # pixels a side of a compared frame
MIN_SIDE = 8
MIN_REDUCTION = 2  # at least so much smaller than the image: fine detail depends on the file format
ASPECT_TOLERANCE = 0.03  # share by which the aspect ratios may differ
MAX_CONTRAST_RATIO = 1.3  # larger over smaller standard deviation
MEAN_TOLERANCE_LEVELS = 3.0  # allowed difference of a channel's mean, for images of one color
MEAN_TOLERANCE_PER_CONTRAST = 0.6  # added for each level of the standard deviation
PIXEL_TOLERANCE_LEVELS = 24.0  # allowed difference of a pixel after brightness was equalized
PIXEL_TOLERANCE_PER_EDGE = 0.3  # added for each level of difference among its neighbors
PIXELS_PER_CHECK = 256  # pixels that differ most are checked first
NOISE_LEVELS = 3.0  # standard deviation below which differences among pixels are noise


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A whole image scaled to a square (side, side, 3).

    aspect: original width over height. slack: relative change of `aspect` by one pixel.
    """

    pixels: Images
    aspect: float
    slack: float


def framed(image: Image.Image) -> Frame:
    """Return the frame of an RGB image. Its side is a power of two.

    The side is at most half of the image's shorter side, but not less than MIN_SIDE.
    """
    shorter = min(image.size)
    side = 1 << max(1, shorter // MIN_REDUCTION).bit_length() - 1
    side = min(max(side, MIN_SIDE), MAX_SIDE)
    return Frame(stretched(image, side), image.width / image.height, 1 / shorter)


class Turn(NamedTuple):
    """Turn of an image: mirrored left to right if `mirrored`, then rotated clockwise.

    rotated: 0, 90, 180 or 270 degrees.
    """

    mirrored: bool
    rotated: int

    def reversed(self) -> "Turn":
        """Return the turn that undoes this one."""
        return self if self.mirrored else Turn(False, -self.rotated % 360)

    def in_words(self) -> str:
        """Return text such as `mirrored, rotated 90°`; empty if nothing is turned."""
        angle = [f"rotated {self.rotated}°"] if self.rotated else []
        return ", ".join([*(["mirrored"] if self.mirrored else []), *angle])


AS_IT_IS = Turn(False, 0)
TURNS = tuple(
    Turn(mirrored, rotated) for rotated in (0, 90, 180, 270) for mirrored in (False, True)
)
"""The eight turns that keep the pixels of a square in place; the first is `AS_IT_IS`."""


def turned(frame: Frame, turn: Turn) -> Frame:
    """Return the frame of the turned image."""
    pixels = turned_pixels(frame.pixels[None], turn)[0]
    aspect = 1 / frame.aspect if turn.rotated % 180 else frame.aspect
    return Frame(np.ascontiguousarray(pixels), aspect, frame.slack)


def turned_pixels(images: NDArray[Number], turn: Turn) -> NDArray[Number]:
    """Return a view of the turned images (n, side, side, 3)."""
    seen = images[:, :, ::-1] if turn.mirrored else images
    return np.rot90(seen, -turn.rotated // 90, axes=(1, 2))


def likeness(one: Frame, two: Frame, tolerance: float = 1.0) -> float | None:
    """Return the correlation of the frames' pixels; None if they show different pictures.

    tolerance: a factor on the differences allowed in single pixels.
    """
    ratio = max(one.aspect, two.aspect) / min(one.aspect, two.aspect)
    if ratio > 1 + ASPECT_TOLERANCE + max(one.slack, two.slack):
        return None
    side = min(len(one.pixels), len(two.pixels))
    a, b = _Levels.of(one, side), _Levels.of(two, side)
    low, high = sorted((a.contrast + NOISE_LEVELS, b.contrast + NOISE_LEVELS))
    shift = float(np.abs(a.means - b.means).max())
    most = MEAN_TOLERANCE_LEVELS + MEAN_TOLERANCE_PER_CONTRAST * min(a.contrast, b.contrast)
    if high > MAX_CONTRAST_RATIO * low or shift > most:
        return None
    contrast = (low + high) / 2
    if not _same_everywhere(a.equalized(contrast), b.equalized(contrast), tolerance):
        return None
    pattern = Patterns.of(a.centered[None])
    return float(pattern.correlations(Patterns.of(b.centered[None]))[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """Levels of a frame, in three parts.

    means: (3,), of each channel. centered: pixels (side, side, 3) minus the means. contrast: the
    standard deviation of `centered`.
    """

    means: NDArray[np.float32]
    centered: NDArray[np.float32]
    contrast: float

    @classmethod
    def of(cls, frame: Frame, side: int) -> "_Levels":
        """Return the levels of a frame reduced to `side`, a divisor of its own side."""
        pixels = frame.pixels.astype(np.float32)
        if (step := len(pixels) // side) > 1:
            pixels = pixels.reshape(side, step, side, step, 3).mean(axis=(1, 3))
        means = pixels.mean(axis=(0, 1))
        return cls(means, pixels - means, float((pixels - means).std()))

    def equalized(self, contrast: float) -> NDArray[np.float32]:
        """Return the pixels with a mean of 0 and the given contrast, NOISE_LEVELS included."""
        gain = np.float32(contrast / (self.contrast + NOISE_LEVELS))
        pixels: NDArray[np.float32] = self.centered * gain + (self.means - self.means.mean())
        return pixels


@dataclass(frozen=True, slots=True, eq=False)
class Patterns:
    """Images normalized for correlations, without brightness and contrast.

    The mean of each channel is subtracted. Noise of NOISE_LEVELS is added, the same for all images,
    so that images of one color have a correlation of 1.

    units: (n, side, side, 3), pixels. noise: (n,). Both together have length 1 for each image.
    """

    units: NDArray[np.float32]
    noise: NDArray[np.float32]

    @classmethod
    def of(cls, images: NDArray[np.generic]) -> "Patterns":
        """Return the patterns of images (n, side, side, 3)."""
        values = images.astype(np.float32)
        values -= values.mean(axis=(1, 2), keepdims=True)
        size = float(np.prod(values.shape[1:]))
        squares = np.einsum("nyxc,nyxc->n", values, values)
        scale = np.sqrt(squares / size + NOISE_LEVELS**2)
        values /= (scale * size**0.5)[:, None, None, None].astype(np.float32)
        return cls(values, (NOISE_LEVELS / scale).astype(np.float32))

    def take(self, rows: Rows) -> "Patterns":
        """Return the patterns of some images."""
        return Patterns(self.units[rows], self.noise[rows])

    def turned(self, turn: Turn) -> "Patterns":
        """Return the patterns of the turned images."""
        return Patterns(turned_pixels(self.units, turn), self.noise)

    def correlations(self, others: "Patterns") -> NDArray[np.float32]:
        """Return Pearson's correlation (n,) of each image with the other at the same position."""
        common = np.einsum("nyxc,nyxc->n", self.units, others.units) + self.noise * others.noise
        values: NDArray[np.float32] = np.minimum(common, 1)
        return values


def _same_everywhere(one: NDArray[np.float32], two: NDArray[np.float32], tolerance: float) -> bool:
    """Return whether each pixel differs only as far as the edges next to it explain."""
    difference = np.abs(one - two).max(axis=2)
    y, x = np.nonzero(difference > tolerance * PIXEL_TOLERANCE_LEVELS)
    largest_first = np.argsort(-difference[y, x])
    for start in range(0, len(y), PIXELS_PER_CHECK):
        at = y[some := largest_first[start : start + PIXELS_PER_CHECK]], x[some]
        edges = np.maximum(_range_at(one, *at), _range_at(two, *at))
        if (
            difference[at] > tolerance * (PIXEL_TOLERANCE_LEVELS + PIXEL_TOLERANCE_PER_EDGE * edges)
        ).any():
            return False
    return True


def _range_at(
    pixels: NDArray[np.float32], y: NDArray[np.intp], x: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Return the range of levels (n,) around each pixel (y, x), in the channel of widest range.

    The range is over the pixel and its 8 neighbors.
    """
    steps = np.array((-1, 0, 1))
    rows = np.clip(y[:, None, None] + steps[:, None], 0, len(pixels) - 1)
    columns = np.clip(x[:, None, None] + steps, 0, len(pixels) - 1)
    around = pixels[rows, columns]  # (n, 3, 3, 3)
    return cast("NDArray[np.float32]", np.ptp(around, axis=(1, 2)).max(axis=1))
