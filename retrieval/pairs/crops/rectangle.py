"""Find the rectangle of an image that another image shows: its crop.

An image is a crop of another if it is near-identical to a rectangle of it, as
`retrieval.pairs.likeness` decides. Both may have any scale. Each side of the rectangle has at least
half the length of the whole image's side, and one has at most 95%. Crops are not turned.

The rectangle is searched on small gray images, by normalized cross-correlation at each scale and
place (Lewis, Fast Normalized Cross-Correlation, 1995). Then its sides are adjusted by Gauss-Newton
steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.images.pixels.thumbnail import stretched
from retrieval.pairs.likeness import (
    MAX_SIDE,
    MIN_REDUCTION,
    NOISE_LEVELS,
    Frame,
    likeness,
)
from retrieval.pairs.match import Box

Gray = NDArray[np.float32]

MIN_SHARE = 0.5  # smallest share of a side that a crop shows
MAX_SHARE = 0.95
SHARE_TOLERANCE = 0.01
CANVAS_SIDE = 2 * MAX_SIDE  # shorter side of a compared image in pixels, at most
SEARCH_SIDE = 64  # shorter side of the searched image in pixels, at most
MAX_ASPECT = 4.0  # longer over shorter side; longer images are not searched
SCALE_STEP = 1.04  # ratio of the searched scales
MIN_SEARCH_CORRELATION = 0.7
PEAKS = 3  # rectangles that are adjusted, at most
FIT_SIDES = (32, 64)  # pixels a side at which a rectangle is adjusted
FIT_STEPS = 6
MIN_FIT_CORRELATION = 0.85
MIN_TEMPLATE_SIDE = 8
MIN_FRAME_SIDE = 16  # smaller frames of different images are alike by chance
DETAIL_PIXELS = 4  # finer structure is detail
MIN_DETAIL_CORRELATION = 0.6


class Cut(NamedTuple):
    """Rectangle that a crop shows, and the correlation of its pixels with the crop."""

    correlation: float
    box: Box


@dataclass(frozen=True, eq=False)
class Canvas:
    """An RGB image, reduced so that its shorter side has at most CANVAS_SIDE pixels."""

    image: Image.Image

    @classmethod
    def of(cls, image: Image.Image) -> "Canvas":
        """Return the canvas of an image."""
        return cls(_reduced(image, CANVAS_SIDE))

    @property
    def aspect(self) -> float:
        """Return width over height."""
        return self.image.width / self.image.height

    @cached_property
    def gray(self) -> Image.Image:
        """Return the gray image at twice the size of the last fit, at most."""
        return _reduced(self.image, 2 * FIT_SIDES[-1]).convert("L")

    @cached_property
    def searched(self) -> Gray:
        """Return the pixels (height, width) of the gray image that is searched."""
        return np.asarray(_reduced(self.gray, SEARCH_SIDE), np.float32)


def find_crop(whole: Canvas, part: Canvas, least: float, tolerance: float = 1.0) -> Cut | None:
    """Return where `whole` shows `part`; None if it does not.

    least: minimum correlation of the pixels. tolerance: as `likeness` takes it.
    """
    for start in _peaks(whole, part):
        box = _fitted(whole, part, start)
        cut = box and _compared(whole, part, box, tolerance)
        if cut and cut.correlation >= least:
            return cut
    return None


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """Return the image with a shorter side of at most `side` pixels."""
    shorter = min(image.size)
    if shorter <= side:
        return image
    size = (round(image.width * side / shorter), round(image.height * side / shorter))
    return image.resize(size, Image.Resampling.BILINEAR)


def _peaks(whole: Canvas, part: Canvas) -> list[Box]:
    """Return the rectangles that correlate most, one for each scale, the best first."""
    if max(whole.aspect, 1 / whole.aspect, part.aspect, 1 / part.aspect) > MAX_ASPECT:
        return []
    height, width = whole.searched.shape
    sizes = [
        (round(across * width), round(down * height))
        for across, down in _shares(whole.aspect / part.aspect)
    ]
    sizes = [*dict.fromkeys(size for size in sizes if min(size) >= MIN_TEMPLATE_SIDE)]
    if not sizes:
        return []
    found = []
    templates = [
        np.asarray(part.gray.resize(size, Image.Resampling.BILINEAR), np.float32) for size in sizes
    ]
    for template, scores in zip(templates, _correlations(whole.searched, templates), strict=True):
        y, x = np.unravel_index(int(np.argmax(scores)), scores.shape)
        down, across = template.shape
        box = Box(x / width, y / height, (x + across) / width, (y + down) / height)
        found.append((float(scores[y, x]), box))
    found.sort(reverse=True)
    return [box for score, box in found[:PEAKS] if score >= MIN_SEARCH_CORRELATION]


def _shares(ratio: float) -> Iterator[tuple[float, float]]:
    """Yield the shares of width and height to search. ratio: of height over width."""
    across, down = (1.0, ratio) if ratio <= 1 else (1 / ratio, 1.0)
    while min(across, down) >= MIN_SHARE / SCALE_STEP:
        if min(across, down) <= MAX_SHARE * SCALE_STEP:
            yield across, down
        across, down = across / SCALE_STEP, down / SCALE_STEP


def _correlations(image: Gray, templates: list[Gray]) -> Iterator[NDArray[np.floating[Any]]]:
    """Yield, for each template, its correlation with the image at each place it fits."""
    image = image - image.mean()
    spectrum = np.fft.rfft2(image)
    sums, squares = _integral(image), _integral(image * image)
    for template in templates:
        height, width = template.shape
        centered = template - template.mean()
        norm = float(np.sqrt((centered * centered).sum()))
        products = np.fft.irfft2(spectrum * np.fft.rfft2(centered, image.shape).conj(), image.shape)
        places = products[: image.shape[0] - height + 1, : image.shape[1] - width + 1]
        total = _windows(sums, height, width)
        variance = _windows(squares, height, width) - total * total / template.size
        noise = NOISE_LEVELS**2 * template.size
        yield places / np.sqrt((np.maximum(variance, 0) + noise) * (norm * norm + noise))


def _integral(values: Gray) -> NDArray[np.float64]:
    return np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _windows(integral: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Return the sum in each window of this size."""
    return (
        integral[height:, width:]
        - integral[:-height, width:]
        - integral[height:, :-width]
        + integral[:-height, :-width]
    )


def _fitted(whole: Canvas, part: Canvas, box: Box) -> Box | None:
    """Return the rectangle near `box` that correlates most; None if its shares are out of range."""
    for side in FIT_SIDES:
        target = _normalized(part.gray, side)
        best, best_score = box, -1.0
        for _ in range(FIT_STEPS):
            seen = _normalized(whole.gray, side, box)
            score = float((seen * target).sum())
            if score <= best_score + 1e-5:
                break
            best, best_score = box, score
            box = _stepped(whole.gray, side, box, seen, target)
        if best_score < MIN_FIT_CORRELATION:
            return None
        box = best
    across, down = box.right - box.left, box.bottom - box.top
    is_crop = MIN_SHARE - SHARE_TOLERANCE <= min(across, down) <= MAX_SHARE + SHARE_TOLERANCE
    return box if is_crop else None


def _stepped(image: Image.Image, side: int, box: Box, seen: Gray, target: Gray) -> Box:
    """Return the rectangle after a Gauss-Newton step towards the target."""
    step = 0.5 / side
    slopes = []
    for i in range(4):
        outward = -step if i < 2 else step
        if not 0 <= box[i] + outward <= 1:
            outward = -outward
        moved = Box(*(value + outward * (i == j) for j, value in enumerate(box)))
        slopes.append((_normalized(image, side, moved) - seen).ravel() / outward)
    change = np.linalg.lstsq(np.stack(slopes, axis=1), (target - seen).ravel(), rcond=None)[0]
    change = np.clip(change, -0.05, 0.05)
    values = np.clip(np.array(box) + change, 0, 1).tolist()
    if values[2] - values[0] < MIN_SHARE / 2 or values[3] - values[1] < MIN_SHARE / 2:
        return box
    return Box(*values)


def _normalized(image: Image.Image, side: int, box: Box | None = None) -> Gray:
    """Return the gray image, or a rectangle of it, scaled to (side, side) with length 1."""
    scaled = image.resize((side, side), Image.Resampling.BILINEAR, _in_pixels(image, box))
    pixels: Gray = np.array(scaled, np.float32)
    pixels -= pixels.mean()
    pixels /= np.float32(np.sqrt((pixels * pixels).sum() + NOISE_LEVELS**2 * pixels.size))
    return pixels


def _in_pixels(image: Image.Image, box: Box | None) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    width, height = image.size
    return box.left * width, box.top * height, box.right * width, box.bottom * height


def _compared(whole: Canvas, part: Canvas, box: Box, tolerance: float) -> Cut | None:
    """Return the crop if the part is near-identical to the rectangle, also in its detail."""
    left, top, right, bottom = _in_pixels(whole.image, box) or (0, 0, 0, 0)
    width, height = right - left, bottom - top
    shorter = min(width, height, *part.image.size)
    side = 1 << max(1, round(shorter) // MIN_REDUCTION).bit_length() - 1
    side = min(max(side, MIN_FRAME_SIDE), MAX_SIDE)
    cut = whole.image.resize((side, side), Image.Resampling.BILINEAR, (left, top, right, bottom))
    one = Frame(np.asarray(cut), width / height, 1 / min(width, height))
    two = Frame(stretched(part.image, side), part.aspect, 1 / min(part.image.size))
    correlation = likeness(one, two, tolerance)
    if correlation is None or detail_correlation(one, two) < MIN_DETAIL_CORRELATION:
        return None
    return Cut(correlation, box)


def detail_correlation(one: Frame, two: Frame) -> float:
    """Return the correlation of the pixels, each minus the mean of its block; low without detail.

    Images without detail, such as skies, are alike wherever they are cut.
    """
    a, b = _detail(one), _detail(two)
    noise = NOISE_LEVELS**2 * a.size
    return float((a * b).sum() / np.sqrt(((a * a).sum() + noise) * ((b * b).sum() + noise)))


def _detail(frame: Frame) -> Gray:
    side = len(frame.pixels) // DETAIL_PIXELS
    blocks = frame.pixels.astype(np.float32).reshape(side, DETAIL_PIXELS, side, DETAIL_PIXELS, 3)
    detail: Gray = blocks - blocks.mean(axis=(1, 3), keepdims=True)
    return detail
