"""Average blocks of pixels, bit for bit as Pillow's `Image.reduce` does.

Pillow needs a copy of the image with four bytes a pixel. This module reads three. The division is
that of Pillow's `Reduce.c`: a multiplication by a fraction of 32 bits, which rounds down a little
more often than a division.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.contracts import Images
from retrieval.runtime.numba import compiled

CACHED_SIZES = 1024  # sizes of blocks; photographs come in few


def reduced(pixels: Images, across: int, down: int) -> Images:
    """Return the means (ceil(height / down), ceil(width / across), 3) of blocks of the pixels.

    pixels: (height, width, 3), contiguous. The last blocks of a row or a column may be smaller.
    """
    height, width, _ = pixels.shape
    result = np.empty((-(-height // down), -(-width // across), 3), np.uint8)
    shares = _shares((down, height % down or down), (across, width % across or across))
    lines = pixels.reshape(height, -1)
    lines.flags.writeable = False  # the compiled code is for read-only arrays
    _reduce(lines, across, down, shares, result)
    return result


@lru_cache(CACHED_SIZES)
def _shares(heights: tuple[int, int], widths: tuple[int, int]) -> NDArray[np.uint32]:
    """Return 2 ** 24 / pixels of a block (2, 2), as Pillow calculates it in single precision.

    heights, widths: of a block, and of one at the end.
    """
    pixels = np.outer(heights, widths)
    return (np.float32(1 << 32) / (256 * pixels).astype(np.float32)).astype(np.uint32)


@compiled(
    "void(Array(uint8, 2, 'C', readonly=True), int64, int64, uint32[:, ::1], uint8[:, :, ::1])"
)
def _reduce(lines: Any, across: int, down: int, shares: Any, result: Any) -> None:
    """Write the means. shares: as of `_shares`."""
    height, numbers = lines.shape
    width = numbers // 3
    sums = np.empty(numbers, np.uint32)
    for row in range(result.shape[0]):
        top, bottom = row * down, min(row * down + down, height)
        sums[:] = 0
        for y in range(top, bottom):
            line = lines[y]
            for i in range(numbers):
                sums[i] += np.uint32(line[i])
        for column in range(result.shape[1]):
            left, right = column * across, min(column * across + across, width)
            count = (bottom - top) * (right - left)
            red = green = blue = np.uint32(count // 2)
            for x in range(left, right):
                red += sums[3 * x]
                green += sums[3 * x + 1]
                blue += sums[3 * x + 2]
            share = shares[int(bottom - top < down), int(right - left < across)]
            result[row, column, 0] = np.uint32(red * share) >> np.uint32(24)
            result[row, column, 1] = np.uint32(green * share) >> np.uint32(24)
            result[row, column, 2] = np.uint32(blue * share) >> np.uint32(24)
