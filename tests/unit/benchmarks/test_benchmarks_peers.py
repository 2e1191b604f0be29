"""retr beside other libraries: the table, and each library that is installed anyway."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import worker
from benchmarks.peers.peer import PEERS, open_peer
from benchmarks.peers.rounds import Worker, compared
from benchmarks.suite.machine import cores
from retrieval.contracts import Metric, Vectors
from retrieval.errors import UnknownName
from retrieval.quality.ranking import nearest

INSTALLED = [name for name, place in PEERS.items() if place.startswith(("raw:", "retr:", "svs:"))]
INTEL_ONLY = {"svs-lvq8", "svs-lvq4x8", "svs-leanvec"}


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
@pytest.mark.parametrize("name", sorted({*INSTALLED} - {"retr-auto"} - INTEL_ONLY))
def test_highest_effort_finds_the_neighbors(name: str, metric: Metric, tmp_path: Path) -> None:
    database, queries = vectors(1500, 1), vectors(40, 2)
    true = nearest(queries, database, metric, 10).rows
    peer = open_peer(name)
    peer.build(database, metric, 1, tmp_path)
    found = []
    for effort in (peer.ladders[0][0], peer.ladders[-1][-1]):
        peer.set(effort, threads=1)
        rows = peer.search(peer.prepared(queries), 10)
        assert (rows.shape, rows.dtype) == ((40, 10), np.int64)
        found.append(np.mean([len({*a} & {*b}) / 10 for a, b in zip(rows, true, strict=True)]))
    assert found[1] > (0.85 if name == "faiss-hnsw-sq8" else 0.95)
    assert found[0] <= found[1]
    one = peer.search(peer.prepared(queries[:1]), 10)
    assert one.shape == (1, 10)


def test_libraries_in_processes_of_their_own() -> None:
    names = ["retr-exact", "voyegr"]
    results = peers.run(vectors(50, 2), vectors(600, 1), Metric.EUCLIDEAN, names, rounds=2)
    assert [*results] == ["hnswlib", "retr-exact", "voyegr"]
    base, exact, gone = results.values()
    assert isinstance(base, dict)
    assert isinstance(exact, dict)
    assert [*base["recalls"]] == [0.9, 0.95, 0.99]
    assert all(recall >= target for target, recall in base["recalls"].items())
    assert exact["recalls"] == {0.9: 1, 0.95: 1, 0.99: 1}
    for way in ("single", "batch"):
        for cell in exact["ways"][way].values():
            assert len(cell.seconds) == len(cell.ratios) == 2
            assert min(cell.seconds) > 0
    assert "did you mean 'voyager'" in str(gone)
    lines = peers.table(results).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| hnswlib | ")


def test_the_smallest_effort_that_reaches_a_target_counts(tmp_path: Path) -> None:
    """Of ladders that reach it, the one that is faster there."""
    recalls = {(0, 0): 0.8, (0, 1): 0.96, (1, 0): 0.91, (1, 1): 0.95, (1, 2): 0.992}
    seconds = {0: 2.0, 1: 3.0}

    class Answers(Worker):
        def __init__(self) -> None:
            self.efforts, self.recalls = {}, {}
            self.choose([2, 3])

        def ask(self, what: str, effort: tuple[int, int]) -> dict[str, float]:
            return {"recall": recalls[effort], "seconds": seconds[effort[0]]}

    chosen = Answers()
    assert chosen.efforts == {0.9: (0, 1), 0.95: (0, 1), 0.99: (1, 2)}
    assert chosen.recalls == {0.9: 0.96, 0.95: 0.96, 0.99: 0.992}


def test_a_ratio_is_relative_to_the_measurements_around_it() -> None:
    class Times:
        def __init__(self, *times: float) -> None:
            self.times = list(times)
            self.efforts = {0.9: (0, 0)}

        def seconds(self, way: str, target: float) -> float:
            return self.times.pop(0)

    mine, base = Times(1, 2, 4, 4), Times(2, 4, 8, 8, 8, 8, 8, 8)
    found = compared(cast(Worker, mine), cast(Worker, base), rounds=2)
    assert found["single"][0.9].ratios == [3, 2]
    assert found["batch"][0.9].ratios == [4, 2]
    assert found["single"][0.9].cell() == "0 (2.50, 2.00–3.00)"
    assert found["single"][0.95].cell() == "–"


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
