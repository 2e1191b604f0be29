"""Measure candidate indices: recall and time of queries over some or all rows."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Index, Metric, Tunable, Vectors
from retrieval.errors import BadInput
from retrieval.index.auto.trials import Target, Trial, Tried, setting_of, verdict_of
from retrieval.index.folder import options_of
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import Distances, Rows, distances_of
from retrieval.registry import make_indexer

MAX_QUERIES = 1000  # over all rows, half of them choose the effort, and the other half checks it
SINGLE_QUERIES = 300  # timed one at a time
MIN_SINGLE_QUERIES = 20  # timed even if they take longer than MAX_TIMING_SECONDS
MAX_TIMED = 2  # ladders of a candidate whose best rungs are timed one query at a time
MAX_TIMING_SECONDS = 0.5  # for all repeats
MIN_BATCH_SECONDS = 0.2  # for all repeats of a batch, which may take a hundredth of a second
TIMING_REPEATS = 5  # the fastest counts: other work of the machine can only slow a repeat down

_EVERY = slice(None)


@dataclass(frozen=True, slots=True, eq=False)
class TuningQueries:
    """Queries (q, dim) to tune with.

    rows: (q,), the rows of the queries in the database; None if they are not from the database.
    """

    vectors: Vectors
    rows: Rows | None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def held_out(self) -> bool:
        return self.rows is not None

    @classmethod
    def of(cls, database: Vectors, queries: Vectors | None, seed: int) -> "TuningQueries":
        """Draw at most MAX_QUERIES queries at random.

        queries: the queries to draw from; None for the rows of the database. Raises BadInput if
        these are empty.
        """
        draw = np.random.default_rng(seed)
        source = database if queries is None else queries
        if len(source) == 0:
            raise BadInput("there are no queries; encode some images first")
        # At most a tenth of the rows is held out.
        most = min(MAX_QUERIES, len(source) if queries is not None else max(1, len(source) // 10))
        rows = draw.choice(len(source), most, replace=False)  # unsorted: each part is random, too
        return cls(source[rows], rows if queries is None else None)


@dataclass(frozen=True, slots=True)
class _Reach:
    """Recall and mean seconds of a query in a batch, with these search options."""

    rung: Tunable
    recall: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Rows to search, queries, and the distances (q, k) of their true neighbors among these rows.

    own: (q,), the row of each query in `vectors`; -1 where it is not among them.
    """

    vectors: Vectors
    queries: Vectors
    own: Rows
    truth: Distances
    metric: Metric
    k: int
    all_rows: int

    def __post_init__(self) -> None:
        resolve_choices(self)

    @classmethod
    def of(
        cls,
        vectors: Vectors,
        asked: TuningQueries,
        metric: Metric | str,
        k: int,
        rows: int,
        draw: np.random.Generator | None,
    ) -> "Stage":
        """Draw `rows` rows to search, and find the true neighbors among them.

        draw: random generator, to draw rows that are not queries; None for all rows, including the
        queries.
        """
        metric = choice(Metric, metric)
        own = np.full(len(asked), -1)
        chosen = vectors
        if draw is not None:
            free = np.arange(len(vectors))
            if asked.rows is not None:
                free = np.delete(free, asked.rows)
            chosen = vectors[np.sort(draw.choice(free, min(rows, len(free)), replace=False))]
        elif asked.rows is not None:
            own = asked.rows
        stage = cls(chosen, asked.vectors, own, np.empty((0, 0)), metric, k, len(vectors))
        exact = make_indexer("exact", {"metric": metric}).build(chosen)
        found = stage._found(exact, _EVERY)
        return replace(stage, truth=distances_of(asked.vectors, chosen, found, metric))

    @property
    def is_whole(self) -> bool:
        """Return whether all rows are searched."""
        return len(self.vectors) == self.all_rows

    def tried(
        self,
        backend: str,
        candidate: Tunable,
        folder: Path,
        target: Target,
        patience: float = math.inf,
    ) -> Tried:
        """Build the candidate in the folder, and return its trial; see `measured`."""
        began = time.perf_counter() - _compile_seconds()
        index = candidate.build(self.vectors)
        build_seconds = time.perf_counter() - _compile_seconds() - began
        index.save(folder)
        del index  # users search an index that is loaded
        index = candidate.load(folder)
        return self.measured(backend, candidate, index, folder, build_seconds, target, patience)

    def measured(
        self,
        backend: str,
        candidate: Tunable,
        index: Index,
        folder: Path,
        build_seconds: float,
        target: Target,
        patience: float = math.inf,
    ) -> Tried:
        """Return the trial of an index in the folder, with the effort that it needs.

        That is the fastest effort that reaches the target, else the most accurate that was
        measured. patience: no higher effort is measured than one that takes as many seconds a query
        and does not reach the target.

        Over all rows, half of the queries choose the effort. Then the effort rises until the other
        half reaches the target, too. The trial has the recall of the other half.
        """
        half = len(self.queries) // 2
        whole = self.is_whole and half
        chooses, checks = (slice(0, half), slice(half, None)) if whole else (_EVERY, _EVERY)
        reached = []
        for ladder in candidate.ladders():
            ladder[0].apply(index)
            index.search(self.queries[:1], self.k)  # a first search may compile code
            reach = self._lowest(ladder, index, chooses, target.recall, patience)
            higher = iter(ladder[ladder.index(reach.rung) :]) if whole else iter(())
            for rung in higher:
                reach = self._reach(index, rung, checks)
                if reach.recall >= target.recall:
                    break
            reached.append(reach)
        return self._best(backend, candidate, reached, index, folder, build_seconds, target)

    def _best(
        self,
        backend: str,
        candidate: Tunable,
        reached: Sequence[_Reach],
        index: Index,
        folder: Path,
        build_seconds: float,
        target: Target,
    ) -> Tried:
        """Return the trial of the fastest effort that reaches the target.

        If none does, it is that of the most accurate.
        """
        enough = [each for each in reached if each.recall >= target.recall]
        limit = target.max_latency or math.inf
        enough = sorted(enough, key=lambda each: each.seconds)[:MAX_TIMED]
        timed = []
        for each in enough or [max(reached, key=lambda each: each.recall)]:
            each.rung.apply(index)
            seconds, latency = self.timed(index, target.batches)
            timed.append((latency > limit, seconds, latency, each))
        _, seconds, latency, best = min(timed, key=lambda each: each[:2])
        growth = self.all_rows / len(self.vectors)
        size = sum(path.stat().st_size for path in folder.iterdir())
        trial = Trial(
            backend=backend,
            options=options_of(best.rung),
            setting=setting_of(best.rung),
            rows=len(self.vectors),
            recall=best.recall,
            seconds=seconds,
            latency=latency,
            size_bytes=size,
            build_seconds=build_seconds,
            expected_seconds=seconds,
            expected_bytes=size * growth,
            expected_build=build_seconds * growth,
        )
        if self.is_whole:
            trial = replace(trial, verdict=verdict_of(trial, target))
        return Tried(backend, candidate, best.rung, trial, folder, best.seconds)

    def _lowest(
        self,
        ladder: Sequence[Tunable],
        index: Index,
        part: slice,
        target: float,
        patience: float = math.inf,
    ) -> _Reach:
        """Return the lowest rung that reaches the target, else the highest that was measured.

        Rungs 0, 1, 3, 7 and so on are measured until one reaches the target or takes more than
        `patience` seconds a query, then those between the last two.
        """
        low, number = 0, 0
        while True:
            last = self._reach(index, ladder[number], part)
            if last.recall >= target:
                break
            if number == len(ladder) - 1 or last.seconds > patience:
                return last
            low = number + 1
            number = min(2 * number + 1, len(ladder) - 1)
        while low < number:
            middle = (low + number) // 2
            reach = self._reach(index, ladder[middle], part)
            if reach.recall >= target:
                last, number = reach, middle
            else:
                low = middle + 1
        return last

    def _reach(self, index: Index, rung: Tunable, part: slice) -> _Reach:
        rung.apply(index)
        began = time.perf_counter()
        found = self._found(index, part)
        seconds = (time.perf_counter() - began) / len(found)
        distances = distances_of(self.queries[part], self.vectors, found, self.metric)
        truth = self.truth[part]
        there = np.isfinite(truth).any(axis=1)  # a query has no neighbor if it is the only row
        if not there.any():
            return _Reach(rung, 1.0, seconds)
        of_queries = index_recall_at(distances[there], truth[there], self.k, self.metric)
        return _Reach(rung, float(of_queries.mean()), seconds)

    def _found(self, index: Index, part: slice) -> Rows:
        """Return the rows (q, k) that the index finds, without the queries themselves."""
        own = self.own[part, None]
        more = int((own >= 0).any())
        rows = index.search(self.queries[part], self.k + more).rows
        if more:
            # A stable sort moves the query's own row, if it was found, to the end, which is cut.
            order = np.argsort(rows == own, axis=1, kind="stable")
            rows = np.take_along_axis(rows, order, axis=1)[:, : self.k]
        return rows

    def timed(self, index: Index, batches: bool) -> tuple[float, float]:
        """Return the mean seconds of a query, and the 95th percentile of queries one at a time.

        batches: the mean is over all queries in one call; else over queries one at a time.
        """
        k = self.k
        singles = self.queries[:SINGLE_QUERIES]
        index.search(singles[:MIN_SINGLE_QUERIES], k)
        budget = MAX_TIMING_SECONDS / TIMING_REPEATS
        means, latencies = [], []
        for _ in range(TIMING_REPEATS):
            taken = []
            for number in range(len(singles)):
                query = singles[number : number + 1]
                began = time.perf_counter()
                index.search(query, k)
                taken.append(time.perf_counter() - began)
                if len(taken) >= MIN_SINGLE_QUERIES and sum(taken) > budget:
                    break
            means.append(sum(taken) / len(taken))
            latencies.append(float(np.percentile(taken, 95)))
        if batches:
            spent: list[float] = []
            while sum(spent) < (
                MIN_BATCH_SECONDS if len(spent) >= TIMING_REPEATS else MAX_TIMING_SECONDS
            ):
                began = time.perf_counter()
                index.search(self.queries, k)
                spent.append(time.perf_counter() - began)
            means = [min(spent) / len(self.queries)]
        return min(means), min(latencies)


def _compile_seconds() -> float:
    """Return the seconds that this process has spent compiling."""
    numba = sys.modules.get("retrieval.runtime.numba")
    return numba.compile_seconds() if numba else 0.0
