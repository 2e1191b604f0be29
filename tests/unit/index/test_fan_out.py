"""Searches of segments at once: merged answers, lost replicas, slow ones, placement."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from retrieval.contracts import Hits, Index, Vectors
from retrieval.errors import BadInput, Lost, Mismatch, NoCluster, WorkerFailed
from retrieval.index import fan_out
from retrieval.index.fan_out import FannedIndex, Request, Segment, Tolerance, searched
from retrieval.registry import make_indexer
from retrieval.runtime.ray_actors import Node, placed

DIM = 6
SIZES = (40, 1, 25, 60)


class Copy:
    """A replica in a thread, which can be lost, slow or silent."""

    def __init__(self, index: Index, place: str = "here") -> None:
        self.index = index
        self.place = place
        self.asked = 0
        self.is_lost = False
        self.delay = 0.0
        self.silent = False
        self._threads = ThreadPoolExecutor(1)

    def start(self, request: Request | None) -> "Future[Hits | None]":
        if request is not None:
            self.asked += 1
        if self.silent:
            return Future()
        return self._threads.submit(self._answer, request)

    def _answer(self, request: Request | None) -> Hits | None:
        time.sleep(self.delay)
        if self.is_lost:
            raise Lost(f"a worker on {self.place} was lost")
        return None if request is None else searched(self.index, request)


@pytest.fixture
def vectors() -> Vectors:
    rng = np.random.default_rng(0)
    made = rng.normal(size=(sum(SIZES), DIM)).astype(np.float32)
    made[50] = made[3]  # in two segments
    return made


def exact(vectors: Vectors) -> Index:
    return make_indexer("exact", {"metric": "euclidean", "device": "cpu"}).build(vectors)


def spread(vectors: Vectors, replicas: int = 1, **tolerance: Any) -> tuple[FannedIndex, list[Any]]:
    """Return the index in segments of SIZES, and the replicas of each."""
    parts = np.split(vectors, np.cumsum(SIZES)[:-1])
    copies = [[Copy(exact(part)) for _ in range(replicas)] for part in parts]
    segments = [Segment(len(part), of) for part, of in zip(parts, copies, strict=True)]
    return FannedIndex(segments, DIM, {}, Tolerance(**tolerance)), copies


def same(found: Hits, wanted: Hits) -> None:
    np.testing.assert_array_equal(found.rows, wanted.rows)
    np.testing.assert_array_equal(found.distances, wanted.distances)


@pytest.mark.parametrize("k", [1, 10, sum(SIZES), sum(SIZES) + 3])
def test_segments_answer_as_one_index(vectors: Vectors, k: int) -> None:
    index, _ = spread(vectors)
    whole = exact(vectors)
    queries = np.concatenate([vectors[:5], vectors[48:52] + np.float32(0.1)])
    same(index.search(queries, k), whole.search(queries, k))
    mask = np.arange(len(vectors)) % 5 == 3
    mask[40] = False  # the segment of one row has no row that matches
    same(index.search(queries, k, mask), whole.search(queries, k, mask))
    assert index.search(queries, k).share == 1


def test_a_large_batch_is_divided_and_keeps_its_order(
    vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fan_out, "BATCH_QUERIES", 3)
    index, copies = spread(vectors)
    same(index.search(vectors[:32], 4), exact(vectors).search(vectors[:32], 4))
    assert copies[0][0].asked == 11
    assert index.search(vectors[:0], 4).rows.shape == (0, 4)


def test_wrong_queries_are_refused_before_any_segment_is_asked(vectors: Vectors) -> None:
    index, copies = spread(vectors)
    with pytest.raises(Mismatch, match="queries have 5 dimensions, the index has 6"):
        index.search(vectors[:, :5], 3)
    with pytest.raises(BadInput, match="k is 0"):
        index.search(vectors, 0)
    assert not any(copy.asked for [copy] in copies)


def test_replicas_take_turns(vectors: Vectors) -> None:
    index, copies = spread(vectors, replicas=2)
    for _ in range(6):
        index.search(vectors[:1], 3)
    assert [[copy.asked for copy in of] for of in copies] == [[3, 3]] * len(SIZES)


def test_a_lost_replica_is_replaced_by_another_one_and_asked_again_once_it_is_back(
    vectors: Vectors,
) -> None:
    index, copies = spread(vectors, replicas=2)
    wanted = exact(vectors).search(vectors[:8], 5)
    copies[2][0].is_lost = True
    for _ in range(20):
        same(index.search(vectors[:8], 5), wanted)
    assert copies[2][0].asked == 1, "only the first search asked it"
    copies[2][0].is_lost = False
    until = time.monotonic() + 10
    while copies[2][0].asked < 2 and time.monotonic() < until:
        same(index.search(vectors[:8], 5), wanted)
    assert copies[2][0].asked >= 2


def test_a_segment_without_replicas_is_an_error(vectors: Vectors) -> None:
    index, copies = spread(vectors, replicas=2)
    for copy in copies[3]:
        copy.is_lost = True
        copy.place = "10.0.0.7"
    with pytest.raises(WorkerFailed, match=r"1 of 4 segments did not answer .* on 10\.0\.0\.7"):
        index.search(vectors[:1], 3)


def test_a_partial_answer_says_which_share_of_the_rows_was_searched(vectors: Vectors) -> None:
    index, copies = spread(vectors, partial=True)
    copies[0][0].is_lost = True
    there = np.arange(len(vectors)) >= SIZES[0]
    found = index.search(vectors[:9], 5)
    same(found, exact(vectors).search(vectors[:9], 5, there))
    assert found.share == pytest.approx(1 - SIZES[0] / sum(SIZES))
    for [copy] in copies:
        copy.is_lost = True
    with pytest.raises(WorkerFailed, match="4 of 4 segments"):
        index.search(vectors[:1], 3)


def test_a_silent_replica_is_given_up_after_the_time(vectors: Vectors) -> None:
    index, copies = spread(vectors, replicas=2, seconds=0.2, partial=True)
    copies[1][0].silent = True
    started = time.monotonic()
    shares = [index.search(vectors[:1], 3).share for _ in range(6)]
    assert time.monotonic() - started < 2
    assert [share < 1 for share in shares].count(True) == 1, "it is asked no more"


def test_a_slow_replica_is_hedged_by_another_one(vectors: Vectors) -> None:
    index, copies = spread(vectors, replicas=2, hedges=True)
    wanted = exact(vectors).search(vectors[:2], 3)
    for _ in range(40):
        index.search(vectors[:2], 3)
    copies[0][0].delay = 1.5
    started = time.monotonic()
    for _ in range(4):
        same(index.search(vectors[:2], 3), wanted)
    assert time.monotonic() - started < 1


def test_an_error_of_a_segment_is_raised(vectors: Vectors) -> None:
    class Broken(Copy):
        def _answer(self, request: Request | None) -> Hits | None:
            raise Mismatch("on node 10.0.0.2: retr has another version")

    index = FannedIndex([Segment(len(vectors), [Broken(exact(vectors))])], DIM, {})
    with pytest.raises(Mismatch, match="another version"):
        index.search(vectors[:1], 3)


def test_many_threads_search_at_once(vectors: Vectors) -> None:
    index, copies = spread(vectors, replicas=2)
    wanted = exact(vectors).search(vectors, 5)
    copies[1][1].is_lost = True

    def search(_: int) -> None:
        same(index.search(vectors, 5), wanted)

    with ThreadPoolExecutor(4) as threads:
        assert len([*threads.map(search, range(80))]) == 80


def nodes(*memory: int) -> list[Node]:
    return [Node(f"n{number}", f"10.0.0.{number}", each) for number, each in enumerate(memory)]


@pytest.mark.parametrize(
    ("sizes", "memory", "replicas", "wanted"),
    [
        ([10, 10, 10], [30, 30, 30], 1, [["n0"], ["n1"], ["n2"]]),
        ([10, 50, 20], [60, 40], 1, [["n1"], ["n0"], ["n1"]]),
        ([10, 10], [30, 30, 25], 2, [["n0", "n1"], ["n2", "n0"]]),
    ],
)
def test_segments_are_placed_by_size(
    sizes: Sequence[int], memory: Sequence[int], replicas: int, wanted: list[list[str]]
) -> None:
    found = placed(sizes, nodes(*memory), replicas)
    assert [[node.id for node in of] for of in found] == wanted


def test_too_little_memory_and_too_many_replicas_are_refused() -> None:
    with pytest.raises(NoCluster, match=r"segment 1 needs 3\.0 GB .* 2\.0 GB, 1\.0 GB left"):
        placed([10**9, 3 * 10**9], nodes(2 * 10**9, 10**9))
    with pytest.raises(NoCluster, match="--replicas 3 on a cluster of 2; give 1 to 2"):
        placed([1], nodes(10, 10), 3)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_timeout_is_positive(seconds: float) -> None:
    with pytest.raises(BadInput, match="is not positive"):
        Tolerance(seconds=seconds)
