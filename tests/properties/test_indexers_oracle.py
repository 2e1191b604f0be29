"""Hits of any vectors, mask and k, compared with brute force in plain loops."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.contracts import Metric, Vectors
from retrieval.registry import make_indexer
from tests.examples import examples

# Whole numbers: squares, sums and products are exact in float32, so that ties are ties.
NUMBERS = st.integers(-4, 4)
CASES = [
    (name, metric)
    for name in ("exact", "ivf", "hnsw")
    for metric in Metric
    if (name, metric) != ("hnsw", Metric.MANHATTAN)
]


@cache
def indexer(name: str, metric: Metric) -> Any:
    return make_indexer(name, {"metric": metric})


def distance(a: Vectors, b: Vectors, metric: Metric) -> float:
    pairs = [(float(x), float(y)) for x, y in zip(a, b, strict=True)]
    dot = sum(x * y for x, y in pairs)
    match metric:
        case Metric.EUCLIDEAN:
            return math.sqrt(sum((x - y) ** 2 for x, y in pairs))
        case Metric.MANHATTAN:
            return sum(abs(x - y) for x, y in pairs)
        case Metric.INNER_PRODUCT:
            return -dot
        case Metric.COSINE:
            lengths = math.hypot(*map(float, a)) * math.hypot(*map(float, b))
            return 1 - dot / lengths if lengths else 1.0


@st.composite
def searches(draw: st.DrawFn) -> tuple[Vectors, Vectors, Any, int]:
    rows, queries, dim = draw(st.integers(1, 60)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    database = draw(arrays(np.float32, (rows, dim), elements=NUMBERS))
    asked = draw(arrays(np.float32, (queries, dim), elements=NUMBERS))
    mask = draw(st.none() | arrays(np.bool_, rows))
    return database, asked, mask, draw(st.integers(1, rows + 2))


# ivf has one list for this few rows, so it is exact too. hnsw may miss a row far from many
# copies of another; the distances of the rows that it finds must be right.
@pytest.mark.parametrize(("name", "metric"), CASES)
@settings(max_examples=examples(40), deadline=None)
@given(search=searches())
def test_hits_equal_brute_force(
    name: str, metric: Metric, search: tuple[Vectors, Vectors, Any, int]
) -> None:
    database, queries, mask, k = search
    hits = indexer(name, metric).build(database).search(queries, k, mask)
    admitted = range(len(database)) if mask is None else np.flatnonzero(mask).tolist()
    for line, query in enumerate(queries):
        true = {row: distance(query, database[row], metric) for row in admitted}
        order = sorted(true, key=lambda row: (true[row], row))[:k]
        found = hits.rows[line].tolist()[: len(order)]
        assert hits.rows[line].tolist()[len(order) :] == [-1] * (k - len(order))
        assert np.isinf(hits.distances[line, len(order) :]).all()
        assert len({*found} & {*true}) == len(order), "rows of the mask, each once"

        distances = hits.distances[line, : len(order)]
        np.testing.assert_allclose(distances, [true[row] for row in found], rtol=1e-5, atol=1e-5)
        keys = list(zip(distances.tolist(), found, strict=True))
        assert keys == sorted(keys)
        if name != "hnsw":
            expected = [true[row] for row in order]
            np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=1e-5)
        if name == "exact" and metric is not Metric.COSINE:
            assert found == order
