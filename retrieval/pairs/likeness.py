"""A test of pixels: whether two images show the same picture.

The whole frame of each is scaled to a square, so that all of it counts, and the sides' ratio is
compared by itself. Brightness and contrast of the two may differ a little; they are evened out, and
then no pixel may differ by more than an edge beside it explains.

`tests/unit/pairs/test_likeness.py` shows which pairs the constants tell apart.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.contracts import Images, Resample, Rows

LARGEST_SIDE = 256  # pixels of a compared frame
SMALLEST_SIDE = 8
REDUCTION = 2  # pixels of an image for one that is compared: finer ones differ between encodings
ASPECT_TOLERANCE = 0.03  # share by which the ratio of the sides may differ
CONTRAST_RATIO = 1.3  # larger over smaller standard deviation
MEAN_SHIFT_LEVELS = 3.0  # by which the mean of a channel may differ, in images of one color
MEAN_SHIFT_CONTRAST = 0.6  # added for each level of their standard deviation
PIXEL_LEVELS = 24.0  # by which a pixel may differ after brightness was evened out
PIXEL_EDGE = 0.3  # added for each level of difference among its neighbors
CHECKED_PIXELS = 256  # at once, of those that differ most
NOISE_LEVELS = 3.0  # standard deviation below which differences among pixels are noise


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A whole image scaled to a square (side, side, 3), and its original width over height.

    slack: how much of that ratio one pixel more or less makes up.
    """

    pixels: Images
    aspect: float
    slack: float


def framed(image: Image.Image) -> Frame:
    """Return the frame of an RGB image: a power of two a side, at most half of its shorter side."""
    shorter = min(image.size)
    side = 1 << max(1, shorter // REDUCTION).bit_length() - 1
    side = min(max(side, SMALLEST_SIDE), LARGEST_SIDE)
    return Frame(stretched(image, side), image.width / image.height, 1 / shorter)


def stretched(image: Image.Image, side: int) -> Images:
    """Return the whole image scaled to (side, side, 3)."""
    resample = Image.Resampling[Resample.BILINEAR.name]
    return np.asarray(image.resize((side, side), resample))


def mirrored(frame: Frame) -> Frame:
    """Return the frame of the image seen in a mirror."""
    return Frame(np.ascontiguousarray(frame.pixels[:, ::-1]), frame.aspect, frame.slack)


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
    most = MEAN_SHIFT_LEVELS + MEAN_SHIFT_CONTRAST * min(a.contrast, b.contrast)
    if high > CONTRAST_RATIO * low or shift > most:
        return None
    if not _same_everywhere(a.evened((low + high) / 2), b.evened((low + high) / 2), tolerance):
        return None
    pattern = Patterns.of(a.centered[None])
    return float(pattern.correlations(Patterns.of(b.centered[None]))[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """A frame's means (3,), its pixels (side, side, 3) less these, and their standard deviation."""

    means: NDArray[np.float32]
    centered: NDArray[np.float32]
    contrast: float

    @classmethod
    def of(cls, frame: Frame, side: int) -> "_Levels":
        """Return the levels of a frame at a smaller side, which divides its own."""
        pixels = frame.pixels.astype(np.float32)
        if (step := len(pixels) // side) > 1:
            pixels = pixels.reshape(side, step, side, step, 3).mean(axis=(1, 3))
        means = pixels.mean(axis=(0, 1))
        return cls(means, pixels - means, float((pixels - means).std()))

    def evened(self, contrast: float) -> NDArray[np.float32]:
        """Return the pixels at another contrast, NOISE_LEVELS included, and at a mean of 0."""
        gain = np.float32(contrast / (self.contrast + NOISE_LEVELS))
        evened: NDArray[np.float32] = self.centered * gain + (self.means - self.means.mean())
        return evened


@dataclass(frozen=True, slots=True, eq=False)
class Patterns:
    """Images without their brightness and contrast, to be correlated.

    Each channel is taken about its own mean. Noise of NOISE_LEVELS counts as common to all images,
    so that the correlation of images of one color is 1.

    units: (n, side, side, 3), of length 1 together with `noise` (n,).
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

    def mirrored(self) -> "Patterns":
        """Return the patterns of the images seen in a mirror."""
        return Patterns(self.units[:, :, ::-1], self.noise)

    def correlations(self, others: "Patterns") -> NDArray[np.float32]:
        """Return Pearson's correlation (n,) of the images with as many others, two by two."""
        common = np.einsum("nyxc,nyxc->n", self.units, others.units) + self.noise * others.noise
        values: NDArray[np.float32] = np.minimum(common, 1)
        return values


def _same_everywhere(one: NDArray[np.float32], two: NDArray[np.float32], tolerance: float) -> bool:
    """Return whether each pixel differs by no more than the edges beside it explain."""
    difference = np.abs(one - two).max(axis=2)
    y, x = np.nonzero(difference > tolerance * PIXEL_LEVELS)
    largest_first = np.argsort(-difference[y, x])
    for start in range(0, len(y), CHECKED_PIXELS):
        at = y[some := largest_first[start : start + CHECKED_PIXELS]], x[some]
        edges = np.maximum(_range_at(one, *at), _range_at(two, *at))
        if (difference[at] > tolerance * (PIXEL_LEVELS + PIXEL_EDGE * edges)).any():
            return False
    return True


def _range_at(
    pixels: NDArray[np.float32], y: NDArray[np.intp], x: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Return the largest difference (n,) in a channel among the pixels at (y, x) and their
    neighbors.
    """
    steps = np.array((-1, 0, 1))
    rows = np.clip(y[:, None, None] + steps[:, None], 0, len(pixels) - 1)
    columns = np.clip(x[:, None, None] + steps, 0, len(pixels) - 1)
    around = pixels[rows, columns]  # (n, 3, 3, 3)
    return cast("NDArray[np.float32]", np.ptp(around, axis=(1, 2)).max(axis=1))
