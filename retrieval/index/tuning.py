"""Which index to build, by measurement: `retr index --backend auto`.

Candidates of every backend are built over a sample of the rows, and searched with queries that are
not among them, with the least effort that reaches the target recall. What is fastest, as a larger
sample lets expect for all rows, is built over all of them, and its effort set and checked there.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Index, Indexer, Json, Metric, Tunable, Vectors
from retrieval.errors import BadInput, Mismatch, RetrError
from retrieval.hits import InMemory
from retrieval.index.folder import (
    IndexFacts,
    building,
    check_room,
    check_same_encoder,
    common_facts,
    described,
    options_of,
    read_all,
    write_index,
)
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import Distances, Rows, distances_of
from retrieval.registry import indexer_names, indexer_plugin, make_indexer
from retrieval.storage.places import Place
from retrieval.storage.shards import Embeddings, EncoderFacts

FEW_NUMBERS = 2**20  # rows × dim up to which exact search takes a tenth of a millisecond
QUERIES = 1000  # half of them choose the effort on all rows, the others check it
LARGEST_SAMPLE = 100_000  # rows
FIRST_SHARE = 4  # the first sample is a fourth of the second
LEAST_FIRST = 5_000  # rows, unless there are fewer
FINALISTS = 4  # candidates that are measured on the second sample, too
OF_A_BACKEND = 2  # of these, so that they are not of one kind
LEAST = 1e-9  # a recall that all reach
CLOSE = 1.1  # times the fastest time: as good as equally fast
SINGLES = 300  # queries that are timed one by one
FEWEST = 20  # of them, where all would take long
LONG = 1.0  # seconds, for all repeats of what is timed
REPEATS = 5  # of which the fastest counts: what else the machine does only slows it down

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """What an index must reach, and by what it is chosen among those that do.

    recall: of the k nearest, as `index_recall_at` counts it. max_memory: bytes of the index, as
    it is saved. max_latency: seconds that 95 of 100 queries may take, one at a time. batches:
    whether what counts is the time of all queries in one call, on all cores; else, one at a time.
    """

    recall: float = 0.95
    k: int = 10
    max_memory: float | None = None
    max_latency: float | None = None
    batches: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise BadInput(f"the target recall is {self.recall:g}; give it above 0, and up to 1")
        if self.k < 1:
            raise BadInput(f"k is {self.k}; give it at least 1")
        for name, limit in (("memory", self.max_memory), ("latency", self.max_latency)):
            if limit is not None and not limit > 0:
                raise BadInput(f"the most {name} is {limit:g}; give it above 0")


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate as it was measured over so many rows.

    options: with the least effort that reached the target, or the most there is; setting: those of
    them that are not as a plain index of this backend has them. seconds: a query's share of the
    time that counts; latency: the 95th percentile of single queries, in seconds; size_bytes: of
    the library's files. expected_seconds: what follows for all rows. verdict: why it does not do.
    """

    backend: str
    options: dict[str, Json]
    setting: dict[str, Json]
    rows: int
    recall: float
    seconds: float
    latency: float
    size_bytes: int
    build_seconds: float
    expected_seconds: float
    expected_bytes: float
    verdict: str = ""

    @property
    def expected_latency(self) -> float:
        """Of all rows, in seconds."""
        return self.latency * self.expected_seconds / self.seconds

    def to_json(self) -> dict[str, Json]:
        """As in `retr index --json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How an index was chosen.

    trials: of the samples, in the order they were made; failed: candidates that could not be
    measured, and why. checked: what was built over all rows, the last being what stands now, with
    the recall of the half of the queries that did not choose its effort, but could raise it.
    """

    target: Target
    seed: int
    queries: int
    held_out: bool
    trials: list[Trial]
    failed: list[str]
    checked: list[Trial]
    reason: str

    def to_json(self) -> dict[str, Json]:
        """As in `retr index --json`."""
        return asdict(self)


def build_best(
    sets: Sequence[Embeddings],
    folder: Place,
    target: Target,
    *,
    metric: Metric | str | None = None,
    queries: Embeddings | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> tuple[IndexFacts, Tuning]:
    """The fastest index over the embeddings that reaches the target, written into `folder`.

    queries: embeddings of what will be asked; without any, rows of the sets are held out of the
    samples. What is drawn follows from the seed; times do not, so that of candidates that are
    equally fast, another may be chosen the next time.

    Raises what `build_index` does; Mismatch for queries of another encoder, or that are the rows
    themselves; BadInput where nothing reaches the target, with the best that there is, and an index
    that stands in `folder` is left as it is.
    """
    metric = None if metric is None else choice(Metric, metric)
    encoder = common_facts(sets)
    metric = metric or sets[0].facts.metric
    if queries is not None:
        _check_queries(queries, encoder, sets)
    check_room(folder)
    rows, vectors = read_all(sets)
    asked = _Asked.of(vectors, None if queries is None else queries.read()[1], seed)
    with building(folder) as partial:
        found = _Found([], [], [("exact", make_indexer("exact", {"metric": metric}))])
        few = vectors.size <= FEW_NUMBERS
        if not few:
            (found,) = _tried(vectors, asked, metric, [target], seed, partial, progress)
        everything = _Stage.of(vectors, asked, metric, target.k, len(vectors), None)
        checked: list[Trial] = []
        for backend, indexer in found.ranked:
            progress(f"{backend} over all {len(vectors):,} rows")
            place = partial / str(len(checked))
            place.mkdir()
            final, chosen = everything.checked(backend, cast(Tunable, indexer), place, target)
            checked.append(final)
            if not final.verdict:
                whole = partial / "whole"
                whole.mkdir()
                index = chosen.load(place)
                facts = described(backend, chosen, index, sets)
                built = write_index(whole, folder, index, rows, facts, InMemory(vectors))
                reason = f"{len(vectors):,} rows are few: exact search, without trials"
                if not few:
                    reason = _reason(checked, target)
                tuning = Tuning(
                    target,
                    seed,
                    len(asked),
                    asked.held_out,
                    found.trials,
                    found.failed,
                    checked,
                    reason,
                )
                return built, tuning
        raise BadInput(_unreached(checked or found.trials, target))


def tried(
    vectors: Vectors, metric: Metric | str, targets: Sequence[Target], *, seed: int = 0
) -> list[list[tuple[str, Indexer]]]:
    """For each target, all of one k, the backends and their options that reach it; the best first.

    As far as samples say, and with rows that are held out to ask. Each candidate is built once for
    all of the targets.
    """
    metric = choice(Metric, metric)
    asked = _Asked.of(vectors, None, seed)
    with TemporaryDirectory(prefix="retr-auto-") as folder:
        found = _tried(vectors, asked, metric, targets, seed, Path(folder), lambda _: None)
    return [each.ranked for each in found]


@dataclass(frozen=True, slots=True)
class _Found:
    """What the samples say; ranked: the candidates that may do, the best first."""

    trials: list[Trial]
    failed: list[str]
    ranked: list[tuple[str, Indexer]]


def _check_queries(queries: Embeddings, encoder: EncoderFacts, sets: Sequence[Embeddings]) -> None:
    check_same_encoder(encoder, queries.facts.encoder, str(sets[0].folder), str(queries.folder))
    if queries.facts.dim != sets[0].facts.dim:
        raise Mismatch(f"{queries.folder} has {queries.facts.dim} dimensions; encode it anew")
    if queries.identity in {each.identity for each in sets}:
        raise Mismatch(
            f"{queries.folder} are the rows themselves, and each would find itself; leave --queries"
            " away, and rows are held out"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """The queries; rows: where they are in the database, which then leaves them out; or None."""

    vectors: Vectors
    rows: Rows | None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def held_out(self) -> bool:
        return self.rows is not None

    @classmethod
    def of(cls, database: Vectors, queries: Vectors | None, seed: int) -> "_Asked":
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
class _Stage:
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
        asked: _Asked,
        metric: Metric,
        k: int,
        rows: int,
        draw: np.random.Generator | None,
    ) -> "_Stage":
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
        return replace(trial, verdict=_verdict(trial, target)), chosen

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
            setting=_setting(rung),
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
        truth = self.truth[part]
        there = np.isfinite(truth).any(axis=1)  # a query that is the only row has no neighbor
        if not there.any():
            return 1.0
        of_queries = index_recall_at(distances[there], truth[there], self.k, self.metric)
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


def _tried(
    vectors: Vectors,
    asked: _Asked,
    metric: Metric,
    targets: Sequence[Target],
    seed: int,
    folder: Path,
    progress: Progress,
) -> list[_Found]:
    """For each target, all of one k: every candidate on the first sample; the best of them on the
    second, and what follows."""
    draw = np.random.default_rng(seed)
    rows, dim = vectors.shape
    second = min(LARGEST_SAMPLE, rows - (len(asked) if asked.held_out else 0))
    first = min(second, max(second // FIRST_SHARE, LEAST_FIRST))
    failed: list[str] = []
    kept: dict[Indexer, tuple[_Stage, Path]] = {}

    def measured(rows: int, candidates: Sequence[tuple[str, Indexer]]) -> list[list[_Tried]]:
        """For each target, the candidates that could be measured."""
        stage = _Stage.of(vectors, asked, metric, targets[0].k, rows, draw)
        found: list[list[_Tried]] = [[] for _ in targets]
        for backend, candidate in candidates:
            name = f"{backend} {_named(_setting(candidate))}".strip()
            progress(f"{name} over {len(stage.vectors):,} rows")
            place = folder / f"trial-{len(kept)}"
            place.mkdir()
            try:
                trials = stage.measured(backend, cast(Tunable, candidate), place, targets)
            except (RetrError, RuntimeError, MemoryError) as problem:
                failed.append(f"{name}: {problem}")
                trials = []
            for of_target, (trial, chosen) in zip(found, trials, strict=False):
                of_target.append(_Tried(backend, candidate, chosen, trial))
            if trials and rows == second:
                kept[candidate] = stage, place
            else:
                shutil.rmtree(place)
        return found

    def again(each: _Tried, target: Target) -> _Tried:
        """Timed once more: there may have been a moment in which the machine was slow."""
        stage, place = kept[each.candidate]
        return each.no_slower_than(*stage._timed(each.chosen.load(place), target.batches))

    small = measured(first, list(_candidates(metric, rows, dim, seed)))
    if first == second:
        found = []
        for target, all_there_is in zip(targets, small, strict=True):
            final = [again(each, target) for each in all_there_is]
            trials = [each.trial for each in final]
            found.append(_Found(trials, failed, _choices(_ranked(final, target))))
        return found
    finalists = [_finalists(tried, target) for tried, target in zip(small, targets, strict=True)]
    once = {each.candidate: (each.backend, each.candidate) for of in finalists for each in of}
    large = measured(second, [*once.values()])
    found = []
    for target, before, after, chosen in zip(targets, small, large, finalists, strict=True):
        smaller = {each.candidate: each.trial for each in before}
        mine = {each.candidate for each in chosen}
        timed = [again(each, target) for each in after if each.candidate in mine]
        final = [
            replace(each, trial=_extrapolated(smaller[each.candidate], each.trial, rows))
            for each in timed
        ]
        trials = [each.trial for each in (*before, *final)]
        found.append(_Found(trials, failed, _choices(_ranked(final, target))))
    return found


def _choices(ranked: Sequence["_Tried"]) -> list[tuple[str, Indexer]]:
    return [(each.backend, each.chosen) for each in ranked]


@dataclass(frozen=True, slots=True, eq=False)
class _Tried:
    """A candidate, the rung of it that was chosen, and how it did."""

    backend: str
    candidate: Indexer
    chosen: Indexer
    trial: Trial

    def no_slower_than(self, seconds: float, latency: float) -> "_Tried":
        """The same, as it was measured twice."""
        seconds, latency = min(seconds, self.trial.seconds), min(latency, self.trial.latency)
        trial = replace(self.trial, seconds=seconds, latency=latency, expected_seconds=seconds)
        return replace(self, trial=trial)


def _finalists(small: Sequence[_Tried], target: Target) -> list[_Tried]:
    """The best of the first sample, at most two of a backend, and the most thorough one: it may be
    the only one to reach the target over more rows."""
    finalists: list[_Tried] = []
    for each in _ranked(small, target):
        if sum(other.backend == each.backend for other in finalists) < OF_A_BACKEND:
            finalists.append(each)
    del finalists[FINALISTS:]
    within = [each for each in small if not _verdict(each.trial, replace(target, recall=LEAST))]
    thorough = max(within or small, key=lambda each: each.trial.recall)
    return finalists if thorough in finalists else [*finalists, thorough]


def _candidates(metric: Metric, rows: int, dim: int, seed: int) -> Iterator[tuple[str, Indexer]]:
    for name in sorted(indexer_names(), key=lambda name: (name != "exact", name)):
        plugin = indexer_plugin(name)
        if hasattr(plugin, "candidates"):
            for candidate in plugin.candidates(metric, rows, dim, seed):
                yield name, candidate


def _extrapolated(small: Trial, large: Trial, rows: int) -> Trial:
    """The larger trial, with its time continued to `rows` by the power of rows that fits both.

    The power is taken between 0 and 1: no search gets faster with more rows, and none is slower
    than to compare them all.
    """
    growth = math.log(large.seconds / small.seconds) / math.log(large.rows / small.rows)
    expected = large.seconds * (rows / large.rows) ** min(max(0.0, growth), 1.0)
    return replace(large, expected_seconds=expected)


def _ranked(tried: Sequence[_Tried], target: Target) -> list[_Tried]:
    """Those that fit the target, what is expected to be fastest first."""
    fit = [each for each in tried if not _verdict(each.trial, target)]
    ranked: list[_Tried] = []
    while fit:
        fastest = min(each.trial.expected_seconds for each in fit)
        # Of those that are as good as equally fast, the one that takes the least memory.
        close = [each for each in fit if each.trial.expected_seconds <= CLOSE * fastest]
        ranked.append(min(close, key=lambda each: each.trial.expected_bytes))
        fit.remove(ranked[-1])
    return ranked


def _verdict(trial: Trial, target: Target) -> str:
    """Why the trial does not fit the target; empty where it does."""
    if trial.recall < target.recall:
        return f"recall@{target.k} {trial.recall:.4f}"
    if target.max_memory is not None and trial.expected_bytes > target.max_memory:
        return f"{trial.expected_bytes / 1e6:,.0f} MB"
    if target.max_latency is not None and trial.expected_latency > target.max_latency:
        return f"{1000 * trial.expected_latency:.3g} ms"
    return ""


def _unreached(trials: Sequence[Trial], target: Target) -> str:
    """What no candidate reached, and the one that came nearest over the most rows."""
    wanted = [f"recall@{target.k} of {target.recall:g}"]
    if target.max_memory is not None:
        wanted.append(f"{target.max_memory / 1e6:,.4g} MB at most")
    if target.max_latency is not None:
        wanted.append(f"{1000 * target.max_latency:.3g} ms at most")
    most = max(trial.rows for trial in trials)
    trials = [trial for trial in trials if trial.rows == most]
    within = [trial for trial in trials if not _verdict(trial, replace(target, recall=LEAST))]
    best = max(within or trials, key=lambda trial: trial.recall)
    return (
        f"nothing reaches {', '.join(wanted)}; the best over {most:,} rows was {best.backend} "
        f"({_named(best.setting)}) with recall@{target.k} {best.recall:.4f}, for all rows "
        f"{best.expected_bytes / 1e6:,.4g} MB and {1000 * best.expected_latency:.3g} ms; "
        "ask for less"
    )


def _reason(checked: Sequence[Trial], target: Target) -> str:
    how = "in batches" if target.batches else "one query at a time"
    reason = f"the fastest {how} of what reaches recall@{target.k} {target.recall:g}, or within a "
    reason += "tenth of it and smaller"
    if len(checked) > 1:
        before = ", ".join(f"{trial.backend} ({trial.verdict})" for trial in checked[:-1])
        return f"{reason}; what came before it on the sample did not do over all rows: {before}"
    return reason


def _setting(indexer: Indexer) -> dict[str, Json]:
    """The options that are not as a plain indexer of this kind has them."""
    plain = asdict(cast(Any, type(indexer)()))
    return {name: value for name, value in options_of(indexer).items() if value != plain[name]}


def _named(setting: Mapping[str, Json]) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())
