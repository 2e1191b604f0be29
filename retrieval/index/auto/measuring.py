"""Measure candidate indices: recall and time of queries over a sample of the rows."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Index, Indexer, Metric, Tunable, Vectors
from retrieval.errors import BadInput
from retrieval.index.auto.trials import Target, Trial, setting_of, verdict_of
from retrieval.index.folder import options_of
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import Distances, Rows, distances_of
from retrieval.registry import make_indexer

MAX_QUERIES = 1000  # over all rows, half of them choose the effort, and the other half checks it
SINGLE_QUERIES = 300  # timed one at a time
MIN_SINGLE_QUERIES = 20  # timed even if they take longer than MAX_TIMING_SECONDS
MAX_TIMING_SECONDS = 1.0  # for all repeats
TIMING_REPEATS = 5  # the fastest counts: other work of the machine can only slow a repeat down


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
        found = stage._found(exact, slice(None))
        return replace(stage, truth=distances_of(asked.vectors, chosen, found, metric))

    def measured(
        self, backend: str, candidate: Tunable, folder: Path, targets: Sequence[Target]
    ) -> list[tuple[Trial, Indexer]]:
        """Build the candidate in the folder; return its trial and its options for each target.

        The options are the fastest that reach the target, else the most accurate.
        """
        build_seconds = self._saved(candidate, folder)
        recalls: dict[Indexer, float] = {}

        def lowest(ladder: Sequence[Indexer], target: Target) -> tuple[float, Indexer]:
            return self._lowest(ladder, folder, slice(None), target.recall, recalls)

        return [
            self._best(
                backend,
                [lowest(ladder, target) for ladder in candidate.ladders()],
                folder,
                build_seconds,
                target,
            )
            for target in targets
        ]

    def checked(
        self, backend: str, candidate: Tunable, folder: Path, target: Target
    ) -> tuple[Trial, Indexer]:
        """Build the candidate in the folder; return its trial, with a verdict, and its options.

        Half of the queries choose the effort. Then the effort rises until the other half reaches
        the target, too. The trial has the recall of the other half.
        """
        build_seconds = self._saved(candidate, folder)
        half = len(self.queries) // 2
        chooses, checks = (slice(0, half), slice(half, None)) if half else (slice(None),) * 2
        rungs = []
        for ladder in candidate.ladders():
            _, lowest = self._lowest(ladder, folder, chooses, target.recall, {})
            for rung in ladder[ladder.index(lowest) :]:
                recall = self._recall(rung.load(folder), checks)
                if recall >= target.recall:
                    break
            rungs.append((recall, rung))
        trial, chosen = self._best(backend, rungs, folder, build_seconds, target)
        return replace(trial, verdict=verdict_of(trial, target)), chosen

    def _saved(self, candidate: Indexer, folder: Path) -> float:
        """Build the candidate and save it in the folder; return the seconds that the build took."""
        began = time.perf_counter()
        index = candidate.build(self.vectors)
        seconds = time.perf_counter() - began
        index.save(folder)
        return seconds

    def _best(
        self,
        backend: str,
        rungs: Sequence[tuple[float, Indexer]],
        folder: Path,
        build_seconds: float,
        target: Target,
    ) -> tuple[Trial, Indexer]:
        """Return the trial and the options of the fastest rung that reaches the target.

        If none does, use the most accurate. rungs: (recall, options).
        """
        reached = [each for each in rungs if each[0] >= target.recall]
        limit = target.max_latency or math.inf
        timed = []
        for recall, rung in reached or [max(rungs, key=lambda each: each[0])]:
            seconds, latency = self.timed(rung.load(folder), target.batches)
            timed.append((latency > limit, seconds, latency, recall, rung))
        _, seconds, latency, recall, rung = min(timed, key=lambda each: each[:2])
        size = sum(path.stat().st_size for path in folder.iterdir())
        trial = Trial(
            backend=backend,
            options=options_of(rung),
            setting=setting_of(rung),
            rows=len(self.vectors),
            recall=recall,
            seconds=seconds,
            latency=latency,
            size_bytes=size,
            build_seconds=build_seconds,
            expected_seconds=seconds,
            expected_bytes=size * self.all_rows / len(self.vectors),
        )
        return trial, rung

    def _lowest(
        self,
        ladder: Sequence[Indexer],
        folder: Path,
        part: slice,
        target: float,
        recalls: dict[Indexer, float],
    ) -> tuple[float, Indexer]:
        """Return (recall, rung) of the lowest rung that reaches the target, else of the highest.

        recalls: known recalls of rungs. New measurements are added to it.
        """

        def reaches(number: int) -> bool:
            rung = ladder[number]
            if rung not in recalls:
                recalls[rung] = self._recall(rung.load(folder), part)
            return recalls[rung] >= target

        low, high = 0, len(ladder) - 1
        if reaches(high):
            while low < high:
                middle = (low + high) // 2
                if reaches(middle):
                    high = middle
                else:
                    low = middle + 1
        return recalls[ladder[high]], ladder[high]

    def _recall(self, index: Index, part: slice) -> float:
        found = self._found(index, part)
        distances = distances_of(self.queries[part], self.vectors, found, self.metric)
        truth = self.truth[part]
        there = np.isfinite(truth).any(axis=1)  # a query has no neighbor if it is the only row
        if not there.any():
            return 1.0
        of_queries = index_recall_at(distances[there], truth[there], self.k, self.metric)
        return float(of_queries.mean())

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
        index.search(singles[:20], k)
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
            while len(spent) < TIMING_REPEATS and sum(spent) < MAX_TIMING_SECONDS:
                began = time.perf_counter()
                index.search(self.queries, k)
                spent.append(time.perf_counter() - began)
            means = [min(spent) / len(self.queries)]
        return min(means), min(latencies)
