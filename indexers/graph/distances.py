"""Distances of codes, in functions that numba compiles.

A code is a row of integers of 8 or 16 bits; see `indexers.graph.coding`. A point is what a code is
compared with: a query or a row, as integers of 16 bits.
"""

from typing import Any, Final

import numpy as np
from numba import njit

COSINE, EUCLIDEAN, INNER_PRODUCT = 0, 1, 2

MAX_CODE_LENGTH = 16_383
"""Maximum length of a point and a code: differences stay within 16 bits, their squares and products
within 31."""

MAX_ROUNDED_LENGTH = 32_700
"""Length of vectors that are rounded to integers of 16 bits: their products stay within 31 bits."""

INLINE: Final = "always"  # for functions of the inner loop, whose calls would take time


@njit(boundscheck=False)
def squared_difference(point: Any, codes: Any, row: int) -> Any:
    """Return the squared distance of the point and a code, int32."""
    total = np.int32(0)
    for i in range(point.shape[0]):
        difference = np.int16(point[i] - np.int16(codes[row, i]))
        term = np.int32(np.int32(difference) * np.int32(difference))
        total = np.int32(total + term)
    return total


@njit(boundscheck=False)
def minus_product(point: Any, codes: Any, row: int) -> Any:
    """Return minus the inner product of the point and a code, int32."""
    total = np.int32(0)
    for i in range(point.shape[0]):
        term = np.int32(np.int32(point[i]) * np.int32(np.int16(codes[row, i])))
        total = np.int32(total + term)  # there is an instruction to multiply and add
    return np.int32(-total)


@njit(boundscheck=False)
def distance(kind: int, point: Any, codes: Any, row: int) -> Any:
    """Return what is compared for the kind of distance, int32: the smaller, the nearer."""
    if kind == INNER_PRODUCT:
        return minus_product(point, codes, row)
    return squared_difference(point, codes, row)


@njit(boundscheck=False)
def as_point(codes: Any, row: int, correlation: float, middle: float, point: Any) -> Any:
    """Copy the row's code to the point, and return what is to be added to its squared distances.

    correlation, middle: of `Coding`. The last number of a code is the length r of the row's rest,
    less `middle`. For two rows whose rests have the correlation c, the squared distance of the
    rests is r² + s² - 2 c r s = (c r - s)² + (1 - c²) r².
    """
    last = point.shape[0] - 1
    for i in range(last):
        point[i] = codes[row, i]
    rest = codes[row, last] + middle
    point[last] = np.int16(np.rint(correlation * rest - middle))
    return np.int64((1 - correlation * correlation) * rest * rest)
