"""Trials of index options: the target, each measurement, and the choice among them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from retrieval.contracts import Indexer, Json
from retrieval.errors import BadInput
from retrieval.index.folder import options_of

FINALISTS = 4  # candidates that are measured on the second sample, too
OF_A_BACKEND = 2  # of these, so that they are not of one kind
LEAST = 1e-9  # a recall that all reach
CLOSE = 1.1  # times the fastest time: as good as equally fast


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


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """A candidate, the rung of it that was chosen, and how it did."""

    backend: str
    candidate: Indexer
    chosen: Indexer
    trial: Trial

    def no_slower_than(self, seconds: float, latency: float) -> "Tried":
        """The same, as it was measured twice."""
        seconds, latency = min(seconds, self.trial.seconds), min(latency, self.trial.latency)
        trial = replace(self.trial, seconds=seconds, latency=latency, expected_seconds=seconds)
        return replace(self, trial=trial)


def finalists(small: Sequence[Tried], target: Target) -> list[Tried]:
    """The best of the first sample, at most two of a backend, and the most thorough one: it may be
    the only one to reach the target over more rows."""
    finalists: list[Tried] = []
    for each in ranked_trials(small, target):
        if sum(other.backend == each.backend for other in finalists) < OF_A_BACKEND:
            finalists.append(each)
    del finalists[FINALISTS:]
    within = [each for each in small if not verdict_of(each.trial, replace(target, recall=LEAST))]
    thorough = max(within or small, key=lambda each: each.trial.recall)
    return finalists if thorough in finalists else [*finalists, thorough]


def extrapolated(small: Trial, large: Trial, rows: int) -> Trial:
    """The larger trial, with its time continued to `rows` by the power of rows that fits both.

    The power is taken between 0 and 1: no search gets faster with more rows, and none is slower
    than to compare them all.
    """
    growth = math.log(large.seconds / small.seconds) / math.log(large.rows / small.rows)
    expected = large.seconds * (rows / large.rows) ** min(max(0.0, growth), 1.0)
    return replace(large, expected_seconds=expected)


def ranked_trials(tried: Sequence[Tried], target: Target) -> list[Tried]:
    """Those that fit the target, what is expected to be fastest first."""
    fit = [each for each in tried if not verdict_of(each.trial, target)]
    ranked: list[Tried] = []
    while fit:
        fastest = min(each.trial.expected_seconds for each in fit)
        # Of those that are as good as equally fast, the one that takes the least memory.
        close = [each for each in fit if each.trial.expected_seconds <= CLOSE * fastest]
        ranked.append(min(close, key=lambda each: each.trial.expected_bytes))
        fit.remove(ranked[-1])
    return ranked


def verdict_of(trial: Trial, target: Target) -> str:
    """Why the trial does not fit the target; empty where it does."""
    if trial.recall < target.recall:
        return f"recall@{target.k} {trial.recall:.4f}"
    if target.max_memory is not None and trial.expected_bytes > target.max_memory:
        return f"{trial.expected_bytes / 1e6:,.0f} MB"
    if target.max_latency is not None and trial.expected_latency > target.max_latency:
        return f"{1000 * trial.expected_latency:.3g} ms"
    return ""


def unreached(trials: Sequence[Trial], target: Target) -> str:
    """What no candidate reached, and the one that came nearest over the most rows."""
    wanted = [f"recall@{target.k} of {target.recall:g}"]
    if target.max_memory is not None:
        wanted.append(f"{target.max_memory / 1e6:,.4g} MB at most")
    if target.max_latency is not None:
        wanted.append(f"{1000 * target.max_latency:.3g} ms at most")
    most = max(trial.rows for trial in trials)
    trials = [trial for trial in trials if trial.rows == most]
    within = [trial for trial in trials if not verdict_of(trial, replace(target, recall=LEAST))]
    best = max(within or trials, key=lambda trial: trial.recall)
    return (
        f"nothing reaches {', '.join(wanted)}; the best over {most:,} rows was {best.backend} "
        f"({named_setting(best.setting)}) with recall@{target.k} {best.recall:.4f}, for all rows "
        f"{best.expected_bytes / 1e6:,.4g} MB and {1000 * best.expected_latency:.3g} ms; "
        "ask for less"
    )


def reason_of(checked: Sequence[Trial], target: Target) -> str:
    how = "in batches" if target.batches else "one query at a time"
    reason = f"the fastest {how} of what reaches recall@{target.k} {target.recall:g}, or within a "
    reason += "tenth of it and smaller"
    if len(checked) > 1:
        before = ", ".join(f"{trial.backend} ({trial.verdict})" for trial in checked[:-1])
        return f"{reason}; what came before it on the sample did not do over all rows: {before}"
    return reason


def setting_of(indexer: Indexer) -> dict[str, Json]:
    """The options that are not as a plain indexer of this kind has them."""
    plain = asdict(cast(Any, type(indexer)()))
    return {name: value for name, value in options_of(indexer).items() if value != plain[name]}


def named_setting(setting: Mapping[str, Json]) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())
