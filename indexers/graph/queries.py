"""Queries as points, which codes are compared with, in functions that numba compiles."""

from typing import Any

import numpy as np
from numba import njit

from indexers.graph.distances import COSINE, MAX_CODE_LENGTH, MAX_ROUNDED_LENGTH

# The compiler may reorder sums, to add eight numbers at a time. NaN stays NaN.
REORDER_SUMS = {"reassoc", "contract", "nsz"}

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@njit(boundscheck=False, fastmath=REORDER_SUMS)
def scaled(source: Any, kind: int, query: Any) -> bool:
    """Copy `source` (dim,) to `query`, with length 1 for cosines; return whether it is finite."""
    squares = 0.0
    for i in range(source.shape[0]):
        squares += np.float64(source[i]) * np.float64(source[i])
    if not squares < np.inf:
        return False
    scale = 1.0
    if kind == COSINE and squares > 0:
        scale = 1 / np.sqrt(squares)
    for i in range(source.shape[0]):
        query[i] = np.float32(source[i] * scale)
    return True


@njit(boundscheck=False, fastmath=REORDER_SUMS)
def rounded(query: Any, center: Any, numbers: Any) -> Any:
    """Round the query, less the center (dim,), to integers of 16 bits.

    numbers: for the integers, with the length `MAX_ROUNDED_LENGTH`. Return what an integer stands
    for, and the squared length of the difference. A difference beyond float32 becomes 0.
    """
    squares = 0.0
    for i in range(center.shape[0]):
        difference = np.float64(query[i] - center[i])
        squares += difference * difference
    scale = MAX_ROUNDED_LENGTH / np.sqrt(squares) if 0 < squares < np.inf else 0.0
    if scale > LARGEST_FLOAT32:
        scale = 0.0
    factor = np.float32(scale)
    for i in range(center.shape[0]):
        numbers[i] = np.int16(np.rint((query[i] - center[i]) * factor)) if scale > 0 else 0
    return 1 / scale if scale > 0 else 0.0, squares


@njit(boundscheck=False)
def turned_onto(numbers: Any, matrix: Any, unit: float, offsets: Any, turned: Any) -> Any:
    """Write the query's numbers along the axes (axes,) into `turned`; return their squared length.

    numbers: of the query, see `rounded`. matrix, offsets: see `indexers.graph.walk.search`. unit:
    what a product of two integers stands for.
    """
    squares = 0.0
    for j in range(matrix.shape[0]):
        total = np.int32(0)
        for i in range(matrix.shape[1]):
            term = np.int32(np.int32(numbers[i]) * np.int32(matrix[j, i]))
            total = np.int32(total + term)
        turned[j] = np.float32(np.float64(total) * unit + np.float64(offsets[j]))
        squares += np.float64(turned[j]) * np.float64(turned[j])
    return squares


@njit(boundscheck=False)
def coded(
    turned: Any, squares: float, scale: float, rest: float, middle: float, point: Any
) -> None:
    """Write the query's code, no longer than `MAX_CODE_LENGTH`, into `point` (width,).

    squares: the squared length of `turned`. rest: the length of the query's rest, times the
    correlation; negative if codes have none.
    """
    length = np.sqrt(squares) * scale
    if not length <= MAX_CODE_LENGTH:
        scale = scale * MAX_CODE_LENGTH / length if length < np.inf else 0.0
    for j in range(turned.shape[0]):
        point[j] = np.int16(np.rint(turned[j] * scale)) if scale > 0 else 0
    if rest >= 0:
        number = rest * scale - middle
        point[point.shape[0] - 1] = np.int16(
            np.rint(min(max(number, -MAX_CODE_LENGTH), MAX_CODE_LENGTH))
        )
