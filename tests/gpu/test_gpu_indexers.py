"""Indices on a real GPU: the same answers as the CPU gives."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from indexers.exact import Exact
from indexers.faiss.gpu import Gpu
from indexers.ivf import Ivf
from retrieval.contracts import Metric, Vectors
from retrieval.testing import check_indexer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="faiss sees no GPU"),
]

METRICS = [Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT]


def data(rows: int = 20_000) -> tuple[Vectors, Vectors]:
    both = np.random.default_rng(0).standard_normal((rows + 50, 32), dtype=np.float32)
    return both[:rows], both[rows:]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [Exact, Ivf])
def test_contract(kind: Any, metric: Metric) -> None:
    check_indexer(kind(metric, device="cuda"))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 10, 2047, 2048, 20_000])
def test_exact_search_finds_the_same(metric: Metric, k: int) -> None:
    database, queries = data()
    index = Exact(metric, device="cuda").build(database)
    assert index.details["device"] == "cuda" and isinstance(index.gpu, Gpu)
    expected = Exact(metric, device="cpu").build(database).search(queries, k)
    hits = index.search(queries, k)
    assert (hits.rows == expected.rows).mean() > 0.99
    np.testing.assert_allclose(hits.distances, expected.distances, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_gpu_and_cpu_find_the_same(metric: Metric, tmp_path: Path) -> None:
    database, queries = data()
    index = Ivf(metric, n_probe=16, device="cuda").build(database)
    assert index.details["device"] == "cuda" and isinstance(index.gpu, Gpu)
    index.save(tmp_path)
    on_cpu = Ivf(metric, n_probe=16, device="cpu").load(tmp_path)
    assert on_cpu.gpu is None and on_cpu.details["lists"] == index.details["lists"]
    hits, expected = index.search(queries, 10), on_cpu.search(queries, 10)
    assert (hits.rows == expected.rows).mean() > 0.99
    np.testing.assert_allclose(hits.distances, expected.distances, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_recall_of_gpu_lists_equals_cpu_lists(metric: Metric) -> None:
    database, queries = data()
    truth = Exact(metric, device="cpu").build(database).search(queries, 10)
    recall = [
        np.mean(
            [
                len(set(a.tolist()) & set(b.tolist())) / 10
                for a, b in zip(
                    Ivf(metric, n_probe=64, device=device).build(database).search(queries, 10).rows,
                    truth.rows,
                    strict=True,
                )
            ]
        )
        for device in ("cuda", "cpu")
    ]
    assert abs(recall[0] - recall[1]) < 0.05, recall


@pytest.mark.parametrize("k", [2048, 2049, 20_000])
def test_largest_k(k: int) -> None:
    database, queries = data()
    hits = Ivf(Metric.EUCLIDEAN, n_probe=10**6, device="cuda").build(database).search(queries, k)
    truth = Exact(Metric.EUCLIDEAN, device="cpu").build(database).search(queries, k)
    np.testing.assert_allclose(hits.distances, truth.distances, rtol=1e-3, atol=1e-3)


def test_masks_on_the_cpu() -> None:
    database, queries = data()
    mask = np.arange(len(database)) % 7 == 0
    hits = Ivf(Metric.EUCLIDEAN, device="cuda").build(database).search(queries, 10, mask)
    assert mask[hits.rows].all()
