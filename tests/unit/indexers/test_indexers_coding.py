"""Codes of vectors, and the graph of them."""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexers.exact import Exact
from indexers.graph.coding import QUERY_ROWS, Coding, Neighborhoods
from indexers.graph.fitting import fitted
from indexers.graph.layers import Layers
from indexers.graph.layers_file import FILE
from indexers.graph.queries import rounded, turned_onto
from indexers.hnsw_pca import HnswPca
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData
from retrieval.hits import InMemory


def uneven(rows: int, dim: int = 96, seed: int = 0) -> Vectors:
    """Vectors whose later numbers vary less and less, so that few axes keep most."""
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((rows, dim)) * 0.95 ** np.arange(dim) + 2).astype(np.float32)


def clustered(rows: int, dim: int = 96) -> Vectors:
    """Vectors in clusters that are far smaller than the distances between them."""
    draw = np.random.default_rng(1)
    centers = draw.standard_normal((10, dim))
    near = centers[draw.integers(10, size=rows)] + 0.001 * draw.standard_normal((rows, dim))
    return near.astype(np.float32)


def fit(
    sample: Vectors, metric: Metric, axes: int | None = None, bits: int | None = None
) -> Coding:
    neighborhoods = Neighborhoods.of(sample, InMemory(sample), metric)
    return fitted(sample, neighborhoods, metric, axes, bits)


def estimated(coding: Coding, queries: Vectors, rows: Vectors) -> Any:
    """Return the squared distances (q, n) of codes, in the vectors' unit."""
    points, offsets = coding.points(queries)
    differences = points[:, None] - coding.codes(rows)
    return ((differences**2).sum(axis=2) + offsets[:, None]) * coding.step**2


def squares(queries: Vectors, rows: Vectors) -> Any:
    return ((queries[:, None].astype(np.float64) - rows) ** 2).sum(axis=2)


def test_wide_data_have_8_bits_and_tight_clusters_16() -> None:
    assert fit(uneven(3000), Metric.EUCLIDEAN).bits == 8
    assert fit(clustered(3000), Metric.EUCLIDEAN).bits == 16


@pytest.mark.parametrize("rows", [2000, 20_000])
def test_codes_tell_the_neighbors_from_the_rest_of_a_large_cluster(rows: int) -> None:
    """Short codes tell clusters apart, and rank the nearest rows of one by chance."""
    draw = np.random.default_rng(3)
    directions = draw.standard_normal((12, 96))
    centers = 10 * draw.standard_normal((40, 96))
    both = centers[draw.integers(40, size=rows + 100)]
    both = (both + draw.standard_normal((len(both), 12)) @ directions).astype(np.float32)
    database, queries = both[:-100], both[-100:]
    true = Exact(Metric.EUCLIDEAN).build(database).search(queries, 10).rows
    found = HnswPca(Metric.EUCLIDEAN, ef=60).build(database).search(queries, 10).rows
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found, true, strict=True)]) > 0.97


@pytest.mark.parametrize("bits", [8, 16])
def test_distances_of_codes_with_all_axes_are_those_of_the_vectors(bits: int) -> None:
    sample = uneven(1000, dim=32)
    coding = fit(sample, Metric.EUCLIDEAN, 32, bits)
    assert (coding.axes, coding.has_rest) == (32, False)
    true, rows = squares(sample[:20], sample[100:]), sample[100:]
    errors = np.abs(estimated(coding, sample[:20], rows) / true - 1)
    assert np.quantile(errors, 0.99) < (0.05 if bits == 8 else 0.002)  # a few rows are shortened


def test_estimates_with_a_rest_have_no_bias_among_neighbors() -> None:
    sample = uneven(3000)
    coding = fit(sample, Metric.EUCLIDEAN, 32, 8)
    assert (coding.axes, coding.has_rest) == (31, True)
    assert 0 <= coding.correlation < 0.5
    queries, rows = uneven(50, seed=5), sample
    near = Exact(Metric.EUCLIDEAN).build(rows).search(queries, 10).rows
    quotient = np.take_along_axis(estimated(coding, queries, rows), near, axis=1) / (
        np.take_along_axis(squares(queries, rows), near, axis=1)
    )
    assert abs(quotient.mean() - 1) < 0.1
    without = replace(coding, correlation=1.0)
    low = np.take_along_axis(estimated(without, queries, rows), near, axis=1)
    assert (low <= np.take_along_axis(squares(queries, rows), near, axis=1) * 1.05).all()


def test_codes_of_products_have_no_rest_and_no_center() -> None:
    coding = fit(uneven(1000), Metric.INNER_PRODUCT, 64, 8)
    assert not coding.has_rest
    assert not coding.turn[:, -1].any()


@pytest.mark.parametrize("far", [0.0, 1e4])
@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e12])
def test_queries_in_integers_are_turned_as_rows_are(far: float, scale: float) -> None:
    rows = ((uneven(600) + far) * scale).astype(np.float32)
    coding = fit(rows, Metric.EUCLIDEAN)
    matrix, unit, offsets = coding.rounded_turn()
    numbers = np.zeros(matrix.shape[1], np.int16)
    turned = np.zeros(coding.width, np.float32)
    for query in rows[:20]:
        step, squares = rounded(query, coding.center, numbers)
        along = turned_onto(numbers, matrix, step * unit, offsets, turned)
        wanted = coding.turn[:, :-1] @ (query - coding.center) + offsets
        assert np.abs(turned - wanted).max() < 1e-4 * np.sqrt(squares)
        assert along == pytest.approx((wanted.astype(np.float64) ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize("number", [0.0, 1e-42, 3e38])
def test_queries_that_integers_cannot_hold_become_zeros(number: float) -> None:
    query, center = np.full(8, number, np.float32), np.full(8, -number, np.float32)
    numbers = np.ones(16, np.int16)
    step, _ = rounded(query, center, numbers)
    assert step == 0 and not numbers[:8].any()


def test_few_rows_keep_as_much_as_codes_can() -> None:
    few = uneven(QUERY_ROWS)
    assert fit(few, Metric.EUCLIDEAN).bits == 16
    assert fit(few[:, :40], Metric.EUCLIDEAN).axes == 40
    assert fit(uneven(1), Metric.EUCLIDEAN, None, 8).bits == 8


@pytest.mark.parametrize("metric", [Metric.EUCLIDEAN, Metric.INNER_PRODUCT])
def test_a_graph_does_not_depend_on_the_threads(metric: Metric) -> None:
    coding = fit(uneven(3000), metric)
    codes = coding.codes(uneven(3000))
    one, many = (Layers.empty(8).grown(codes, coding, 40, threads) for threads in (1, 3))
    for name in ("links", "levels", "upper", "lines", "entry"):
        assert np.array_equal(getattr(one, name), getattr(many, name)), name


def test_links_are_distinct_rows_within_their_layer() -> None:
    coding = fit(uneven(2000), Metric.EUCLIDEAN)
    codes = coding.codes(uneven(2000))
    layers = Layers.empty(4).grown(codes[:900], coding, 40, 2).grown(codes, coding, 40, 2)
    assert layers.links.shape == (2000, 8)
    assert layers.levels[layers.entry] == layers.levels.max() >= 2
    for row, line in enumerate(layers.links):
        linked = line[line >= 0]
        assert 0 < len(linked) == len(set(linked.tolist()) - {row})
        assert (line[len(linked) :] == -1).all()
    for level in range(1, layers.top + 1):
        rows = np.flatnonzero(layers.levels >= level)
        linked = layers.upper[layers.lines[rows] + level - 1]
        assert (layers.levels[linked[linked >= 0]] >= level).all()


def test_added_rows_are_found_as_if_they_had_been_built() -> None:
    database, queries = uneven(4000), uneven(100, seed=9)
    true = Exact(Metric.EUCLIDEAN).build(database).search(queries, 10).rows
    index = HnswPca(Metric.EUCLIDEAN, ef=60).build(database[:2000])
    index.add(database[2000:])  # type: ignore[attr-defined]
    found = index.search(queries, 10).rows
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found, true, strict=True)]) > 0.97


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 9}, "out of range"),
        ({"step": 0.0}, "out of range"),
        ({"middle": 1e9}, "out of range"),
        ({"correlation": -0.5}, "out of range"),
        ({"margin": 0.5}, "out of range"),
        ({"bits": 16}, "does not belong to index.faiss"),
        ({"step": "1"}, "step"),
    ],
)
def test_damaged_codes_are_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    indexer = HnswPca(Metric.EUCLIDEAN, bits=8)
    indexer.build(uneven(500)).save(tmp_path)
    facts = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**facts, **changed}))
    with pytest.raises(BadData, match=message):
        indexer.load(tmp_path)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for AVX-512")
def test_codes_are_compared_in_whole_registers() -> None:
    script = (
        "from numba import njit, types\n"
        "import retrieval.runtime.numba\n"
        "from indexers.graph.distances import squared_difference\n"
        "between = njit(lambda point, codes, row: squared_difference(point, codes, row))\n"
        "between.compile((types.int16[::1], types.int8[:, ::1], types.int64))\n"
        "print(*between.inspect_asm().values())\n"
    )
    target = {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | target,
        check=True,
        capture_output=True,
        text=True,
    )
    assert re.search(r"vpsubw.*%zmm", done.stdout)
