"""Exact search beyond the contract: ties across rank k, files."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from indexers.exact import Exact
from indexers.ivf import Ivf
from retrieval.contracts import Metric
from retrieval.errors import BadData


@pytest.mark.parametrize("metric", [Metric.EUCLIDEAN, Metric.INNER_PRODUCT, Metric.MANHATTAN])
@pytest.mark.parametrize("queries", [1, 60])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_ties_at_rank_k_go_to_the_lowest_rows(metric: Metric, queries: int, share: float) -> None:
    # Small whole numbers: distances are exact in float32, and hundreds of rows share each.
    generator = np.random.default_rng(1)
    database = generator.integers(0, 3, (2500, 5)).astype(np.float32)
    asked = generator.integers(0, 3, (queries, 5)).astype(np.float32)
    mask = generator.random(2500) < share
    index = Exact(metric).build(database)
    for line in (0, queries - 1):
        difference = asked[line] - database
        truth = {
            Metric.EUCLIDEAN: (difference**2).sum(1),
            Metric.MANHATTAN: abs(difference).sum(1),
            Metric.INNER_PRODUCT: -(database @ asked[line]),
        }[metric]
        order = np.argsort(np.where(mask, truth, np.inf), kind="stable")
        for k in (1, 3, 20, 99, 100, 101, 900):
            rows = index.search(asked, k, mask).rows[line]
            assert rows.tolist() == order[:k].tolist()


def test_ties_are_settled_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexers.exact.MAX_TIED_DISTANCES", 64)
    database = np.ones((50, 3), np.float32)
    hits = Exact(Metric.EUCLIDEAN).build(database).search(database, 4)
    assert hits.rows.tolist() == [[0, 1, 2, 3]] * 50


def test_hits_are_contiguous() -> None:
    vectors = np.random.default_rng(0).random((30, 3), np.float32)
    hits = Exact().build(vectors).search(vectors, 4)
    assert hits.rows.flags.c_contiguous and hits.distances.flags.c_contiguous


def test_saved_for_faiss(tmp_path: Path) -> None:
    vectors = np.array([[3, 4], [0, 2], [0, 0]], np.float32)
    Exact(Metric.COSINE).build(vectors).save(tmp_path)
    index = faiss.read_index(str(tmp_path / "index.faiss"))
    assert type(index) is faiss.IndexFlat or isinstance(index, faiss.IndexFlatIP)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    units = np.array([[0.6, 0.8], [0, 1], [0, 0]])
    np.testing.assert_allclose(index.reconstruct_n(0, 3), units, rtol=1e-6)


def test_load_refuses_another_kind_or_metric(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).random((30, 3), np.float32)
    Exact(Metric.EUCLIDEAN).build(vectors).save(tmp_path)
    with pytest.raises(BadData, match=r"IndexFlat.* wanted IndexIVFFlat"):
        Ivf(Metric.EUCLIDEAN).load(tmp_path)
    with pytest.raises(BadData, match="manhattan"):
        Exact(Metric.MANHATTAN).load(tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 20, 200, -1])
def test_load_refuses_a_truncated_file(tmp_path: Path, kept: int) -> None:
    Exact().build(np.ones((30, 3), np.float32)).save(tmp_path)
    file = tmp_path / "index.faiss"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(BadData, match=r"index\.faiss is damaged"):
        Exact().load(tmp_path)


def test_load_refuses_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "index.faiss").write_bytes(b"\x93NUMPY" * 100)
    with pytest.raises(BadData, match=r"index\.faiss is damaged"):
        Exact().load(tmp_path)
