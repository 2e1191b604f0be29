"""Checks of the vectors and queries of a search, and ranking of its hits.

Every backend takes its vectors through `checked_vectors` and searches through `answer`, so that
all of them refuse the same input, in the same words, and rank and pad in the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Blocks, Hits, Mask, Metric, Rows, Vectors
from retrieval.errors import BadInput, Mismatch
from retrieval.values import shown, whole_number

BLOCK_ROWS = 8_192  # prepared at a time, so that copies of all rows never exist
DOUBLE_ROWS = 1024  # converted to double precision at a time, in the cache
MAX_LENGTH = 1e18  # float32 holds the square of twice this, and sums of a few

Found = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows and distances, both (q, count); -1 for a missing row."""

Nearest = Callable[[Vectors, int, Mask | None], Found]
"""A backend's own search: queries (q, dim), q ≥ 1; count, from 1 to the number of rows that may
be found; the mask, or None if all rows may be."""


def answer(
    nearest: Nearest, queries: Vectors, k: int, among: Mask | None, *, dim: int, rows: int
) -> Hits:
    """Return the hits of `nearest` for queries (q, dim) in an index of `rows` rows, as `Hits` says.

    `nearest` is asked for no more rows than the mask admits; the columns up to k are padded.
    Raises Mismatch for queries of another dimension or a mask of another length, BadInput for
    queries that are not finite and for k < 1.
    """
    queries = _checked_queries(queries, dim)
    k = whole_number(k, "k")
    if k < 1:
        raise BadInput(f"k is {k}; ask for 1 neighbor or more")
    matching = rows
    if among is not None:
        matching = _count(among, rows)
        among = None if matching == rows else among
    count = min(int(k), matching)
    if count == 0 or len(queries) == 0:
        nothing = (len(queries), 0)
        return ranked(np.empty(nothing, np.int64), np.empty(nothing, np.float32), k)
    found, distances = nearest(queries, count, among)
    return ranked(found, distances, k)


def ranked(rows: NDArray[np.int64], distances: NDArray[np.float32], k: int) -> Hits:
    """Hits of exactly k columns, nearest first, among equals the lower row first.

    rows, distances: (q, ≤ k), a row being -1 where nothing was found. May reorder them in place.
    """
    if rows.size and rows.min() < 0:
        distances[rows < 0] = np.inf
    sort(rows, distances)
    absent = k - rows.shape[1]
    if absent:
        rows = np.pad(rows, ((0, 0), (0, absent)), constant_values=-1)
        distances = np.pad(distances, ((0, 0), (0, absent)), constant_values=np.inf)
    return Hits(rows, distances)


def sort(rows: NDArray[np.int64], distances: NDArray[np.float32]) -> None:
    """Sort each line of both (q, k) by distance, then row, in place; -1 goes last.

    Libraries sort by distance already, and leave equal distances in any order. So only lines with
    equal distances are sorted. As an unsigned number, -1 is the largest row.
    """
    later, sooner = distances[:, 1:], distances[:, :-1]
    increasing = later > sooner
    if increasing.all():
        return
    if len(rows) == 1:
        order = np.lexsort((rows[0].view(np.uint64), distances[0]))
        rows[0], distances[0] = rows[0, order], distances[0, order]
        return
    lines = np.flatnonzero(~increasing.all(axis=1))
    wrong_rows, wrong_distances = rows[lines], distances[lines]
    order = np.lexsort((wrong_rows.view(np.uint64), wrong_distances), axis=-1)
    rows[lines] = np.take_along_axis(wrong_rows, order, axis=1)
    distances[lines] = np.take_along_axis(wrong_distances, order, axis=1)


def merged(parts: Sequence[Found], k: int) -> Found:
    """Return the k nearest of all parts of an index, whose rows are those of the whole."""
    rows, distances = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    sort(rows, distances)
    return np.ascontiguousarray(rows[:, :k]), np.ascontiguousarray(distances[:, :k])


def as_vectors(vectors: Any, what: str = "vectors") -> Vectors:
    """Return the vectors as an array: lists as float32, an array of numbers unchanged.

    Raises BadInput for values that are not numbers, and for rows of different lengths.
    """
    if isinstance(vectors, np.ndarray) and vectors.dtype.kind in "fiub":
        return vectors
    try:
        return np.asarray(vectors, np.float32)
    except (TypeError, ValueError, RuntimeError):  # torch raises RuntimeError for a tensor on a GPU
        raise BadInput(
            f"{what} are not rows of numbers, all of one length; give an array (n, dim) or lists"
        ) from None


def without_own(hits: Hits, own: Rows) -> Hits:
    """Hits (q, k) of hits (q, k + 1): without each query's own row, or else without the last."""
    order = np.argsort(hits.rows == own[:, None], axis=1, kind="stable")[:, :-1]
    return Hits(
        np.take_along_axis(hits.rows, order, axis=1),
        np.take_along_axis(hits.distances, order, axis=1),
    )


def checked_vectors(vectors: Vectors, metric: Metric | str) -> Vectors:
    """Return the vectors (n, dim) to build an index of, float32 and C-contiguous; a copy only if
    needed.

    Raises BadInput where there are none, or one is not finite, or so long that distances by the
    metric are not.
    """
    metric = choice(Metric, metric)
    vectors = as_vectors(vectors)
    _check_shape(vectors)
    vectors = _float32(vectors)
    for start in range(0, len(vectors), BLOCK_ROWS):
        _check_block(vectors[start : start + BLOCK_ROWS], start, metric)
    return vectors


def _check_shape(vectors: Vectors) -> None:
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise BadInput(f"vectors have shape {vectors.shape}; give (n, dim), n and dim at least 1")


def _check_block(block: Vectors, first: int, metric: Metric) -> None:
    largest = max(abs(float(block.min())), abs(float(block.max())))  # nan where one is
    if not np.isfinite(largest):
        row = first + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
        raise BadInput(f"the vector of row {row} is not finite; leave it out or encode it again")
    may_be_long = largest * np.sqrt(block.shape[1]) > MAX_LENGTH
    if may_be_long and metric is not Metric.COSINE:  # which scales them
        _check_lengths(block, first)


def _check_lengths(vectors: Vectors, first: int) -> None:
    lengths = np.sqrt(squared_lengths(vectors))
    longest = int(lengths.argmax())
    if lengths[longest] > MAX_LENGTH:
        raise BadInput(
            f"the vector of row {first + longest} has length {lengths[longest]:.1e}, whose square "
            "overflows float32; divide all vectors by the same number, or use cosine"
        )


def checked_additions(vectors: Vectors, dim: int, metric: Metric | str) -> Vectors:
    """Return the vectors to add to an index of this dimension, as `checked_vectors` has them.

    Raises its errors, and Mismatch for vectors of another dimension.
    """
    metric = choice(Metric, metric)
    vectors = checked_vectors(vectors, metric)
    if vectors.shape[1] != dim:
        raise Mismatch(
            f"vectors have {vectors.shape[1]} dimensions, the index has {dim}; encode them with "
            "the encoder that the index was built with"
        )
    return vectors


def prepared(vectors: Vectors, metric: Metric | str) -> Vectors:
    """Return the vectors; for cosine, a copy scaled to length 1."""
    metric = choice(Metric, metric)
    return unit_vectors(vectors) if metric is Metric.COSINE else vectors


def prepared_blocks(vectors: Vectors, metric: Metric | str) -> Iterator[tuple[int, Vectors]]:
    """Yield the first row of each block of `BLOCK_ROWS` vectors, and the block, prepared."""
    metric = choice(Metric, metric)
    for start in range(0, len(vectors), BLOCK_ROWS):
        yield start, prepared(vectors[start : start + BLOCK_ROWS], metric)


class InMemory:
    """The blocks of an array (n, dim). Raises BadInput if n or dim is 0."""

    def __init__(self, vectors: Vectors) -> None:
        vectors = as_vectors(vectors)
        _check_shape(vectors)
        self.vectors = vectors
        self.rows, self.dim = vectors.shape

    def __iter__(self) -> Iterator[Vectors]:
        yield self.vectors


@dataclass(frozen=True, slots=True)
class Fetched:
    """Vectors (rows, dim) in blocks that are fetched one by one.

    fetch: returns the vectors (n, dim) of rows (n,).
    """

    rows: int
    dim: int
    fetch: Callable[[Rows], Vectors]

    def __iter__(self) -> Iterator[Vectors]:
        for start in range(0, self.rows, BLOCK_ROWS):
            yield self.fetch(np.arange(start, min(start + BLOCK_ROWS, self.rows)))


def checked_blocks(blocks: Blocks, metric: Metric | str) -> Iterator[tuple[int, Vectors]]:
    """Yield the first row of each of blocks of at most `BLOCK_ROWS` vectors, and the block,
    prepared.

    Raises the errors of `checked_vectors`.
    """
    metric = choice(Metric, metric)
    first = 0
    for vectors in blocks:
        for start in range(0, len(vectors), BLOCK_ROWS):
            block = _float32(vectors[start : start + BLOCK_ROWS])
            _check_block(block, first + start, metric)
            yield first + start, prepared(block, metric)
        first += len(vectors)


def squared_lengths(vectors: Vectors) -> NDArray[np.float64]:
    """Return the squared lengths (n,) of vectors (n, dim), with sums in double precision."""
    squares = np.empty(len(vectors))
    for start in range(0, len(vectors), DOUBLE_ROWS):  # vecdot converts all that it is given
        some = vectors[start : start + DOUBLE_ROWS]
        np.vecdot(some, some, out=squares[start : start + DOUBLE_ROWS], dtype=np.float64)
    return squares


def unit_vectors(vectors: Vectors) -> Vectors:
    """Return a copy of the vectors (n, dim) scaled to length 1; zero vectors stay zero.

    Lengths are taken in double precision: the square of a float32 may leave its range.
    """
    if len(vectors) == 1:  # the most frequent case, and the one where latency counts
        (double,) = vectors.astype(np.float64)
        return np.asarray((double / (sqrt(double.dot(double)) or 1)).astype(np.float32)[None])
    units = np.empty_like(vectors)
    for start in range(0, len(vectors), DOUBLE_ROWS):
        double = vectors[start : start + DOUBLE_ROWS].astype(np.float64)
        lengths = np.sqrt(np.vecdot(double, double))
        lengths[lengths == 0] = 1
        double /= lengths[:, None]
        units[start : start + DOUBLE_ROWS] = double
    return units


def _checked_queries(queries: Vectors, dim: int) -> Vectors:
    queries = as_vectors(queries, "queries")
    if queries.shape == (0,):  # an empty list
        queries = queries.reshape(0, dim)
    if queries.ndim != 2:
        raise BadInput(f"queries have shape {queries.shape}; give (q, {dim}), one query as (1, …)")
    if queries.shape[1] != dim:
        raise Mismatch(
            f"queries have {queries.shape[1]} dimensions, the index has {dim};"
            " encode them with the encoder that the index was built with"
        )
    queries = _float32(queries)
    if not isfinite(np.vdot(queries, queries)):  # not finite, or their squares are not
        finite = np.isfinite(queries).all(axis=1)
        if not finite.all():
            bad = int(finite.argmin())
            raise BadInput(f"query {bad} is not finite; leave it out or encode it again")
    return queries


def _count(among: Mask, rows: int) -> int:
    """Return the number of rows that the mask admits."""
    if not isinstance(among, np.ndarray):
        raise BadInput(
            f"the mask is {shown(among)}; give an array of bool, true for rows that may be found"
        )
    if among.dtype != np.bool_:
        raise BadInput(f"the mask is {among.dtype}; give bool, true for rows that may be found")
    if among.shape != (rows,):
        raise Mismatch(f"the mask has shape {among.shape}, the index {rows} rows; give ({rows},)")
    return int(np.count_nonzero(among))


def _float32(vectors: Vectors) -> Vectors:
    if vectors.dtype == np.float32 and vectors.flags.c_contiguous:
        return vectors
    # A number too large for float32 becomes infinite, and is refused as infinite.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(vectors, dtype=np.float32)
