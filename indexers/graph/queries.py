"""Queries as points, which codes are compared with, in functions that numba compiles."""

from typing import Any

import numpy as np
from numba import njit

from indexers.graph.distances import COSINE, MAX_CODE_LENGTH

# The compiler may reorder sums, to add eight numbers at a time. NaN stays NaN.
REORDER_SUMS = {"reassoc", "contract", "nsz"}


@njit(boundscheck=False)
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
def turned_onto(query: Any, turn: Any, turned: Any) -> None:
    """Write the query's numbers along the axes (axes,) into `turned`; turn: see
    `indexers.graph.walk.search`.
    """
    dim = turn.shape[1] - 1
    for j in range(0, turned.shape[0], 4):  # four axes for each pass over the query
        a, b = turn[j, dim], turn[j + 1, dim]
        c, d = turn[j + 2, dim], turn[j + 3, dim]
        for i in range(dim):
            number = query[i]
            a += number * turn[j, i]
            b += number * turn[j + 1, i]
            c += number * turn[j + 2, i]
            d += number * turn[j + 3, i]
        turned[j], turned[j + 1], turned[j + 2], turned[j + 3] = a, b, c, d


@njit(boundscheck=False, fastmath=REORDER_SUMS)
def rest_of(query: Any, center: Any, turned: Any) -> Any:
    """Return the length of what the axes leave out of the query, less the center."""
    whole, kept = np.float32(0), np.float32(0)
    for i in range(center.shape[0]):
        difference = query[i] - center[i]
        whole += difference * difference
    for j in range(turned.shape[0]):
        kept += turned[j] * turned[j]
    return np.sqrt(max(np.float64(whole) - np.float64(kept), 0.0))


@njit(boundscheck=False)
def coded(turned: Any, scale: float, rest: float, middle: float, point: Any) -> None:
    """Write the query's code, no longer than `MAX_CODE_LENGTH`, into `point` (width,).

    rest: the length of the query's rest, times the correlation; negative if codes have none.
    """
    squares = 0.0
    for j in range(turned.shape[0]):
        squares += np.float64(turned[j]) * np.float64(turned[j])
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
