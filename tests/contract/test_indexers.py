"""Every registered backend, with every metric that it takes, against the contract."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.contracts import Hits, Index, Indexer, Mask, Metric, Vectors
from retrieval.errors import BadInput
from retrieval.registry import indexer_names, make_indexer
from retrieval.testing import check_indexer
from tests.examples import slow

# A backend that silently lost a metric would pass everything else.
OWN = {
    "exact": set(Metric),
    "ivf": set(Metric),
    "hnsw": set(Metric) - {Metric.MANHATTAN},
    "hnsw-pca": set(Metric) - {Metric.MANHATTAN},
    "ivfpq": set(Metric) - {Metric.MANHATTAN},
    "vamana": set(Metric) - {Metric.MANHATTAN},
    "faiss": set(Metric),
    "milvus": set(Metric) - {Metric.MANHATTAN},
    "pgvector": set(Metric) - {Metric.MANHATTAN},
}


def supported() -> list[tuple[str, Metric]]:
    pairs = []
    for name in indexer_names():
        for metric in Metric:
            try:
                make_indexer(name, {"metric": metric})
            except BadInput:
                continue
            pairs.append((name, metric))
    return pairs


def in_turn() -> list[object]:
    """Return the supported pairs; Milvus takes seconds for each, so most are left for later."""
    late = [pair for pair in supported() if pair[0] == "milvus" and pair[1] is not Metric.COSINE]
    return [slow(*pair) if pair in late else pair for pair in supported()]


def test_own_backends_take_their_metrics() -> None:
    pairs = supported()
    assert {name: {m for n, m in pairs if n == name} for name in OWN} == OWN


@pytest.fixture(autouse=True)
def with_its_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip, and say so, where Milvus Lite is not installed, which no extra brings."""
    monkeypatch.delenv("MILVUS_URI", raising=False)
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("name") == "milvus":
        pytest.importorskip("milvus_lite", reason="needs Milvus Lite: see the Makefile")


@pytest.mark.parametrize(("name", "metric"), in_turn())
def test_contract(name: str, metric: Metric) -> None:
    check_indexer(make_indexer(name, {"metric": metric}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ivf", {"n_lists": 1, "n_probe": 1}),
        ("ivf", {"n_lists": 1200, "n_probe": 400}),
        ("hnsw", {"m": 4, "ef": 60, "build_threads": 1}),
        ("hnsw", {"m": 64, "ef": 500}),
        ("hnsw-pca", {"axes": 16, "m": 8, "ef": 100, "build_threads": 1}),
        ("hnsw-pca", {"axes": 1000, "ef": 1}),
        ("ivfpq", {"axes": 16, "n_lists": 8, "n_probe": 100, "per_code": 4, "refine": 20}),
        ("ivfpq", {"n_lists": 1200, "n_probe": 1200, "per_code": 7, "refine": 30}),
        ("vamana", {"degree": 8, "ef": 100, "refine": 3}),
        ("vamana", {"halves": False}),
        ("vamana", {"halves": False, "metric": "euclidean", "ef": 100}),
        ("vamana", {"halves": False, "metric": "inner_product", "ef": 100}),
        ("vamana", {"degree": 64, "ef_construction": 20, "ef": 1}),
        slow("milvus", {"index_type": "FLAT"}),
        slow("milvus", {"index_type": "IVF_FLAT", "n_lists": 8, "n_probe": 8}),
        ("pgvector", {"index_type": "EXACT"}),
        ("pgvector", {"m": 4, "ef": 60}),
        ("faiss", {"factory": "Flat"}),
        ("faiss", {"search": "efSearch=200"}),
        ("faiss", {"factory": "IVF16,SQ8,RFlat", "search": "nprobe=16,k_factor_rf=4"}),
    ],
)
def test_contract_with_other_options(name: str, options: dict[str, object]) -> None:
    check_indexer(make_indexer(name, options))


@pytest.mark.parametrize(("name", "metric"), supported())
def test_distances_and_order_by_hand(name: str, metric: Metric) -> None:
    # The query is (1, 0). The rows: itself, its opposite, a right angle, its double, zero, and a
    # copy of the right angle. A search reaches all of these few rows.
    database = np.array([[1, 0], [-1, 0], [0, 1], [2, 0], [0, 0], [0, 1]], np.float32)
    root = np.sqrt(2)
    expected = {
        Metric.COSINE: ([0, 3, 2, 4, 5, 1], [0, 0, 1, 1, 1, 2]),
        Metric.EUCLIDEAN: ([0, 3, 4, 2, 5, 1], [0, 1, 1, root, root, 2]),
        Metric.INNER_PRODUCT: ([3, 0, 2, 4, 5, 1], [-2, -1, 0, 0, 0, 1]),
        Metric.MANHATTAN: ([0, 3, 4, 1, 2, 5], [0, 1, 1, 2, 2, 2]),
    }
    rows, distances = expected[metric]
    query = np.array([[1, 0]], np.float32)
    hits = make_indexer(name, {"metric": metric}).build(database).search(query, 7)
    assert hits.rows.tolist() == [[*rows, -1]]
    np.testing.assert_allclose(hits.distances, [[*distances, np.inf]], atol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_a_backend_imports_no_other_library(name: str) -> None:
    libraries = {"hnsw": ["hnswlib"], "pgvector": []}.get(name, ["faiss"])
    code = (
        "import sys; import indexers; heavy = {'faiss', 'hnswlib', 'torch'};"
        " from retrieval.registry import make_indexer; assert not heavy & set(sys.modules);"
        f" make_indexer('{name}', {{}}); print(*heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == libraries


class Wrong:
    """Exact search that breaks one promise. The suite must notice each of them."""

    def __init__(self, index: Index, fault: str) -> None:
        self.index, self.fault = index, fault

    dim = property(lambda self: self.index.dim)
    details = property(lambda self: self.index.details)

    def __len__(self) -> int:
        return len(self.index)

    def save(self, folder: Path) -> None:
        self.index.save(folder)

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        if self.fault == "thins out the result":
            hits = self.index.search(queries, k)
            if among is not None:
                gone = ~among[hits.rows]
                hits.rows[gone], hits.distances[gone] = -1, np.inf
            return hits
        hits = self.index.search(queries, k, None if self.fault == "ignores the mask" else among)
        match self.fault:
            case "int32 rows":
                return Hits(hits.rows.astype(np.int32), hits.distances)
            case "farthest first":
                return Hits(hits.rows[:, ::-1], hits.distances[:, ::-1])
            case "similarities":
                return Hits(hits.rows, 1 - hits.distances)
            case "fewer columns":
                return Hits(hits.rows[:, : len(self)], hits.distances[:, : len(self)])
            case "changes queries":
                queries /= 2
            case "pads with zero":
                return Hits(hits.rows, np.where(hits.rows < 0, 0, hits.distances))
            case "misses the nearest" if k < len(self) - 1 and among is None:
                more = self.index.search(queries, k + 5)
                return Hits(more.rows[:, 5:], more.distances[:, 5:])
        return hits


FAULTS = [
    "thins out the result",
    "ignores the mask",
    "int32 rows",
    "farthest first",
    "similarities",
    "fewer columns",
    "changes queries",
    "pads with zero",
    "misses the nearest",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_suite_detects_violations(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    indexer = make_indexer("exact", {})
    build = type(indexer).build
    faulty: Any = lambda self, vectors: Wrong(build(self, vectors), fault)  # noqa: E731
    monkeypatch.setattr(type(indexer), "build", faulty)
    with pytest.raises(AssertionError):
        check_indexer(indexer)


def test_the_suite_notices_a_search_option_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    indexer: Indexer = make_indexer("ivf", {})
    monkeypatch.setattr(type(indexer), "search_options", frozenset({"nprobe"}))
    with pytest.raises(AssertionError, match="nprobe"):
        check_indexer(indexer)


def test_settings_are_values() -> None:
    one: Any = make_indexer("ivf", {"n_probe": "8"})
    assert one == replace(make_indexer("ivf", {}), n_probe=8)  # type: ignore[type-var]
    assert hash(one) == hash(make_indexer("ivf", {"n_probe": 8}))
