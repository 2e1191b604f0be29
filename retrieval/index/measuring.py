"""Measure candidate indices: recall and time of queries over a sample of the rows."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retrieval.contracts import Index, Indexer, Metric, Tunable, Vectors
from retrieval.errors import BadInput
from retrieval.index.folder import options_of
from retrieval.index.trials import Target, Trial, setting_of, verdict_of
from retrieval.quality.metrics import RESOLUTION, index_recall_at
from retrieval.quality.ranking import Distances, Rows, distances_of
from retrieval.registry import make_indexer

QUERIES = 1000  # half of them choose the effort on all rows, the others check it
SINGLES = 300  # queries that are timed one by one
FEWEST = 20  # of them, where all would take long
LONG = 1.0  # seconds, for all repeats of what is timed
REPEATS = 5  # of which the fastest counts: what else the machine does only slows it down


@dataclass(frozen=True, slots=True, eq=False)
class TuningQueries:
    """The queries; rows: where they are in the database, which then leaves them out; or None."""

    vectors: Vectors
    rows: Rows | None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def held_out(self) -> bool:
        return self.rows is not None

    @classmethod
    def of(cls, database: Vectors, queries: Vectors | None, seed: int) -> "TuningQueries":
        """Some of the queries, or where there are none, of the database's rows."""
        draw = np.random.default_rng(seed)
        source = database if queries is None else queries
        if len(source) == 0:
            raise BadInput("there are no queries; encode some images first")
        # Where few rows are there to begin with, most of them must stay.
        most = min(QUERIES, len(source) if queries is not None else max(1, len(source) // 10))
        rows = draw.choice(len(source), most, replace=False)  # unsorted: any part is a fair one
        return cls(source[rows], rows if queries is None else None)


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Some rows, the queries, and the distances of their k true neighbors among those rows.

    own: (q,), where a query is itself among the rows, -1 where it is not.
    """

    vectors: Vectors
    queries: Vectors
    own: Rows
    truth: Distances
    metric: Metric
    k: int
    all_rows: int

    @classmethod
    def of(
        cls,
        vectors: Vectors,
        asked: TuningQueries,
        metric: Metric,
        k: int,
        rows: int,
        draw: np.random.Generator | None,
    ) -> "Stage":
        """draw: what draws the rows, from those that are not asked; None for all there are."""
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
        """For each target, the candidate with the rung that reaches it in the least time, if one
        does."""
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
        """The same with half of the queries, and an effort that rises until the others reach the
        target, too: theirs is the recall that is told."""
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
        """Seconds to build the candidate, which lies in the folder then."""
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
        """Of rungs with their recall, the fastest that fits; else that of the highest recall."""
        reached = [each for each in rungs if each[0] >= target.recall]
        limit = target.max_latency or math.inf
        timed = []
        for recall, rung in reached or [max(rungs, key=lambda each: each[0])]:
            seconds, latency = self._timed(rung.load(folder), target.batches)
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
        """Of the lowest rung that reaches the target, or else the highest: its recall, and itself.

        recalls: those that are known; what is found is added.
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
        resolution = RESOLUTION.get(self.metric, 0.0)
        truth = self.truth[part]
        there = np.isfinite(truth).any(axis=1)  # a query that is the only row has no neighbor
        if not there.any():
            return 1.0
        of_queries = index_recall_at(distances[there], truth[there], self.k, resolution)
        return float(of_queries.mean())

    def _found(self, index: Index, part: slice) -> Rows:
        """(q, k): the rows that the index finds, the queries themselves left out."""
        own = self.own[part, None]
        more = int((own >= 0).any())
        rows = index.search(self.queries[part], self.k + more).rows
        if more:
            # A stable sort moves the query's own row to the end, or else the last stays there.
            order = np.argsort(rows == own, axis=1, kind="stable")
            rows = np.take_along_axis(rows, order, axis=1)[:, : self.k]
        return rows

    def _timed(self, index: Index, batches: bool) -> tuple[float, float]:
        """Seconds of a query, in batches or one at a time, and the 95th percentile of singles."""
        k = self.k
        singles = self.queries[:SINGLES]
        index.search(singles[:20], k)
        means, latencies = [], []
        for _ in range(REPEATS):
            taken = []
            for number in range(len(singles)):
                query = singles[number : number + 1]
                began = time.perf_counter()
                index.search(query, k)
                taken.append(time.perf_counter() - began)
                if len(taken) >= FEWEST and sum(taken) > LONG / REPEATS:
                    break
            means.append(sum(taken) / len(taken))
            latencies.append(float(np.percentile(taken, 95)))
        if batches:
            spent: list[float] = []
            while len(spent) < REPEATS and sum(spent) < LONG:
                began = time.perf_counter()
                index.search(self.queries, k)
                spent.append(time.perf_counter() - began)
            means = [min(spent) / len(self.queries)]
        return min(means), min(latencies)
