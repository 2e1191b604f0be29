"""Search the segments of an index at once, where they are, and merge the partial answers.

A segment has replicas. Each query goes to one replica of every segment. A replica that is lost is
asked no more until it answers again, and its query is retried once by another one.
"""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from retrieval.contracts import Hits, Index, Json, Mask, Vectors
from retrieval.errors import BadInput, Lost, WorkerFailed
from retrieval.hits import Found, answer, merged
from retrieval.index.segments import segments_of

BATCH_QUERIES = 512  # a request has at most these; a larger batch is divided
BATCHES_AHEAD = 4  # sent before the first of them is merged
MAX_TRIES = 2
KEPT_TIMES = 256  # last requests, whose 95th percentile tells slow ones
HEDGE_QUANTILE = 0.95
MIN_HEDGE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Request:
    """Queries for one segment. effort: search options of its backend; None for those it has."""

    queries: Vectors
    k: int
    among: Mask | None = None
    effort: Any = None


class Replica(Protocol):
    """A copy of a segment that answers requests in the background."""

    @property
    def place(self) -> str:
        """The node of the replica, for messages."""

    def start(self, request: "Request | None") -> "Future[Hits | None]":
        """Start a search; None asks whether the replica is there. A lost one raises Lost."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Rules of a search for segments that do not answer.

    partial: answer from the other segments, with `Hits.share` below 1; else raise WorkerFailed.
    hedges: ask a second replica if the first one takes longer than 95% of the requests before.
    seconds: after which a replica counts as lost.
    """

    partial: bool = False
    hedges: bool = False
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise BadInput(f"a timeout of {self.seconds:g} s is not positive; give seconds")


class Segment:
    """The replicas of one segment, and its number of rows."""

    def __init__(self, rows: int, replicas: Sequence[Replica]) -> None:
        """Join at least one replica."""
        self.rows = rows
        self._replicas = [*replicas]
        self._returning: dict[int, Future[Any]] = {}
        self._next = 0

    def chosen(self, without: frozenset[int] = frozenset()) -> int | None:
        """Return the number of a replica that is there, in turns; None if there is none."""
        count = len(self._replicas)
        for step in range(count):
            number = (self._next + step) % count
            if number not in without and self._is_there(number):
                self._next = number + 1
                return number
        return None

    def start(self, number: int, request: Request) -> "Future[Hits | None]":
        """Start a search by this replica."""
        return self._replicas[number].start(request)

    def lose(self, number: int) -> None:
        """Ask the replica for nothing until it answers again."""
        self._returning[number] = self._replicas[number].start(None)

    @property
    def places(self) -> str:
        """The nodes of all replicas, for messages."""
        return ", ".join(sorted({each.place for each in self._replicas}))

    def _is_there(self, number: int) -> bool:
        returning = self._returning.get(number)
        if returning is None:
            return True
        if not returning.done():
            return False
        if returning.exception() is None:
            self._returning.pop(number, None)
            return True
        self.lose(number)  # ask again
        return False


@dataclass(slots=True)
class _Call:
    """A request to one segment, and the replicas that it was sent to."""

    number: int
    request: Request
    started: float
    asked: dict["Future[Any]", int] = field(default_factory=dict)
    failed: frozenset[int] = frozenset()
    hedged: bool = False


class FannedIndex:
    """An index whose segments are searched at once, by their replicas."""

    def __init__(
        self,
        segments: Sequence[Segment],
        dim: int,
        details: Mapping[str, Json],
        tolerance: Tolerance | None = None,
    ) -> None:
        """Join at least one segment, all of the same dimension and metric."""
        self.segments = segments
        self.dim = dim
        self.details = details
        self.tolerance = tolerance or Tolerance()
        self._of_thread = threading.local()
        self._starts = np.cumsum([0, *(each.rows for each in segments)])
        self._times: deque[float] = deque(maxlen=KEPT_TIMES)

    @property
    def effort(self) -> Any:
        """The search options for this thread, as a `Tunable`; None for those of the segments."""
        return getattr(self._of_thread, "effort", None)

    @effort.setter
    def effort(self, indexer: Any) -> None:
        self._of_thread.effort = indexer

    def __len__(self) -> int:
        return int(self._starts[-1])

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows of all segments that answer; see `Index` and `Tolerance`.

        Raises WorkerFailed if no segment answers, or one does not and all are wanted.
        """
        searched: list[int] = []

        def nearest(queries: Vectors, count: int, among: Mask | None) -> Found:
            return self._nearest(queries, count, among, searched)

        hits = answer(nearest, queries, k, among, dim=self.dim, rows=len(self))
        least = min(searched, default=len(self))
        return hits if least == len(self) else replace(hits, share=least / len(self))

    def save(self, folder: Any) -> None:
        """Raise BadInput: the segments' own folders have the files."""
        raise BadInput("an index that is searched on a cluster is not saved; copy its folder")

    def _nearest(
        self, queries: Vectors, count: int, among: Mask | None, searched: list[int]
    ) -> Found:
        """Search in batches, some of which run ahead. Append the rows that each batch searched."""
        starts = range(0, len(queries), BATCH_QUERIES)
        batches = [queries[start : start + BATCH_QUERIES] for start in starts]
        running = deque(self._started(batch, count, among) for batch in batches[:BATCHES_AHEAD])
        found = []
        for ahead in range(BATCHES_AHEAD, BATCHES_AHEAD + len(batches)):
            answers = self._answers(running.popleft())
            if ahead < len(batches):
                running.append(self._started(batches[ahead], count, among))
            there = zip(self.segments, answers, strict=True)
            searched.append(sum(segment.rows for segment, hits in there if hits is not None))
            found.append(self._merged(answers, count))
        rows, distances = (np.concatenate(each) for each in zip(*found, strict=True))
        return rows, distances

    def _started(self, queries: Vectors, count: int, among: Mask | None) -> list[_Call]:
        """Send the queries to one replica of each segment."""
        calls = []
        for number, segment in enumerate(self.segments):
            start, end = self._starts[number : number + 2]
            part = None if among is None else among[start:end]
            call = _Call(number, Request(queries, count, part, self.effort), time.monotonic())
            self._ask(call, segment.chosen())
            calls.append(call)
        return calls

    def _ask(self, call: _Call, replica: int | None) -> None:
        if replica is not None:
            call.asked[self.segments[call.number].start(replica, call.request)] = replica

    def _answers(self, calls: Sequence[_Call]) -> list[Hits | None]:
        """Return the hits of each segment; None for one that does not answer."""
        answers: list[Hits | None] = [None] * len(calls)
        open_calls = {call.number: call for call in calls if call.asked}
        while open_calls:
            now = time.monotonic()
            for call in [*open_calls.values()]:
                if now - call.started >= self.tolerance.seconds:
                    self._give_up(call)
                    del open_calls[call.number]
            waiting = [future for call in open_calls.values() for future in call.asked]
            done, _ = wait(waiting, self._patience(open_calls, now), FIRST_COMPLETED)
            if not done:
                self._hedge(open_calls)
            for call in [*open_calls.values()]:
                for future in done.intersection(call.asked):
                    self._settle(call, future, answers)
                if answers[call.number] is not None or not call.asked:
                    del open_calls[call.number]
        self._check(answers)
        return answers

    def _settle(self, call: _Call, future: "Future[Any]", answers: list[Hits | None]) -> None:
        """Take the answer of a replica, or send the request to another one if it was lost."""
        replica = call.asked.pop(future)
        try:
            hits = future.result()
        except Lost:
            segment = self.segments[call.number]
            segment.lose(replica)
            call.failed |= {replica}
            if len(call.failed) < MAX_TRIES and not call.asked:
                self._ask(call, segment.chosen(call.failed))
            return
        if answers[call.number] is None:
            answers[call.number] = hits
            self._times.append(time.monotonic() - call.started)

    def _give_up(self, call: _Call) -> None:
        for replica in call.asked.values():
            self.segments[call.number].lose(replica)

    def _patience(self, calls: Mapping[int, _Call], now: float) -> float:
        """Return the seconds to wait until a request times out, or is sent to a second replica."""
        oldest = min((call.started for call in calls.values()), default=now)
        left = max(0.0, oldest + self.tolerance.seconds - now)
        slow = self._slow_seconds
        waiting = [call.started for call in calls.values() if not call.hedged]
        if slow is None or not waiting:
            return left
        return min(left, max(0.0, min(waiting) + slow - now))

    @property
    def _slow_seconds(self) -> float | None:
        """The time after which a request is slow; None if slow ones are not sent again."""
        if not self.tolerance.hedges or len(self._times) < KEPT_TIMES // 8:
            return None
        return max(MIN_HEDGE_SECONDS, float(np.quantile([*self._times], HEDGE_QUANTILE)))

    def _hedge(self, calls: Mapping[int, _Call]) -> None:
        """Send slow requests to a second replica as well."""
        slow, now = self._slow_seconds, time.monotonic()
        for call in calls.values():
            if slow is not None and not call.hedged and now - call.started >= slow:
                call.hedged = True
                busy = frozenset(call.asked.values())
                self._ask(call, self.segments[call.number].chosen(busy | call.failed))

    def _check(self, answers: Sequence[Hits | None]) -> None:
        silent = [number for number, hits in enumerate(answers) if hits is None]
        if not silent or (self.tolerance.partial and len(silent) < len(answers)):
            return
        places = self.segments[silent[0]].places
        raise WorkerFailed(
            f"{len(silent)} of {len(answers)} segments did not answer (number {silent[0]}, on "
            f"{places}); search again when the node is back, or permit partial answers"
        )

    def _merged(self, answers: Sequence[Hits | None], count: int) -> Found:
        parts = [
            (np.where(hits.rows < 0, -1, hits.rows + start), hits.distances)
            for start, hits in zip(self._starts, answers, strict=False)
            if hits is not None
        ]
        return merged(parts, count)


def apply_effort(indexer: Any, index: Index) -> None:
    """Set the search options of a `Tunable` on an index, in parts or not.

    On a `FannedIndex`, they hold for searches by this thread.
    """
    if isinstance(index, FannedIndex):
        index.effort = indexer
        return
    for part in segments_of(index):
        indexer.apply(part)


def searched(index: Index, request: Request) -> Hits:
    """Search an index for a request, with its effort."""
    if request.effort is not None:
        apply_effort(request.effort, index)
    return index.search(request.queries, request.k, request.among)
