"""Inverted lists beyond the contract: how many, which are probed, which device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexers.exact import Exact
from indexers.ivf import Ivf
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadInput


def clustered(rows: int, dim: int = 8) -> Vectors:
    return np.random.default_rng(2).standard_normal((rows, dim), dtype=np.float32)


@pytest.mark.parametrize(
    ("rows", "n_lists", "lists"),
    [
        (1, None, 1),
        (38, None, 1),
        (77, None, 1),
        (78, None, 2),
        (5000, None, 128),  # 39 rows each
        (40_000, None, 800),  # 4 √rows
        (100, 7, 7),
        (5, 7, 5),
    ],
)
def test_number_of_lists(
    rows: int, n_lists: int | None, lists: int, capfd: pytest.CaptureFixture[str]
) -> None:
    index = Ivf(Metric.EUCLIDEAN, n_lists=n_lists, device="cpu").build(clustered(rows, 2))
    assert index.details == {"lists": lists, "device": "cpu"}
    assert capfd.readouterr() == ("", "")


def test_probes_are_those_of_faiss() -> None:
    database, queries = clustered(3000), clustered(3040)[3000:]
    index = Ivf(Metric.EUCLIDEAN, n_probe=3, device="cpu").build(database)
    index.index.nprobe = 3
    squares, rows = index.index.search(queries, 10)
    assert (rows >= 0).all()
    hits = index.search(queries, 10)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_allclose(hits.distances, np.sqrt(squares))
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 10)
    assert (hits.rows != truth.rows).any(), "three of 76 lists cannot hold every neighbor"


def test_more_probes_than_lists_are_exact() -> None:
    database, queries = clustered(1000), clustered(1040)[1000:]
    for metric in Metric:
        hits = Ivf(metric, n_probe=10**6, device="cpu").build(database).search(queries, 10)
        truth = Exact(metric).build(database).search(queries, 10)
        np.testing.assert_array_equal(hits.rows, truth.rows)


def test_probes_widen_until_k_rows_are_found() -> None:
    database = clustered(2000)
    index = Ivf(Metric.EUCLIDEAN, n_lists=50, n_probe=1, device="cpu").build(database)
    for k in (60, 700, 2000):
        hits = index.search(database[:5], k)
        assert (hits.rows >= 0).all(), f"2000 rows hold {k}"


def test_a_mask_widens_the_probes() -> None:
    database, queries = clustered(4000), clustered(4100)[4000:]
    index = Ivf(Metric.EUCLIDEAN, n_lists=100, n_probe=10, device="cpu").build(database)
    mask = np.random.default_rng(0).random(4000) < 0.08
    hits = index.search(queries, 5, mask)
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 5, mask)
    assert (hits.rows == truth.rows).mean() > 0.99


def test_same_seed_same_file(tmp_path: Path) -> None:
    database = clustered(3000)
    files = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        folder = tmp_path / name
        folder.mkdir()
        Ivf(n_lists=10, seed=seed, device="cpu").build(database).save(folder)
        files.append((folder / "index.faiss").read_bytes())
    assert files[0] == files[1] != files[2]


def test_n_probe_of_the_loading_indexer_applies(tmp_path: Path) -> None:
    Ivf(n_lists=50, n_probe=1, device="cpu").build(clustered(2000)).save(tmp_path)
    assert Ivf(n_probe=20, device="cpu").load(tmp_path).n_probe == 20
    assert Ivf(n_probe=80, device="cpu").load(tmp_path).n_probe == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_lists": 0}, "n_lists is 0; give at least 1"),
        ({"n_probe": 0}, "n_probe is 0; give at least 1"),
        ({"seed": -1}, "seed is -1; give from 0 to 2147483647"),
        ({"device": "tpu"}, "device is 'tpu'; give it one of auto, cpu, cuda"),
        ({"device": "cuda", "metric": Metric.MANHATTAN}, "manhattan.*set device=cpu"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Ivf(**options)
