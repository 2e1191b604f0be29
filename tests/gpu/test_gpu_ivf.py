"""Inverted lists on a real GPU: the same answers as the CPU gives with the same lists."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from indexers.exact import Exact
from indexers.ivf import Gpu, Ivf
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
def test_contract(metric: Metric) -> None:
    check_indexer(Ivf(metric, device="cuda"))


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
def test_lists_of_the_gpu_are_as_good(metric: Metric) -> None:
    database, queries = data()
    truth = Exact(metric).build(database).search(queries, 10)
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
def test_the_greatest_k(k: int) -> None:
    database, queries = data()
    hits = Ivf(Metric.EUCLIDEAN, n_probe=10**6, device="cuda").build(database).search(queries, k)
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, k)
    np.testing.assert_allclose(hits.distances, truth.distances, rtol=1e-3, atol=1e-3)


def test_masks_on_the_cpu() -> None:
    database, queries = data()
    mask = np.arange(len(database)) % 7 == 0
    hits = Ivf(Metric.EUCLIDEAN, device="cuda").build(database).search(queries, 10, mask)
    assert mask[hits.rows].all()
