"""Search of `hnsw-pca`, compiled by numba for this machine's processor and cached.

A walk spends most of its time waiting for memory. So it compares codes: 8 or 16 bits for each
principal axis, a few cache lines for a vector. It prefetches all neighbors of a vertex before it
compares the first. Candidates are in one sorted array, as in Fu et al. (Fast approximate nearest
neighbor search with the navigating spreading-out graph, VLDB 2019). At the end, the walk compares
the query with the vectors of the candidates.
"""

from typing import Any

import numpy as np
from numba import njit

from indexers.graph.distances import (
    COSINE,
    EUCLIDEAN,
    INLINE,
    INNER_PRODUCT,
    distance,
    minus_product,
    squared_difference,
)
from indexers.graph.prefetch import prefetch_row
from indexers.graph.queries import REORDER_SUMS, coded, rounded, scaled, turned_onto
from retrieval.runtime.numba import compiled

NOT_FINITE = -1
"""Result of `search` for a query that is not finite."""

SHIFTED = 8  # candidates that move in one step of an insertion

PREFETCHED_CANDIDATES = 3
"""Number of candidates whose vectors are prefetched."""

PREFETCHED_CODES = 8  # number of codes that are prefetched, where no walk is made


@njit(inline=INLINE, boundscheck=False)
def _placed(query: Any, origin: Any, kind: int) -> Any:
    """Return the query's product with the origin of compact vectors; subtract it from the query if
    distances are Euclidean.
    """
    product = np.float32(0)
    for i in range(origin.shape[0]):
        product += query[i] * origin[i]
        if kind == EUCLIDEAN:
            query[i] -= origin[i]
    return product


@njit(boundscheck=False, fastmath=REORDER_SUMS)
def _between_vectors(
    query: Any, vectors: Any, scales: Any, product: Any, row: int, kind: int
) -> Any:
    """Return the distance of the query and a vector, float32. Euclidean distances are squared.

    scales: (n,) of compact vectors, or (0,). product: of the query and their origin, or 0.
    """
    scale = scales[row] if scales.shape[0] > 0 else np.float32(1)
    total = np.float32(0)
    if kind == EUCLIDEAN:
        for i in range(query.shape[0]):
            difference = query[i] - scale * np.float32(vectors[row, i])
            total += difference * difference
        return total
    for i in range(query.shape[0]):
        total += query[i] * np.float32(vectors[row, i])
    total = product + scale * total
    if kind == COSINE:  # rounding may take a cosine above 1
        return max(np.float32(1) - total, np.float32(0))
    return -total


@njit(boundscheck=False)
def _kept(found: int, row: int, distance: Any, rows: Any, distances: Any) -> int:
    """Insert a row, in the order of distance and row; return the new number of rows."""
    k = rows.shape[0]
    if found == k:
        last = distances[k - 1]
        if distance > last or (distance == last and row > rows[k - 1]):
            return found
        found -= 1
    place = found
    while place > 0 and (
        distances[place - 1] > distance
        or (distances[place - 1] == distance and rows[place - 1] > row)
    ):
        distances[place], rows[place] = distances[place - 1], rows[place - 1]
        place -= 1
    distances[place], rows[place] = distance, row
    return found + 1


@njit(boundscheck=False)
def _finished(found: int, kind: int, rows: Any, distances: Any) -> None:
    if kind == EUCLIDEAN:
        for place in range(found):
            distances[place] = np.sqrt(distances[place])
    for place in range(found, rows.shape[0]):
        rows[place], distances[place] = -1, np.inf


@njit(inline=INLINE, boundscheck=False)
def inserted(candidate: Any, pool: Any, size: int) -> int:
    """Insert a candidate into the sorted pool, and return its position."""
    place = size - 1
    while place >= SHIFTED and pool[place - SHIFTED] > candidate:  # many without a comparison
        for i in range(SHIFTED):
            pool[place - i] = pool[place - i - 1]
        place -= SHIFTED
    while place > 0 and pool[place - 1] > candidate:
        pool[place] = pool[place - 1]
        place -= 1
    pool[place] = candidate
    return place


def _descent(between: Any) -> Any:
    """Build a descent for one distance of codes; see `_walk`."""

    @njit(boundscheck=False)
    def descended(point: Any, codes: Any, upper: Any, lines: Any, entry: int, levels: int) -> Any:
        """Return the nearest row in the upper layers, where the walk of the lowest layer starts."""
        if levels == 0:
            return entry
        nearest = between(point, codes, entry)
        for level in range(levels, 0, -1):
            moved = True
            while moved:
                moved = False
                line, last = lines[entry] + level - 1, 0
                while last < upper.shape[1] and upper[line, last] >= 0:
                    prefetch_row(codes, upper[line, last])
                    last += 1
                for place in range(last):
                    row = upper[line, place]
                    away = between(point, codes, row)
                    if away < nearest:
                        nearest, entry, moved = away, row, True
        return entry

    return descended


descended_by_differences = _descent(squared_difference)
descended_by_products = _descent(minus_product)


@njit(boundscheck=False)
def next_tag(tags: Any) -> Any:
    """Return a new tag for the rows that this walk sees. Clear all tags when all are used."""
    tag = np.uint8(tags[-1] + 1)
    if tag == 0:
        for row in range(tags.shape[0]):
            tags[row] = 0
        tag = np.uint8(1)
    tags[-1] = tag
    return tag


def _walk(between: Any) -> Any:
    """Build a walk for one distance of codes: a test in each step would take 30% more time."""

    @njit(boundscheck=False)
    def walked(
        point: Any,
        codes: Any,
        links: Any,
        entry: int,
        tags: Any,
        tag: Any,
        pool: Any,
        unseen: Any,
    ) -> int:
        """Fill the pool with the nearest candidates, nearest first, and return their number.

        Bits of a candidate: 32 of its distance, 31 of its row, 1 if its neighbors are in the pool.
        """
        tags[entry] = tag
        pool[0] = (np.int64(between(point, codes, entry)) << 32) | (np.int64(entry) << 1)
        size, here = 1, 0
        while here < size:
            if pool[here] & 1:
                here += 1
                continue
            row = (pool[here] & 0xFFFFFFFF) >> 1
            pool[here] |= 1
            count = 0  # in a function of its own, this loop would cost 5% of a search
            for j in range(links.shape[1]):
                neighbor = links[row, j]
                if neighbor < 0:
                    break
                prefetch_row(codes, neighbor)
                unseen[count] = neighbor  # without a branch, which would often be mispredicted
                count += tags[neighbor] != tag
                tags[neighbor] = tag
            for j in range(count):
                away = between(point, codes, unseen[j])
                unseen[j] = (np.int64(away) << 32) | (unseen[j] << 1)
            back = size
            for j in range(count):
                candidate = unseen[j]
                if size < pool.shape[0]:
                    size += 1
                elif candidate >= pool[size - 1]:
                    continue
                place = inserted(candidate, pool, size)
                back = min(back, place)
                if place <= here + 1:  # the walk goes to this neighbor next
                    prefetch_row(links, (candidate & 0xFFFFFFFF) >> 1)
            here = min(here, back)
        return size

    return walked


walked_by_differences = _walk(squared_difference)
walked_by_products = _walk(minus_product)


@njit(boundscheck=False)
def _scanned(kind: int, point: Any, codes: Any, candidates: Any, pool: Any) -> int:
    """Fill the pool with the nearest of the candidates (c,); return the number of rows in it."""
    size = 0
    for number in range(candidates.shape[0]):
        if number + PREFETCHED_CODES < candidates.shape[0]:
            prefetch_row(codes, candidates[number + PREFETCHED_CODES])
        row = candidates[number]
        candidate = (np.int64(distance(kind, point, codes, row)) << 32) | (row << 1)
        if size < pool.shape[0]:
            size += 1
        elif candidate >= pool[size - 1]:
            continue
        inserted(candidate, pool, size)
    return size


@njit(inline=INLINE, boundscheck=False, fastmath=REORDER_SUMS)
def _ranked(
    query: Any,
    vectors: Any,
    scales: Any,
    product: Any,
    among: Any,
    pool: Any,
    kind: int,
    unit: float,
    offset: float,
    slack: float,
    margin: float,
    rows: Any,
    distances: Any,
) -> int:
    """Fill rows and distances (k,) with the nearest vectors of the pool, and return their number.

    It ends where the estimate of the next candidate's distance is too large, at which
    `d² = (√(code's squared distance + offset) - slack)² / unit`, over `margin`.

    unit: squared distance of codes for a distance of 1; not used for inner products, all of whose
    candidates are compared. offset: of squared distances of codes, for the query's rest. slack:
    increase of a distance of codes by rounding.
    """
    size, k, found = pool.shape[0], rows.shape[0], 0
    for place in range(min(PREFETCHED_CANDIDATES, size)):
        prefetch_row(vectors, (pool[place] & 0xFFFFFFFF) >> 1)
    for place in range(size):
        if place + PREFETCHED_CANDIDATES < size:
            prefetch_row(vectors, (pool[place + PREFETCHED_CANDIDATES] & 0xFFFFFFFF) >> 1)
        if found == k and kind != INNER_PRODUCT:
            estimate = max(np.sqrt(np.float64(pool[place] >> 32) + offset) - slack, 0.0)
            if estimate * estimate > distances[k - 1] * unit * margin:
                break
        row = (pool[place] & 0xFFFFFFFF) >> 1
        if among.shape[0] > 0 and not among[row]:
            continue
        away = _between_vectors(query, vectors, scales, product, row, kind)
        found = _kept(found, row, away, rows, distances)
    return found


@compiled(fastmath=REORDER_SUMS)
def search(
    matrix: Any,
    offsets: Any,
    center: Any,
    codes: Any,
    links: Any,
    upper: Any,
    lines: Any,
    vectors: Any,
    scales: Any,
    origin: Any,
    entry: int,
    levels: int,
    kind: int,
    correlation: float,
    middle: float,
    has_rest: bool,
    unit: float,
    scale: float,
    queries: Any,
    among: Any,
    candidates: Any,
    tags: Any,
    margin: float,
    ef: int,
    rows: Any,
    distances: Any,
) -> int:
    """Fill rows and distances (q, k) with the nearest rows of each query (q, dim).

    Rows are nearest first, equal ones by row, then -1 and inf. Euclidean distances are not squared.
    Return the number of queries with fewer than k rows, or NOT_FINITE if a query is not finite.

    matrix: (axes, padded dim) int16, onto the axes; `unit` is what an integer of it stands for.
    offsets: (axes,) added after it. center: (dim,) subtracted before it. has_rest: whether the last
    number of a code is the length of the rest. scale: steps for a length of 1. codes: (n, width).
    links: (n, degree), neighbors in the lowest layer, then -1. upper: (u, m), neighbors in the
    other layers. lines: (n,) a row's first line in `upper`. vectors: (n, dim) float32 or uint8, of
    length 1 for cosines, or compact ones (n, width). scales, origin: (n,) and (dim,), see
    `indexers.graph.vectors`, or (0,). among: (n,) bool of rows that may be found, or (0,) for all.
    candidates: (c,) rows whose codes are all compared, or (0,) for a walk. tags: (n + 1,), zeros at
    first, for one call at a time. entry: first row of a walk. levels: number of layers above the
    lowest. kind: see `indexers.graph.distances`.
    correlation, middle, margin: see `Coding`. ef: candidates that a walk keeps.
    """
    dim, axes, k = queries.shape[1], matrix.shape[0], rows.shape[1]
    query, turned = np.empty(dim, np.float32), np.empty(axes, np.float32)
    numbers = np.zeros(matrix.shape[1], np.int16)
    point = np.zeros(codes.shape[1], np.int16)
    pool, unseen = np.empty(max(ef, k), np.int64), np.empty(links.shape[1], np.int64)
    # Without a rest, rounding moves each code by at most half a unit along each axis, and a
    # projection onto axes increases no distance. So the distance of two codes minus `slack` is a
    # lower bound, up to the rounding of the query to 16 bits. With a rest, it is an estimate, and
    # `margin` allows for its errors.
    slack = np.sqrt(axes / 6) if has_rest else np.sqrt(axes) + 1
    squared_unit = scale * scale * (2 if kind == COSINE else 1)  # 1 - cos = d² / 2
    short = 0
    for number in range(queries.shape[0]):
        if not scaled(queries[number], kind, query):
            return NOT_FINITE
        step, whole = rounded(query, center, numbers)
        along = turned_onto(numbers, matrix, step * unit, offsets, turned)
        rest, offset = -1.0, 0.0
        if has_rest:
            rest = np.sqrt(max(whole - along, 0.0))
            offset = (1 - correlation * correlation) * rest * rest * scale * scale
        coded(turned, along, scale, correlation * rest, middle, point)
        tag = next_tag(tags)
        if candidates.shape[0] > 0:
            size = _scanned(kind, point, codes, candidates, pool)
        elif kind == INNER_PRODUCT:
            first = descended_by_products(point, codes, upper, lines, entry, levels)
            size = walked_by_products(point, codes, links, first, tags, tag, pool, unseen)
        else:
            first = descended_by_differences(point, codes, upper, lines, entry, levels)
            size = walked_by_differences(point, codes, links, first, tags, tag, pool, unseen)
        product = _placed(query, origin, kind)
        found = _ranked(
            query,
            vectors,
            scales,
            product,
            among,
            pool[:size],
            kind,
            squared_unit,
            offset,
            slack,
            margin,
            rows[number],
            distances[number],
        )
        short += found < k
        _finished(found, kind, rows[number], distances[number])
    return short
