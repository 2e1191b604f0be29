"""Which index to build, by measurement: `retr index --backend auto`.

Candidates of every backend are built over a sample of the rows, and searched with queries that are
not among them, with the least effort that reaches the target recall. What is fastest, as a larger
sample lets expect for all rows, is built over all of them, and its effort set and checked there.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np

from retrieval.contracts import Index, Indexer, Json, Metric, Tunable, Vectors
from retrieval.errors import BadInput, Mismatch
from retrieval.indexing import (
    INDEX,
    IndexFacts,
    build_index,
    check_same_encoder,
    common_facts,
    publish_index,
    read_all,
)
from retrieval.quality.metrics import RESOLUTION, index_recall_at
from retrieval.quality.ranking import Rows, distances_of
from retrieval.registry import indexer_names, indexer_plugin, make_indexer
from retrieval.storage.files import PARTIAL, made_folder
from retrieval.storage.shards import Embeddings, check_free

FEW_NUMBERS = 2**20  # rows × dim up to which exact search takes a tenth of a millisecond
QUERIES = 1000  # half of them choose the effort on all rows, the others check it
LARGEST_SAMPLE = 100_000  # rows
FIRST_SHARE = 4  # the first sample is a fourth of the second
LEAST_FIRST = 5_000  # rows, unless there are fewer
FINALISTS = 4  # candidates that are measured on the second sample, too
CLOSE = 1.1  # times the fastest time: as good as equally fast
SINGLES = 300  # queries that are timed one by one
REPEATS = 3

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
    time that counts; latency: the 95th percentile of single queries, in seconds.
    expected_seconds, expected_bytes: what follows for all rows. verdict: why it does not do, once
    it was built over all rows.
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

    def to_json(self) -> dict[str, Json]:
        """As in `retr index --json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How an index was chosen.

    trials: of the samples, in the order they were made. checked: what was built over all rows, the
    last being what stands now, with the recall of the half of the queries that did not choose its
    effort, but could raise it. reason: why this one.
    """

    target: Target
    seed: int
    queries: int
    held_out: bool
    trials: list[Trial]
    checked: list[Trial]
    reason: str

    def to_json(self) -> dict[str, Json]:
        """As in `retr index --json`."""
        return {
            "target": asdict(self.target),
            "seed": self.seed,
            "queries": self.queries,
            "held_out": self.held_out,
            "trials": [trial.to_json() for trial in self.trials],
            "checked": [trial.to_json() for trial in self.checked],
            "reason": self.reason,
        }


def build_best(
    sets: Sequence[Embeddings],
    folder: Path,
    target: Target,
    *,
    metric: Metric | None = None,
    queries: Embeddings | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> tuple[IndexFacts, Tuning]:
    """The fastest index over the embeddings that reaches the target, written into `folder`.

    queries: embeddings of what will be asked; without any, rows of the sets are held out of the
    samples. What is drawn follows from the seed; times do not, so that of candidates that are
    equally fast, another may be chosen the next time.

    Raises what `build_index` does; BadInput where nothing reaches the target, with the best that
    there is, and `folder` is then as it was.
    """
    facts = common_facts(sets)
    metric = metric or sets[0].facts.metric
    if queries is not None:
        check_same_encoder(facts, queries.facts.encoder, str(sets[0].folder), str(queries.folder))
        if queries.facts.dim != sets[0].facts.dim:
            raise Mismatch(f"{queries.folder} has {queries.facts.dim} dimensions; encode it anew")
    check_free(folder, INDEX)
    _, vectors = read_all(sets)
    if vectors.size <= FEW_NUMBERS:
        progress("exact search")
        built = build_index(sets, "exact", folder, metric)
        reason = f"{len(vectors):,} rows are few: exact search is as fast as any"
        return built, Tuning(target, seed, 0, queries is None, [], [], reason)
    asked = _Asked.of(vectors, None if queries is None else queries.read()[1], seed)
    trials, ranked = _tried(vectors, asked, metric, target, seed, progress)
    if not ranked:
        raise BadInput(_unreached(trials, target))
    new = not folder.exists()
    made_folder(folder)
    checked: list[Trial] = []
    everything = _Stage.of(vectors, asked, metric, target, len(vectors), None)
    with TemporaryDirectory(suffix=PARTIAL, dir=folder) as temporary:
        for trial in ranked:
            progress(f"{trial.backend} over all {len(vectors):,} rows")
            made = Path(temporary) / str(len(checked))
            began = time.perf_counter()
            built = build_index(sets, trial.backend, made, metric, trial.options)
            seconds = time.perf_counter() - began
            final = everything.checked(trial.backend, built, made, seconds)
            checked.append(final)
            if not final.verdict:
                built = replace(built, options=final.options)
                built.write(made)
                publish_index(made, folder, built)
                reason = _reason(final, ranked, target)
                return built, Tuning(
                    target, seed, len(asked), asked.held_out, trials, checked, reason
                )
    if new:
        folder.rmdir()
    raise BadInput(_unreached(checked, target))


def tried(
    vectors: Vectors,
    metric: Metric,
    target: Target,
    *,
    queries: Vectors | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> tuple[list[Trial], list[Trial]]:
    """All trials over samples of the vectors, and those that fit the target, the best first.

    queries: what will be asked; without any, rows are held out.
    """
    asked = _Asked.of(vectors, queries, seed)
    return _tried(vectors, asked, metric, target, seed, progress)


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
    """Some rows, the queries, and the distances of their true neighbors among those rows.

    own: (q,), where a query is itself among the rows, -1 where it is not.
    """

    vectors: Vectors
    queries: Vectors
    own: Rows
    truth: Any
    metric: Metric
    target: Target
    all_rows: int

    @classmethod
    def of(
        cls,
        vectors: Vectors,
        asked: _Asked,
        metric: Metric,
        target: Target,
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
        stage = cls(chosen, asked.vectors, own, None, metric, target, len(vectors))
        exact = make_indexer("exact", {"metric": metric}).build(chosen)
        found = stage._found(exact, slice(None))
        return replace(stage, truth=distances_of(asked.vectors, chosen, found, metric))

    def measured(self, backend: str, candidate: Tunable) -> Trial:
        """The candidate with the rung that reaches the target in the least time, if one does."""
        began = time.perf_counter()
        index = candidate.build(self.vectors)
        build_seconds = time.perf_counter() - began
        with TemporaryDirectory(prefix="retr-auto-") as temporary:
            folder = Path(temporary)
            index.save(folder)
            size = sum(path.stat().st_size for path in folder.iterdir())
            reached: list[tuple[float, float, float, Indexer]] = []
            best: tuple[float, Indexer, Index] | None = None
            for ladder in candidate.ladders():
                recall, rung, index = self._lowest(ladder, folder)
                if recall >= self.target.recall:
                    seconds, latency = self._timed(index)
                    reached.append((seconds, latency, recall, rung))
                elif best is None or recall > best[0]:
                    best = recall, rung, index
            if reached:
                seconds, latency, recall, rung = min(reached, key=lambda each: each[0])
            else:
                assert best is not None
                recall, rung, index = best
                seconds, latency = self._timed(index)
        return Trial(
            backend,
            _options(rung),
            _setting(rung),
            len(self.vectors),
            recall,
            seconds,
            latency,
            size,
            build_seconds,
            seconds,
            size * self.all_rows / len(self.vectors),
        )

    def checked(self, backend: str, built: IndexFacts, folder: Path, build_seconds: float) -> Trial:
        """The index over all rows, with the least effort that reaches the target.

        Half of the queries choose the effort; it rises until the others reach the target, too.
        """
        indexer = cast(Tunable, make_indexer(backend, {**built.options, "metric": self.metric}))
        half = len(self.queries) // 2
        chooses, checks = (slice(0, half), slice(half, None)) if half else (slice(None),) * 2
        tried = []
        for ladder in indexer.ladders():
            _, lowest, index = self._lowest(ladder, folder, chooses)
            recall = self._recall(index, checks)
            for rung in ladder[ladder.index(lowest) + 1 :]:
                if recall >= self.target.recall:
                    break
                lowest, index = rung, rung.load(folder)
                recall = self._recall(index, checks)
            seconds, latency = self._timed(index)
            tried.append((recall < self.target.recall, seconds, latency, recall, lowest))
        _, seconds, latency, recall, lowest = min(tried, key=lambda each: each[:2])
        size = sum((folder / name).stat().st_size for name in built.files)
        trial = Trial(
            backend,
            _options(lowest),
            _setting(lowest),
            len(self.vectors),
            recall,
            seconds,
            latency,
            size,
            build_seconds,
            seconds,
            float(size),
        )
        return replace(trial, verdict=_verdict(trial, self.target))

    def _lowest(
        self, ladder: Sequence[Indexer], folder: Path, part: slice = slice(None)
    ) -> tuple[float, Indexer, Index]:
        """The recall of the lowest rung that reaches the target; of the highest, if none does."""
        found: dict[int, tuple[float, Indexer, Index]] = {}

        def reaches(number: int) -> bool:
            index = ladder[number].load(folder)
            recall = self._recall(index, part)
            found[number] = recall, ladder[number], index
            return recall >= self.target.recall

        low, high = 0, len(ladder) - 1
        if not reaches(high):
            return found[high]
        while low < high:
            middle = (low + high) // 2
            if reaches(middle):
                high = middle
            else:
                low = middle + 1
        return found[high]

    def _recall(self, index: Index, part: slice) -> float:
        found = self._found(index, part)
        distances = distances_of(self.queries[part], self.vectors, found, self.metric)
        resolution = RESOLUTION.get(self.metric, 0.0)
        of_queries = index_recall_at(distances, self.truth[part], self.target.k, resolution)
        return float(of_queries.mean())

    def _found(self, index: Index, part: slice) -> Rows:
        """(q, k): the rows that the index finds, the queries themselves left out."""
        own = self.own[part, None]
        more = int((own >= 0).any())
        rows = index.search(self.queries[part], self.target.k + more).rows
        if more:
            # A stable sort moves the query's own row to the end, or else the last stays there.
            order = np.argsort(rows == own, axis=1, kind="stable")
            rows = np.take_along_axis(rows, order, axis=1)[:, : self.target.k]
        return rows

    def _timed(self, index: Index) -> tuple[float, float]:
        """Seconds of a query as the target counts them, and the 95th percentile of singles."""
        k = self.target.k
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
            means.append(sum(taken) / len(taken))
            latencies.append(float(np.percentile(taken, 95)))
        if self.target.batches:
            means = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                index.search(self.queries, k)
                means.append((time.perf_counter() - began) / len(self.queries))
        return median(means), median(latencies)


def _tried(
    vectors: Vectors, asked: _Asked, metric: Metric, target: Target, seed: int, progress: Progress
) -> tuple[list[Trial], list[Trial]]:
    """Every candidate on the first sample; the best of them on the second, and what follows."""
    draw = np.random.default_rng(seed)
    rows, dim = vectors.shape
    second = min(LARGEST_SAMPLE, rows - (len(asked) if asked.held_out else 0))
    first = min(second, max(second // FIRST_SHARE, LEAST_FIRST))
    candidates = list(_candidates(metric, rows, dim, seed))

    def measured(
        rows: int, which: Iterable[tuple[str, Tunable]]
    ) -> Iterator[tuple[tuple[str, Tunable], Trial]]:
        stage = _Stage.of(vectors, asked, metric, target, rows, draw)
        for backend, candidate in which:
            progress(f"{backend} {_named(_setting(candidate))} over {len(stage.vectors):,} rows")
            yield (backend, candidate), stage.measured(backend, candidate)

    small = list(measured(first, candidates))
    if first == second:
        trials = [trial for _, trial in small]
        return trials, _ranked(trials, target)
    order = _ranked([trial for _, trial in small], target) or [
        max((trial for _, trial in small), key=lambda trial: trial.recall)
    ]
    finalists = [which for which, trial in small if trial in order[:FINALISTS]]
    before = {id(which[1]): trial for which, trial in small}
    large = []
    for which, trial in measured(second, finalists):
        large.append(_extrapolated(before[id(which[1])], trial, rows))
    trials = [trial for _, trial in small] + large
    return trials, _ranked(trials, target)


def _candidates(metric: Metric, rows: int, dim: int, seed: int) -> Iterator[tuple[str, Tunable]]:
    for name in sorted(indexer_names(), key=lambda name: (name != "exact", name)):
        plugin = indexer_plugin(name)
        if hasattr(plugin, "candidates"):
            for candidate in plugin.candidates(metric, rows, dim, seed):
                yield name, candidate


def _extrapolated(small: Trial, large: Trial, rows: int) -> Trial:
    """The larger trial, with its time continued to `rows` by the power of rows that fits both."""
    growth = math.log(large.seconds / small.seconds) / math.log(large.rows / small.rows)
    expected = large.seconds * (rows / large.rows) ** max(0.0, growth)
    return replace(large, expected_seconds=expected)


def _ranked(trials: Sequence[Trial], target: Target) -> list[Trial]:
    """The trials over the most rows that fit the target, what is expected to be fastest first."""
    most = max(trial.rows for trial in trials)
    fit = [trial for trial in trials if trial.rows == most and not _verdict(trial, target)]
    ranked: list[Trial] = []
    while fit:
        fastest = min(trial.expected_seconds for trial in fit)
        # Of those that are as good as equally fast, the one that takes the least memory.
        close = [trial for trial in fit if trial.expected_seconds <= CLOSE * fastest]
        ranked.append(min(close, key=lambda trial: trial.expected_bytes))
        fit.remove(ranked[-1])
    return ranked


def _verdict(trial: Trial, target: Target) -> str:
    """Why the trial does not fit the target; empty where it does."""
    if trial.recall < target.recall:
        return f"recall@{target.k} {trial.recall:.4f}"
    if target.max_memory is not None and trial.expected_bytes > target.max_memory:
        return f"{trial.expected_bytes / 1e6:,.0f} MB"
    slower = trial.latency * trial.expected_seconds / trial.seconds
    if target.max_latency is not None and slower > target.max_latency:
        return f"{1000 * slower:.3g} ms"
    return ""


def _unreached(trials: Sequence[Trial], target: Target) -> str:
    """What no candidate reached, and the one that came nearest."""
    wanted = [f"recall@{target.k} of {target.recall:g}"]
    if target.max_memory is not None:
        wanted.append(f"{target.max_memory / 1e6:,.4g} MB at most")
    if target.max_latency is not None:
        wanted.append(f"{1000 * target.max_latency:.3g} ms at most")
    limits = replace(target, recall=1e-9)
    within = [trial for trial in trials if not _verdict(trial, limits)]
    best = max(within or trials, key=lambda trial: trial.recall)
    return (
        f"nothing reaches {', '.join(wanted)}; the best was {best.backend} "
        f"({_named(best.setting)}) with recall@{target.k} {best.recall:.4f}, "
        f"{best.expected_bytes / 1e6:,.4g} MB, {1000 * best.latency:.3g} ms; ask for less"
    )


def _reason(final: Trial, ranked: Sequence[Trial], target: Target) -> str:
    how = "in batches" if target.batches else "one query at a time"
    reason = f"the fastest {how} of what reaches recall@{target.k} {target.recall:g}"
    first = ranked[0]
    if _build(first) != _build(final):
        reason += f"; {first.backend}, which came first on the sample, did not over all rows"
        return reason
    fastest = min(ranked, key=lambda trial: trial.expected_seconds)
    if fastest is not first:
        reason = f"within a tenth of {reason}, and the smallest of those"
    others = [trial for trial in ranked if trial.backend != final.backend]
    if others:
        ratio = others[0].expected_seconds / first.expected_seconds
        reason += f"; {ratio:.2f} times as fast as {others[0].backend} on the sample"
    return reason


def _build(trial: Trial) -> tuple[str, dict[str, Json]]:
    """The backend, and the options that do not change at search."""
    free = indexer_plugin(trial.backend).search_options
    return trial.backend, {n: value for n, value in trial.options.items() if n not in free}


def _options(indexer: Indexer) -> dict[str, Json]:
    options = asdict(cast(Any, indexer))
    del options["metric"]
    return options


def _setting(indexer: Indexer) -> dict[str, Json]:
    """The options that are not as a plain indexer of this kind has them."""
    plain = asdict(cast(Any, type(indexer)()))
    return {name: value for name, value in _options(indexer).items() if value != plain[name]}


def _named(setting: Mapping[str, Json]) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())
