"""Checks, ranking and padding of `retrieval.hits`, by hand-worked tables."""

from typing import Any

import numpy as np
import pytest

from retrieval.contracts import Mask, Metric, Vectors
from retrieval.errors import BadInput, Mismatch
from retrieval.hits import (
    Found,
    answer,
    checked_vectors,
    prepared_blocks,
    ranked,
    unit_vectors,
)


def array(*lines: list[float]) -> Vectors:
    return np.array(lines, np.float32)


INF = float("inf")


@pytest.mark.parametrize(
    ("rows", "distances", "k", "expected_rows", "expected_distances"),
    [
        # In order already.
        ([4, 2, 9], [0.1, 0.2, 0.3], 3, [4, 2, 9], [0.1, 0.2, 0.3]),
        # Equal distances: the lower row first.
        ([7, 3, 5], [0.1, 0.1, 0.1], 3, [3, 5, 7], [0.1, 0.1, 0.1]),
        ([7, 9, 5, 1], [0.1, 0.2, 0.2, 0.3], 4, [7, 5, 9, 1], [0.1, 0.2, 0.2, 0.3]),
        # Out of order.
        ([1, 2, 3], [0.3, 0.1, 0.2], 3, [2, 3, 1], [0.1, 0.2, 0.3]),
        # Missing rows, whatever the library left beside them, go last and are infinitely far.
        ([8, -1, -1], [0.5, -3e38, 0.0], 3, [8, -1, -1], [0.5, INF, INF]),
        ([-1, 6], [0.0, 0.5], 2, [6, -1], [0.5, INF]),
        # A row that is infinitely far was found nevertheless.
        ([-1, 6], [INF, INF], 2, [6, -1], [INF, INF]),
        # Fewer columns than k.
        ([5, 2], [0.5, 0.5], 4, [2, 5, -1, -1], [0.5, 0.5, INF, INF]),
        ([], [], 2, [-1, -1], [INF, INF]),
    ],
)
def test_ranked(
    rows: list[int],
    distances: list[float],
    k: int,
    expected_rows: list[int],
    expected_distances: list[float],
) -> None:
    # A second line, in order already, must stay as it is.
    width = len(rows)
    other_rows, other_distances = list(range(width)), [float(i) for i in range(width)]
    hits = ranked(np.array([rows, other_rows], np.int64), array(distances, other_distances), k)
    assert hits.rows.tolist()[0] == expected_rows
    np.testing.assert_array_equal(hits.distances[0], np.array(expected_distances, np.float32))
    assert hits.rows.tolist()[1][:width] == other_rows
    assert hits.distances.tolist()[1][:width] == other_distances
    assert hits.rows.dtype == np.int64 and hits.distances.dtype == np.float32


def never(queries: Vectors, count: int, among: Mask | None) -> Found:
    raise AssertionError("there is nothing to search")


def test_answer_skips_empty_searches() -> None:
    queries = np.ones((2, 3), np.float32)
    hits = answer(never, queries, 2, np.zeros(4, np.bool_), dim=3, rows=4)
    assert hits.rows.tolist() == [[-1, -1], [-1, -1]]
    assert answer(never, queries[:0], 2, None, dim=3, rows=4).rows.shape == (0, 2)


@pytest.mark.parametrize(
    ("k", "among", "count", "masked"),
    [
        (3, None, 3, False),
        (9, None, 4, False),
        (9, [True, False, True, False], 2, True),
        (1, [True, False, True, False], 1, True),
        (3, [True, True, True, True], 3, False),  # a mask that admits all is none
    ],
)
def test_answer_requests_at_most_the_matching_rows(
    k: int, among: list[bool] | None, count: int, masked: bool
) -> None:
    asked = []

    def nearest(queries: Vectors, count: int, among: Mask | None) -> Found:
        asked.append((count, among is not None))
        return np.zeros((1, count), np.int64), np.zeros((1, count), np.float32)

    mask = None if among is None else np.array(among)
    hits = answer(nearest, np.ones((1, 2), np.float32), k, mask, dim=2, rows=4)
    assert asked == [(count, masked)]
    assert hits.rows.shape == (1, k)


def test_answer_passes_float32_in_c_order() -> None:
    given = []

    def nearest(queries: Vectors, count: int, among: Mask | None) -> Found:
        given.append(queries)
        return np.zeros((2, 1), np.int64), np.zeros((2, 1), np.float32)

    as_they_are = np.ones((2, 3), np.float32)
    answer(nearest, as_they_are, 1, None, dim=3, rows=1)
    answer(nearest, np.asfortranarray(as_they_are, np.float64), 1, None, dim=3, rows=1)
    assert given[0] is as_they_are, "no copy without need"
    assert given[1].dtype == np.float32 and given[1].flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((2, 5), Mismatch, "queries have 5 dimensions, the index has 3"),
        ((3,), BadInput, r"queries have shape \(3,\)"),
        ((1, 2, 3), BadInput, r"queries have shape \(1, 2, 3\)"),
    ],
)
def test_answer_refuses_shapes(shape: tuple[int, ...], error: type[BadInput], message: str) -> None:
    with pytest.raises(error, match=message):
        answer(never, np.ones(shape, np.float32), 1, None, dim=3, rows=1)


@pytest.mark.parametrize("k", [0, -3])
def test_answer_refuses_k(k: int) -> None:
    with pytest.raises(BadInput, match=f"k is {k};"):
        answer(never, np.ones((1, 3), np.float32), k, None, dim=3, rows=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_values_beyond_float32_are_refused_with_their_row(bad: float) -> None:
    vectors = np.ones((70_000, 2))
    vectors[[66_000, 69_000], 1] = bad
    with pytest.raises(BadInput, match="row 66000 is not finite"):
        checked_vectors(vectors, Metric.COSINE)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="query 1 is not finite"):
        answer(never, vectors[65_999:66_002], 1, None, dim=2, rows=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", [Metric.EUCLIDEAN, Metric.INNER_PRODUCT])
def test_vectors_too_long_for_distances_are_refused_except_for_cosine(metric: Metric) -> None:
    vectors = np.ones((70_000, 2), np.float32)
    vectors[[66_000, 69_000], 1] = 1e17, 2e18
    with pytest.raises(BadInput, match=r"row 69000 has length 2\.0e\+18"):
        checked_vectors(vectors, metric)
    assert checked_vectors(vectors[:69_000], metric).shape == (69_000, 2)
    assert checked_vectors(vectors, Metric.COSINE) is vectors


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 2, 2)])
def test_vectors_must_be_a_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="vectors have shape"):
        checked_vectors(np.ones(shape, np.float32), Metric.COSINE)


def test_unit_vectors() -> None:
    vectors = array([3, 4], [0, 0], [-2, 0], [3e-30, 4e-30], [3e30, 4e30], [1e-45, 0])
    before = vectors.copy()
    expected: Any = [[0.6, 0.8], [0, 0], [-1, 0], [0.6, 0.8], [0.6, 0.8], [1, 0]]
    np.testing.assert_allclose(unit_vectors(vectors), expected, rtol=1e-6)
    assert np.array_equal(vectors, before)


def test_blocks_cover_all_rows_in_order() -> None:
    vectors = np.arange(2 * 16_385, dtype=np.float32).reshape(-1, 2) + 1
    blocks = list(prepared_blocks(vectors, Metric.COSINE))
    assert [(start, len(block)) for start, block in blocks] == [
        (0, 8_192),
        (8_192, 8_192),
        (16_384, 1),
    ]
    whole = np.concatenate([block for _, block in blocks])
    np.testing.assert_array_equal(whole, unit_vectors(vectors))
    assert np.shares_memory(next(prepared_blocks(vectors, Metric.EUCLIDEAN))[1], vectors)
