"""Resize images to squares, bit for bit as Pillow does, three times as fast.

Pillow resizes the whole image, with the parts that framing cuts off, one number at a time. This
module computes only the square, many numbers at a time: the horizontal pass takes 16 lines at once,
transposed. Coefficients and rounding are those of Pillow's `Resample.c`: sums of 22-bit fractions,
and whole numbers between the passes. The order of Pillow's passes depends on the sizes and on its
version, and shows in the last bit. So the second image of each size is also resized by Pillow, to
find the order.
"""

from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from math import ceil
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from retrieval.choices import choice
from retrieval.contracts import Images, Resample
from retrieval.runtime.numba import compiled

FRACTION_BITS = 22  # of a coefficient
LINES_PER_STEP = 16  # at once
CACHED_SIZES = 1024  # sizes whose coefficients are kept: photographs come in few

Coefficients = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]
"""For each output position: its first input position, the number of inputs, their weights."""

Size = tuple[int, int]
Values = NDArray[np.float64]


class Order(Enum):
    """Order of the two passes."""

    ACROSS = "across"
    DOWN = "down"
    NEITHER = "neither"  # Pillow resizes in another way
    UNTOLD = "untold"  # until another image comes


_orders: dict[tuple[Size, Size, Resample], Order] = {}
"""Order of the passes, by input size, output size and filter."""


def resized(
    image: Image.Image | Images,
    size: Size,
    corner: Size,
    side: int,
    resample: Resample | str,
    out: Images | None = None,
) -> Images:
    """Return the square (side, side, 3) at the corner (left, top) of an RGB image resized to
    `size`.

    image: of Pillow, or a contiguous array (height, width, 3). size: (width, height). The square
    lies inside it. out: contiguous array that the square is written to, and that is returned.
    """
    resample = choice(Resample, resample)
    if isinstance(image, np.ndarray):
        height, width = image.shape[:2]
    else:
        width, height = image.size
    out = np.empty((side, side, 3), np.uint8) if out is None else out
    key = ((width, height), size, resample)
    order = _orders.get(key)
    across = coefficients(width, size[0], corner[0], side, resample)
    down = coefficients(height, size[1], corner[1], side, resample)
    if order is Order.ACROSS or order is Order.DOWN:
        _square(_pixels(image), across, down, order, out)
        return out
    left, top = corner
    pillow = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    whole = pillow.resize(size, Image.Resampling[resample.name])
    out[...] = np.asarray(whole.crop((left, top, left + side, top + side)))
    if order is None:
        _orders[key] = Order.UNTOLD  # images of many sizes gain nothing
    elif order is Order.UNTOLD:
        same, square = [], np.empty_like(out)
        for each in (Order.ACROSS, Order.DOWN):
            _square(_pixels(image), across, down, each, square)
            if np.array_equal(square, out):
                same.append(each)
        if len(same) < 2:  # else this image does not tell
            _orders[key] = same[0] if same else Order.NEITHER
    return out


@lru_cache(CACHED_SIZES)
def coefficients(
    length: int, resized: int, first: int, count: int, resample: Resample
) -> Coefficients:
    """Return the coefficients of `count` pixels from `first` on: `length` become `resized`."""
    weight_at, support = _FILTERS[resample]
    scale = length / resized
    stretched = max(scale, 1.0)
    support *= stretched
    center = (np.arange(first, first + count) + 0.5) * scale
    starts = np.maximum((center - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((center + support + 0.5).astype(np.int64), length) - starts
    taps = np.arange(ceil(support) * 2 + 1)
    values = weight_at((starts[:, None] + taps - center[:, None] + 0.5) * (1.0 / stretched))
    values[taps >= counts[:, None]] = 0
    exact = (
        values / values.cumsum(axis=1)[:, -1:] * (1 << FRACTION_BITS)
    )  # summed up in Pillow's order
    return starts, counts, (exact + np.copysign(0.5, exact)).astype(np.int32)


def _bilinear(x: Values) -> Values:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _bicubic(x: Values, a: float = -0.5) -> Values:
    """Keys, Cubic convolution interpolation for digital image processing (1981)."""
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_FILTERS: dict[Resample, tuple[Callable[[Values], Values], float]] = {
    Resample.BILINEAR: (_bilinear, 1.0),
    Resample.BICUBIC: (_bicubic, 2.0),
}
"""Each filter, and how far it reaches."""


def _pixels(image: Image.Image | Images) -> NDArray[np.uint8]:
    """Return the image's own memory (height, width, 3 or 4), or a copy (height, width, 3) of a
    large one.
    """
    if isinstance(image, np.ndarray):
        return _unchanging(image.view())  # the caller's stays writable
    try:
        flat: Any = pa.array(image).flatten().to_numpy(zero_copy_only=True)
        return cast(NDArray[np.uint8], flat.reshape(image.height, image.width, 4))
    except ValueError:  # Pillow keeps images of more than 16 MB in several blocks
        return _unchanging(np.asarray(image))


def _square(
    pixels: NDArray[np.uint8], across: Coefficients, down: Coefficients, first: Order, out: Images
) -> None:
    """Write the square (side, side, 3) to `out`."""
    height, width, channels = pixels.shape
    side = len(across[0])
    top, bottom = int(down[0][0]), int(down[0][-1] + down[1][-1])
    left, right = int(across[0][0]), int(across[0][-1] + across[1][-1])
    result = out.reshape(side, 3 * side)
    if first is Order.ACROSS:
        narrow = np.empty((bottom - top, 3 * side), np.uint8)
        _across(pixels, top, 0, *across, narrow)
        _down(_unchanging(narrow), top, 0, *down, result)
    else:
        low = np.empty((side, (right - left) * channels), np.uint8)
        _down(pixels.reshape(height, width * channels), 0, left * channels, *down, low)
        _across(_unchanging(low).reshape(side, right - left, channels), 0, left, *across, result)


def _unchanging(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the array, as the compiled code takes it."""
    array.flags.writeable = False
    return array


@compiled(
    "void(Array(uint8, 3, 'C', readonly=True), int64, int64, int64[::1], int64[::1],"
    " int32[:, ::1], uint8[:, ::1])"
)
def _across(
    pixels: Any, top: int, missing: int, starts: Any, counts: Any, weights: Any, result: Any
) -> None:
    """Make the lines of the result from those of the pixels from `top` on.

    missing: how many places at the left `pixels` lacks of those that `starts` counts.
    """
    rows, side = result.shape[0], starts.shape[0]
    left, right = starts[0], starts[side - 1] + counts[side - 1]
    turned = np.zeros((right - left, 3 * LINES_PER_STEP), np.uint8)
    sums = np.empty(3 * LINES_PER_STEP, np.int32)
    for y in range(0, rows, LINES_PER_STEP):
        lines = min(LINES_PER_STEP, rows - y)
        for line in range(lines):
            seen = pixels[top + y + line, left - missing : right - missing]
            for x in range(right - left):
                turned[x, line] = seen[x, 0]
                turned[x, LINES_PER_STEP + line] = seen[x, 1]
                turned[x, 2 * LINES_PER_STEP + line] = seen[x, 2]
        for place in range(side):
            for i in range(3 * LINES_PER_STEP):
                sums[i] = 1 << (FRACTION_BITS - 1)
            for tap in range(counts[place]):
                weight = weights[place, tap]
                x = starts[place] - left + tap
                for i in range(3 * LINES_PER_STEP):
                    sums[i] += np.int32(turned[x, i]) * weight
            for i in range(3 * LINES_PER_STEP):
                sums[i] = min(max(sums[i] >> FRACTION_BITS, 0), 255)
            for line in range(lines):
                result[y + line, 3 * place] = sums[line]
                result[y + line, 3 * place + 1] = sums[LINES_PER_STEP + line]
                result[y + line, 3 * place + 2] = sums[2 * LINES_PER_STEP + line]


@compiled(
    "void(Array(uint8, 2, 'C', readonly=True), int64, int64, int64[::1], int64[::1],"
    " int32[:, ::1], uint8[:, ::1])"
)
def _down(
    numbers: Any, missing: int, left: int, starts: Any, counts: Any, weights: Any, result: Any
) -> None:
    """Make the lines of the result from weighted lines of the numbers, from column `left` on.

    missing: how many lines at the top `numbers` lacks of those that `starts` counts.
    """
    width = result.shape[1]
    total = np.empty(width, np.int32)
    for place in range(result.shape[0]):
        for i in range(width):
            total[i] = 1 << (FRACTION_BITS - 1)
        for tap in range(counts[place]):
            weight = weights[place, tap]
            seen = numbers[starts[place] - missing + tap, left : left + width]
            for i in range(width):
                total[i] += np.int32(seen[i]) * weight
        for i in range(width):
            result[place, i] = min(max(total[i] >> FRACTION_BITS, 0), 255)
