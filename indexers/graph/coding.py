"""Codes of vectors: short rows of integers, whose distances are nearly those of the vectors.

A code has the vector's numbers along principal axes, rounded to a step. The axes are rotated at
random, so that each has a similar share of the variance: then one step serves all of them, and 8
bits are often enough. The last number of a code may be the length of the vector's rest, which the
axes leave out. Of two rests, only the lengths are known. Their squared distance is estimated as
r² + s² - 2 c r s, where c is the mean correlation of rests of neighbors.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexers.graph.distances import (
    COSINE,
    EUCLIDEAN,
    INNER_PRODUCT,
    MAX_CODE_LENGTH,
    MAX_ROUNDED_LENGTH,
)
from indexers.graph.neighbors import Nearest
from retrieval.choices import choice
from retrieval.contracts import Blocks, Mask, Metric, Vectors
from retrieval.hits import prepared, squared_lengths

DISTANCE_OF_METRIC = {
    Metric.COSINE: COSINE,
    Metric.EUCLIDEAN: EUCLIDEAN,
    Metric.INNER_PRODUCT: INNER_PRODUCT,
}
BITS = (8, 16)
WIDTH_MULTIPLE = {8: 32, 16: 16}  # numbers in a vector register
LARGEST_8 = 127
LARGEST = {8: LARGEST_8, 16: MAX_CODE_LENGTH}
"""Limit of each number in a code of 8 bits, and of the length of a code of 16 bits."""

NEIGHBORS = 10
CANDIDATES = 14
NEAR_ROWS = 40  # true neighbors of a row that codes are to rank
QUERY_ROWS = 200
ROUNDING = 1e-5  # relative errors of distances in float32 stay below
REACH_QUANTILE = 0.99
REACH_MARGIN = {8: 1.2, 16: 2.0}
"""Rows have whole codes up to this factor on the quantile of their largest numbers (8 bits) or
lengths (16 bits). Longer rows are shortened, so that the codes of the others stay precise."""

MARGIN_QUANTILE = 0.999
"""Share of a query's neighbors whose estimated squared distance is at most `margin` times the true
one of the last neighbor."""

PART_ROWS = 1_024
LARGEST_MIDDLE = 8_000  # steps; with a longer rest, codes have none


Codes = NDArray[np.signedinteger[Any]]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Coding:
    """The way in which vectors become codes.

    kind: the metric's, of `indexers.graph.distances`.
    turn: (width, dim + 1) the matrix onto the axes, and an offset in the last column; zeros for
    the numbers that are not axes.
    center: (dim,) where rests begin; the origin for inner products.
    has_rest: whether the last number of a code is the length of the rest.
    bits: 8 or 16, of each number. step: the distance of two neighboring integers.
    middle: the median length of rests, in steps, which is subtracted from them.
    correlation: mean correlation of the rests of neighbors; 1 without rests.
    margin: largest quotient of a neighbor's estimated squared distance and the last one's true one.
    """

    kind: int
    turn: NDArray[np.float32]
    center: NDArray[np.float32]
    bits: int
    step: float
    has_rest: bool = False
    middle: float = 0.0
    correlation: float = 1.0
    margin: float = 1.0

    @classmethod
    def along(
        cls,
        kind: int,
        matrix: NDArray[np.float32],
        center: NDArray[np.float32],
        bits: int,
        step: float = 1.0,
    ) -> Self:
        """Return a coding without rests, by the matrix (width, dim) and less the center (dim,)."""
        offset = -(matrix.astype(np.float64) @ center.astype(np.float64))
        turn = np.hstack([matrix, offset[:, None].astype(np.float32)])
        return cls(kind, np.ascontiguousarray(turn), center, bits, step)

    @property
    def width(self) -> int:
        """Number of integers of a code."""
        return int(self.turn.shape[0])

    @property
    def integer(self) -> type[np.signedinteger[Any]]:
        """Type of the integers of a code."""
        return np.int8 if self.bits == 8 else np.int16

    @property
    def axes(self) -> int:
        """Number of principal axes."""
        return int(np.count_nonzero(self.turn[:, :-1].any(axis=1)))

    @property
    def geometry(self) -> tuple[int, float, float]:
        """The arguments of compiled functions that compare codes."""
        return self.kind, self.correlation, self.middle

    def rounded_turn(self) -> tuple[NDArray[np.int16], float, NDArray[np.float32]]:
        """Return the matrix in integers (width, padded dim), what one stands for, and offsets.

        The offsets (width,) are those of vectors less the center.
        """
        width, dim = self.width, len(self.center)
        matrix = self.turn[:, :-1].astype(np.float64)
        unit = (np.linalg.norm(matrix, axis=1).max() or 1.0) / MAX_ROUNDED_LENGTH
        integers = np.zeros((width, width_of(dim, 16)), np.int16)
        integers[:, :dim] = np.rint(matrix / unit)
        offsets = self.turn[:, -1] + matrix @ self.center.astype(np.float64)
        return integers, float(unit), offsets.astype(np.float32)

    def codes(self, vectors: Vectors) -> Codes:
        """Return the codes (n, width) of prepared vectors (n, dim)."""
        turned = self.turned(vectors)
        codes = self.rounded(turned)
        if self.has_rest:
            rests = self.rests(vectors, turned) / self.step - self.middle
            codes[:, -1] = np.rint(np.clip(rests, -LARGEST_8, LARGEST_8))
        return codes

    def turned(self, vectors: Vectors) -> Vectors:
        """Return the numbers (n, width) of vectors (n, dim) along the axes."""
        return np.asarray(vectors @ self.turn[:, :-1].T + self.turn[:, -1], np.float32)

    def rounded(self, turned: NDArray[np.floating[Any]]) -> Codes:
        """Return the codes of numbers along the axes (n, width), without rests."""
        scaled = turned / np.float64(self.step)
        reach = reaches(scaled, self.bits)[:, None]
        scaled *= np.minimum(1, LARGEST[self.bits] / np.maximum(reach, 1))
        return np.rint(scaled).astype(self.integer)

    def points(self, queries: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what codes are compared with (q, width), and offsets (q,) of squared distances.

        Not shortened, as `indexers.graph.walk.search` does for very long queries.
        """
        turned = self.turned(queries)
        points = np.rint(turned / np.float64(self.step))
        if not self.has_rest:
            return points, np.zeros(len(queries))
        rests = self.rests(queries, turned) / self.step
        points[:, -1] = np.rint(self.correlation * rests - self.middle)
        return points, (1 - self.correlation**2) * rests**2

    def rests(self, vectors: Vectors, turned: Vectors) -> NDArray[np.float64]:
        """Return the lengths (n,) of what the axes leave out of vectors (n, dim)."""
        squares = np.empty(len(vectors))
        for some, found in zip(parts(vectors), parts(squares), strict=True):
            found[:] = _squares(some - self.center)
        squares -= _squares(turned)
        return np.sqrt(np.maximum(squares, 0))


def reaches(turned: NDArray[Any], bits: int) -> NDArray[np.float64]:
    """Return how far rows (n, width) reach: what `LARGEST` limits."""
    if bits == 8:
        return np.asarray(np.abs(turned).max(axis=1), np.float64)
    return np.sqrt(squared_lengths(turned))


def step_for(reach: NDArray[np.float64], bits: int) -> float:
    """Return the step for rows that reach this far (n,)."""
    most = min(float(reach.max()), REACH_MARGIN[bits] * float(np.quantile(reach, REACH_QUANTILE)))
    return (most or float(reach.max()) or 1.0) / LARGEST[bits]


@dataclass(frozen=True, slots=True, eq=False)
class Neighborhoods:
    """Some rows of an index, and what a code must tell apart for them, all prepared.

    rows: (q, dim). near: (q, k, dim) the nearest other rows of each, among all. sample: (n, dim)
    rows of the index. beyond: (q, n) whether a row of the sample is farther than those that are
    near. weight: number of rows of the index for each row of the sample.
    """

    rows: Vectors
    near: Vectors
    sample: Vectors
    beyond: Mask
    weight: float

    @classmethod
    def of(cls, sample: Vectors, blocks: Blocks, metric: Metric | str) -> Self:
        """Return rows of the sample, and their neighbors among all.

        sample: (n, dim), prepared, in random order.
        """
        metric = choice(Metric, metric)
        rows = sample[:QUERY_ROWS]
        near = Nearest.of(rows, blocks, metric, min(NEAR_ROWS + 1, blocks.rows)).vectors
        near = prepared(near.reshape(-1, near.shape[2]), metric).reshape(near.shape)
        products = metric is Metric.INNER_PRODUCT
        to_near, to_sample = _between(rows, near, products), _to_all(rows, sample, products)
        beyond = to_sample > to_near.max(axis=1, keepdims=True) * (1 + ROUNDING)
        own = (near == rows[:, None]).all(axis=2)
        others = np.argsort(own, axis=1, kind="stable")[:, :-1]
        near = np.take_along_axis(near, others[..., None], axis=1)
        return cls(rows, near, sample, beyond, blocks.rows / len(sample))

    def measured(self, coding: Coding) -> Coding:
        """Return the coding with the correlation and margin of the nearest rows.

        Codes of 16 bits have neither: their distances are lower bounds.
        """
        near = self.near[:, :NEIGHBORS]
        if coding.bits == 16 or coding.kind == INNER_PRODUCT or not near.size:
            return coding
        if coding.has_rest:
            coding = replace(coding, correlation=self._correlation(coding, near))
        farthest = _between(self.rows, near, products=False).max(axis=1)
        squares = self._by_code(coding)[:, :NEIGHBORS]
        estimates = np.maximum(np.sqrt(squares) - np.sqrt(coding.width / 6), 0) ** 2
        estimates *= coding.step**2
        quotients = (estimates[farthest > 0].T / farthest[farthest > 0]).ravel()
        margin = float(np.quantile(quotients, MARGIN_QUANTILE)) if quotients.size else 1.0
        return replace(coding, margin=max(1.0, margin))

    def _correlation(self, coding: Coding, near: Vectors) -> float:
        one, other = _rest_vectors(coding, self.rows)[:, None], _rest_vectors(coding, near)
        lengths = np.linalg.norm(one, axis=2) * np.linalg.norm(other, axis=2)
        correlations = (one * other).sum(axis=2)[lengths > 0] / lengths[lengths > 0]
        return float(np.clip(correlations.mean(), 0, 1)) if correlations.size else 0.0

    def kept(self, coding: Coding) -> float:
        """Return the estimated share of the nearest rows that are among the nearest by code.

        It is the mean share of the `NEIGHBORS` nearest that have fewer than `CANDIDATES` rows of
        the index before them: near rows, and farther ones as the sample has them.
        """
        points, offsets = coding.points(self.rows)
        products = coding.kind == INNER_PRODUCT
        near = self._by_code(coding)
        farther = _to_all(points, coding.codes(self.sample).astype(np.float64), products)
        farther += offsets[:, None]
        farther[~self.beyond] = np.inf
        if farther.shape[1] > CANDIDATES:  # no more can count
            farther.partition(CANDIDATES, axis=1)
            farther = farther[:, :CANDIDATES]
        farther.sort(axis=1)
        before = np.array(
            [
                np.searchsorted(np.sort(some), some[:NEIGHBORS])
                + self.weight * np.searchsorted(others, some[:NEIGHBORS])
                for some, others in zip(near, farther, strict=True)
            ]
        )
        return float((before < CANDIDATES).mean())

    def _by_code(self, coding: Coding) -> NDArray[np.float64]:
        """Return the distances (q, k) of codes, squared, or minus the products."""
        points, offsets = coding.points(self.rows)
        shape = (*self.near.shape[:2], coding.width)
        codes = coding.codes(self.near.reshape(-1, self.near.shape[2])).reshape(shape)
        return _between(points, codes, coding.kind == INNER_PRODUCT) + offsets[:, None]


def _between(queries: NDArray[Any], rows: NDArray[Any], products: bool) -> NDArray[np.float64]:
    """Return squared distances, or minus products, of queries (q, d) and rows (q, k, d) of each."""
    if products:
        return np.asarray(-np.vecdot(rows, queries[:, None], dtype=np.float64))
    differences = queries[:, None] - rows
    squares = squared_lengths(differences.reshape(-1, differences.shape[2]))
    return squares.reshape(differences.shape[:2])


def _to_all(queries: NDArray[Any], rows: NDArray[Any], products: bool) -> NDArray[np.float64]:
    """Return squared distances, or minus products, (q, n) of queries (q, d) and rows (n, d)."""
    found = np.asarray(-(queries @ rows.T), np.float64)
    if products:
        return found
    found *= 2
    found += squared_lengths(rows)
    found += squared_lengths(queries)[:, None]
    return found


def _squares(vectors: Vectors) -> NDArray[np.float32]:
    return np.asarray(np.vecdot(vectors, vectors))


def parts(rows: NDArray[Number]) -> Iterator[NDArray[Number]]:
    """Yield an array (n, …) in parts of `PART_ROWS` rows, which need little more memory."""
    for start in range(0, len(rows), PART_ROWS):
        yield rows[start : start + PART_ROWS]


def width_of(numbers: int, bits: int) -> int:
    """Return the width of codes with at least this many numbers: whole vector registers."""
    return -(-numbers // WIDTH_MULTIPLE[bits]) * WIDTH_MULTIPLE[bits]


def _rest_vectors(coding: Coding, vectors: Vectors) -> Vectors:
    """Return what the axes leave out of vectors (…, dim)."""
    whole = vectors - coding.center
    matrix = coding.turn[:, :-1]
    return np.asarray(whole - (whole @ matrix.T) @ matrix, np.float32)
