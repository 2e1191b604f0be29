"""retr beside other libraries: the table, and each library that is installed anyway."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import worker
from benchmarks.peers.peer import PEERS, open_peer
from benchmarks.suite.machine import cores
from retrieval.contracts import Metric, Vectors
from retrieval.errors import UnknownName
from retrieval.quality.ranking import nearest

INSTALLED = [name for name, place in PEERS.items() if place.startswith(("raw:", "retr:", "svs:"))]


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    """retr's peers pin the process to as many cores as threads; later tests must not be pinned."""
    before = cores()
    yield
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, before)


def vectors(rows: int, seed: int) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, 16), dtype=np.float32)


@pytest.mark.parametrize("metric", [Metric.EUCLIDEAN, Metric.COSINE])
@pytest.mark.parametrize("name", [name for name in INSTALLED if name != "retr-auto"])
def test_highest_effort_finds_the_neighbors(name: str, metric: Metric, tmp_path: Path) -> None:
    database, queries = vectors(1500, 1), vectors(40, 2)
    true = nearest(queries, database, metric, 10).rows
    peer = open_peer(name)
    peer.build(database, metric, 1, tmp_path)
    found = []
    for effort in (peer.ladders[0][0], peer.ladders[-1][-1]):
        peer.set(effort, threads=1)
        rows = peer.search(queries, 10)
        assert (rows.shape, rows.dtype) == ((40, 10), np.int64)
        found.append(np.mean([len({*a} & {*b}) / 10 for a, b in zip(rows, true, strict=True)]))
    assert found[1] > (0.85 if name == "faiss-hnsw-sq8" else 0.95)
    assert found[0] <= found[1]
    one = peer.search(queries[:1], 10)
    assert one.shape == (1, 10)


def test_two_libraries_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    results = peers.run(vectors(50, 2), vectors(600, 1), Metric.EUCLIDEAN, ["retr-exact"])
    assert [*results] == ["hnswlib", "retr-exact", "hnswlib again"]
    for rows in results.values():
        assert isinstance(rows, list)
        assert max(row["recall"] for row in rows) > 0.99
        assert all(row["single_qps"] > 0 and row["batch_qps"] > 0 for row in rows)
    lines = peers.table(results).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| hnswlib |")
    both = [line.split("|")[3:-1] for line in (lines[2], lines[4])]
    assert all("(1.00)" in first + last for first, last in zip(*both, strict=True))


def test_the_table_has_ratios_to_hnswlib() -> None:
    def row(recall: float, single: float, batch: float) -> dict[str, float]:
        return {
            "recall": recall, "single_qps": single, "batch_qps": batch, "build_seconds": 1.25,
        }  # fmt: skip

    table = peers.table(
        {
            "hnswlib": [row(0.91, 100, 1000), row(0.99, 50, 400)],
            "other": [row(0.97, 300, 500), row(0.98, 150, 800)],
            "gone": "No module named 'gone'; pip install 'retr[peers]'",
            "hnswlib again": [row(0.91, 80, 2000)],
        }
    )
    hnswlib, other, gone, again = table.splitlines()[2:]
    assert hnswlib == (
        "| hnswlib | 1.2 | 100 (1.00) | 50 (1.00) | 50 (1.00) "
        "| 1,000 (0.50) | 400 (1.00) | 400 (1.00) |"
    ), "of two measurements, the faster one counts"
    assert other == ("| other | 1.2 | 300 (3.00) | 300 (6.00) | – | 800 (0.40) | 800 (2.00) | – |")
    assert gone.startswith("| gone | No module named 'gone'; pip install")
    assert again == "| hnswlib again | 1.2 | 80 (0.80) | – | – | 2,000 (1.00) | – | – |"


def test_missing_library_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PEERS, "gone", "raw_gone:Gone")
    monkeypatch.setattr("sys.argv", ["worker", "gone", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"pip install 'retr\[peers\]'"):
        worker.main()


def test_an_unknown_peer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="did you mean 'hnswlib'"):
        open_peer("hnswlob")
    monkeypatch.setattr("sys.argv", ["peers", "--peer", "voyagr"])
    with pytest.raises(SystemExit, match="did you mean 'voyager'"):
        peers.main()
