"""Links of a graph of near neighbors, compiled by numba for this machine's processor and cached.

A row is linked to the nearest of the candidates that a walk finds, less those that are nearer to
another linked row than to it (the heuristic of Malkov & Yashunin, TPAMI 2020, algorithm 4).
Candidates are compared by their codes, so that a build reads no vectors.
"""

from typing import Any

import numpy as np
from numba import njit

from indexers.graph.distances import (
    INNER_PRODUCT,
    as_point,
    minus_product,
    squared_difference,
)
from indexers.graph.walk import (
    descended_by_differences,
    descended_by_products,
    next_tag,
    walked_by_differences,
    walked_by_products,
)
from retrieval.runtime.numba import compiled

ROW_MASK = 0xFFFFFFFF


def _picking(between: Any) -> Any:
    """Build the choice of links for one distance of codes."""

    @njit(boundscheck=False)
    def picked(
        codes: Any,
        near: Any,
        correlation: float,
        middle: float,
        points: Any,
        offsets: Any,
        links: Any,
    ) -> None:
        """Fill the links with the picked rows, then -1.

        near: distances in the higher 32 bits and rows in the lower, ascending. points: (degree,
        width) and offsets (degree,), for intermediate results.
        """
        count = 0
        for place in range(near.shape[0]):
            row = near[place] & ROW_MASK
            distance = near[place] >> 32
            good = True
            for other in range(count):
                if between(points[other], codes, row) + offsets[other] < distance:
                    good = False
                    break
            if good:
                links[count] = row
                offsets[count] = as_point(codes, row, correlation, middle, points[count])
                count += 1
                if count == links.shape[0]:
                    break
        links[count:] = -1

    return picked


_picked_by_differences = _picking(squared_difference)
_picked_by_products = _picking(minus_product)


@compiled()
def entries_of(
    codes: Any,
    upper: Any,
    lines: Any,
    entry: int,
    levels: int,
    kind: int,
    correlation: float,
    middle: float,
    rows: Any,
    entries: Any,
) -> None:
    """Fill entries (b,) with the row nearest to each row (b,) in the layers above the lowest.

    The other arguments are those of `indexers.graph.walk.search`.
    """
    point = np.empty(codes.shape[1], np.int16)
    for number in range(rows.shape[0]):
        as_point(codes, rows[number], correlation, middle, point)
        if kind == INNER_PRODUCT:
            entries[number] = descended_by_products(point, codes, upper, lines, entry, levels)
        else:
            entries[number] = descended_by_differences(point, codes, upper, lines, entry, levels)


@compiled()
def find_links(
    codes: Any,
    links: Any,
    rows: Any,
    entries: Any,
    tags: Any,
    kind: int,
    correlation: float,
    middle: float,
    ef: int,
    found: Any,
) -> None:
    """Fill found (b, m) with the links of new rows (b,) to rows of the graph, then -1.

    codes: (n, width). links: (n, degree) of the graph. entries: (b,) the rows of the graph where
    walks begin. tags: see `indexers.graph.walk.search`. ef: candidates of a walk.
    """
    width, m = codes.shape[1], found.shape[1]
    point = np.empty(width, np.int16)
    points, offsets = np.empty((m, width), np.int16), np.empty(m, np.int64)
    pool, unseen = np.empty(ef, np.int64), np.empty(links.shape[1], np.int64)
    for number in range(rows.shape[0]):
        offset = as_point(codes, rows[number], correlation, middle, point)
        tag, entry = next_tag(tags), entries[number]
        if kind == INNER_PRODUCT:
            size = walked_by_products(point, codes, links, entry, tags, tag, pool, unseen)
        else:
            size = walked_by_differences(point, codes, links, entry, tags, tag, pool, unseen)
        for place in range(size):
            row = (pool[place] & ROW_MASK) >> 1
            pool[place] = (((pool[place] >> 32) + offset) << 32) | row
        near, line = pool[:size], found[number]
        if kind == INNER_PRODUCT:
            _picked_by_products(codes, near, correlation, middle, points, offsets, line)
        else:
            _picked_by_differences(codes, near, correlation, middle, points, offsets, line)


@compiled()
def link_back(
    codes: Any,
    links: Any,
    rows: Any,
    starts: Any,
    sources: Any,
    kind: int,
    correlation: float,
    middle: float,
) -> None:
    """Link each row (t,) to its new neighbors `sources[starts[i]:starts[i + 1]]`.

    Where there are more than the graph's degree, links are picked among old and new ones.
    """
    width, degree = codes.shape[1], links.shape[1]
    point = np.empty(width, np.int16)
    points, offsets = np.empty((degree, width), np.int16), np.empty(degree, np.int64)
    for number in range(rows.shape[0]):
        row = rows[number]
        new = sources[starts[number] : starts[number + 1]]
        count = 0
        while count < degree and links[row, count] >= 0:
            count += 1
        if count + new.shape[0] <= degree:
            links[row, count : count + new.shape[0]] = new
            continue
        near = np.empty(count + new.shape[0], np.int64)
        offset = as_point(codes, row, correlation, middle, point)
        for place in range(near.shape[0]):
            other: Any = np.int64(links[row, place] if place < count else new[place - count])
            if kind == INNER_PRODUCT:
                distance = np.int64(minus_product(point, codes, other))
            else:
                distance = np.int64(squared_difference(point, codes, other))
            near[place] = ((distance + offset) << 32) | other
        near.sort()
        if kind == INNER_PRODUCT:
            _picked_by_products(codes, near, correlation, middle, points, offsets, links[row])
        else:
            _picked_by_differences(codes, near, correlation, middle, points, offsets, links[row])
