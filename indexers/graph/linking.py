"""Links of a graph of near neighbors, compiled by numba for this machine's processor and cached.

A row is linked to the nearest of the candidates that a walk finds, less those that are nearer to
another linked row than to it (the heuristic of Malkov & Yashunin, TPAMI 2020, algorithm 4).
Candidates are compared by their codes, so that a build reads no vectors.
"""

from typing import Any

import numpy as np
from numba import njit

from indexers.graph.distances import INNER_PRODUCT, as_point, distance
from indexers.graph.walk import (
    descended_by_differences,
    descended_by_products,
    inserted,
    next_tag,
    walked_by_differences,
    walked_by_products,
)
from retrieval.runtime.numba import compiled

ROW_MASK = 0xFFFFFFFF


@njit(boundscheck=False)
def _picked(
    kind: int,
    codes: Any,
    near: Any,
    correlation: float,
    middle: float,
    points: Any,
    offsets: Any,
    links: Any,
) -> None:
    """Fill the links with the picked rows, then -1.

    near: distances in the higher 32 bits and rows in the lower, ascending. points: (degree, width)
    and offsets (degree,), for intermediate results.
    """
    count = 0
    for place in range(near.shape[0]):
        row = near[place] & ROW_MASK
        away = near[place] >> 32
        good = True
        for other in range(count):
            if distance(kind, points[other], codes, row) + offsets[other] < away:
                good = False
                break
        if good:
            links[count] = row
            offsets[count] = as_point(codes, row, correlation, middle, points[count])
            count += 1
            if count == links.shape[0]:
                break
    for place in range(count, links.shape[0]):
        links[place] = -1


@compiled()
def find_links(
    codes: Any,
    links: Any,
    upper: Any,
    lines: Any,
    known: Any,
    entry: int,
    levels: int,
    tags: Any,
    kind: int,
    correlation: float,
    middle: float,
    ef: int,
    rows: Any,
    found: Any,
) -> None:
    """Fill found (b, m) with the links of new rows (b,) to rows of the graph, then -1.

    known: (n,) whether a row is in the graph. ef: candidates of a walk. The other arguments are
    those of `indexers.graph.walk.search`.
    """
    width, m = codes.shape[1], found.shape[1]
    point = np.empty(width, np.int16)
    points, offsets = np.empty((m, width), np.int16), np.empty(m, np.int64)
    pool, unseen = np.empty(ef, np.int64), np.empty(links.shape[1], np.int64)
    for number in range(rows.shape[0]):
        offset = as_point(codes, rows[number], correlation, middle, point)
        tag = next_tag(tags)
        if kind == INNER_PRODUCT:
            first = descended_by_products(point, codes, upper, lines, entry, levels)
            first = first if known[first] else entry
            size = walked_by_products(point, codes, links, first, tags, tag, pool, unseen)
        else:
            first = descended_by_differences(point, codes, upper, lines, entry, levels)
            first = first if known[first] else entry
            size = walked_by_differences(point, codes, links, first, tags, tag, pool, unseen)
        for place in range(size):
            row = (pool[place] & ROW_MASK) >> 1
            pool[place] = (((pool[place] >> 32) + offset) << 32) | row
        near = pool[:size]
        _picked(kind, codes, near, correlation, middle, points, offsets, found[number])


@compiled()
def link_back(
    codes: Any,
    links: Any,
    kind: int,
    correlation: float,
    middle: float,
    rows: Any,
    starts: Any,
    sources: Any,
) -> None:
    """Link each row (t,) to its new neighbors `sources[starts[i]:starts[i + 1]]`.

    Where there are more than the graph's degree, links are picked among old and new ones.
    """
    width, degree = codes.shape[1], links.shape[1]
    point = np.empty(width, np.int16)
    points, offsets = np.empty((degree, width), np.int16), np.empty(degree, np.int64)
    for number in range(rows.shape[0]):
        row, new = rows[number], sources[starts[number] : starts[number + 1]]
        count = 0
        while count < degree and links[row, count] >= 0:
            count += 1
        if count + new.shape[0] <= degree:
            for place in range(new.shape[0]):
                links[row, count + place] = new[place]
            continue
        near = np.empty(count + new.shape[0], np.int64)
        offset = as_point(codes, row, correlation, middle, point)
        for place in range(near.shape[0]):
            other: Any = np.int64(links[row, place] if place < count else new[place - count])
            away: Any = np.int64(distance(kind, point, codes, other))
            inserted(((away + offset) << 32) | other, near, place + 1)
        _picked(kind, codes, near, correlation, middle, points, offsets, links[row])
