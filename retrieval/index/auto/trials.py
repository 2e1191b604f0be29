"""Trials of index options: the target, each measurement, and the choice among them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from retrieval.contracts import Indexer, Json
from retrieval.errors import BadInput
from retrieval.index.folder import options_of

MAX_FINALISTS = 4  # candidates that are also measured on the second sample
MAX_FINALISTS_PER_BACKEND = 2
ANY_RECALL = 1e-9  # a target that every candidate reaches
EQUAL_TIME_RATIO = 1.1  # up to this multiple of the fastest time, times count as equal


@dataclass(frozen=True, slots=True)
class Target:
    """Requirements of an index.

    recall: minimum recall of the k nearest, as `index_recall_at` counts it.
    max_memory: maximum size of the saved index, in bytes.
    max_latency: maximum 95th percentile of queries one at a time, in seconds.
    batches: choose by the time of all queries in one call, on all cores; else one at a time.
    """

    recall: float = 0.95
    k: int = 10
    max_memory: float | None = None
    max_latency: float | None = None
    batches: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise BadInput(f"the target recall is {self.recall:g}; give a number above 0, up to 1")
        if self.k < 1:
            raise BadInput(f"k is {self.k}; give 1 or more")
        for name, limit in (("memory", self.max_memory), ("latency", self.max_latency)):
            if limit is not None and not limit > 0:
                raise BadInput(f"the maximum {name} is {limit:g}; give a number above 0")


@dataclass(frozen=True, slots=True)
class Trial:
    """Measurements of a candidate over `rows` rows.

    options: the options with the least effort that reached the target, else with the most effort.
    setting: the options that differ from the backend's defaults.
    seconds: mean seconds of a query, one at a time or in a batch.
    latency: the 95th percentile of queries one at a time, in seconds.
    size_bytes: size of the saved index.
    expected_seconds, expected_bytes: extrapolated to all rows.
    verdict: the measurement that misses the target; empty if the trial meets it.
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
        """Return the latency over all rows, in seconds."""
        return self.latency * self.expected_seconds / self.seconds

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr index --json` prints."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Record of how an index was chosen.

    trials: trials over samples, in their order.
    failed: candidates that could not be measured, with the error.
    checked: trials over all rows; the last is the index that was built. Their recall is for queries
        that did not choose the first effort. These queries may have raised it.
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
        """Return the document that `retr index --json` prints."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """A candidate, the options of it that were chosen, and their trial."""

    backend: str
    candidate: Indexer
    chosen: Indexer
    trial: Trial

    def no_slower_than(self, seconds: float, latency: float) -> "Tried":
        """Return the same with the shorter times of two measurements."""
        seconds, latency = min(seconds, self.trial.seconds), min(latency, self.trial.latency)
        trial = replace(self.trial, seconds=seconds, latency=latency, expected_seconds=seconds)
        return replace(self, trial=trial)


def finalists(small: Sequence[Tried], target: Target) -> list[Tried]:
    """Return the best of the first sample, and the most accurate.

    Only the most accurate may reach the target over more rows.
    """
    found: list[Tried] = []
    for each in ranked_trials(small, target):
        if sum(other.backend == each.backend for other in found) < MAX_FINALISTS_PER_BACKEND:
            found.append(each)
    del found[MAX_FINALISTS:]
    within = [
        each for each in small if not verdict_of(each.trial, replace(target, recall=ANY_RECALL))
    ]
    thorough = max(within or small, key=lambda each: each.trial.recall)
    return found if thorough in found else [*found, thorough]


def extrapolated(small: Trial, large: Trial, rows: int) -> Trial:
    """Return the larger trial with its time extrapolated to `rows`.

    Time is taken to grow as a power of the number of rows. The power is fitted to both trials and
    kept between 0 and 1: no search is faster over more rows, or slower than an exact search.
    """
    growth = math.log(large.seconds / small.seconds) / math.log(large.rows / small.rows)
    expected = large.seconds * (rows / large.rows) ** min(max(0.0, growth), 1.0)
    return replace(large, expected_seconds=expected)


def ranked_trials(tried: Sequence[Tried], target: Target) -> list[Tried]:
    """Return the candidates that meet the target, the fastest over all rows first."""
    fit = [each for each in tried if not verdict_of(each.trial, target)]
    ranked: list[Tried] = []
    while fit:
        fastest = min(each.trial.expected_seconds for each in fit)
        # The smallest of several equally fast candidates comes first.
        close = [each for each in fit if each.trial.expected_seconds <= EQUAL_TIME_RATIO * fastest]
        ranked.append(min(close, key=lambda each: each.trial.expected_bytes))
        fit.remove(ranked[-1])
    return ranked


def verdict_of(trial: Trial, target: Target) -> str:
    """Return the measurement that misses the target; empty if the trial meets it."""
    if trial.recall < target.recall:
        return f"recall@{target.k} {trial.recall:.4f}"
    if target.max_memory is not None and trial.expected_bytes > target.max_memory:
        return f"{trial.expected_bytes / 1e6:,.0f} MB"
    if target.max_latency is not None and trial.expected_latency > target.max_latency:
        return f"{1000 * trial.expected_latency:.3g} ms"
    return ""


def unreached(trials: Sequence[Trial], target: Target) -> str:
    """Return the error for a target that no candidate reaches; it names the best candidate."""
    wanted = [f"recall@{target.k} of {target.recall:g}"]
    if target.max_memory is not None:
        wanted.append(f"{target.max_memory / 1e6:,.4g} MB at most")
    if target.max_latency is not None:
        wanted.append(f"{1000 * target.max_latency:.3g} ms at most")
    most = max(trial.rows for trial in trials)
    trials = [trial for trial in trials if trial.rows == most]
    within = [
        trial for trial in trials if not verdict_of(trial, replace(target, recall=ANY_RECALL))
    ]
    best = max(within or trials, key=lambda trial: trial.recall)
    return (
        f"no index reaches {', '.join(wanted)}; the best over {most:,} rows was {best.backend} "
        f"({named_setting(best.setting)}) with recall@{target.k} {best.recall:.4f}, for all rows "
        f"{best.expected_bytes / 1e6:,.4g} MB and {1000 * best.expected_latency:.3g} ms; "
        "ask for less"
    )


def reason_of(checked: Sequence[Trial], target: Target) -> str:
    """Return a sentence that says why the last of the checked trials was chosen."""
    how = "in batches" if target.batches else "one query at a time"
    reason = f"the fastest {how} of what reaches recall@{target.k} {target.recall:g}, or within a "
    reason += "tenth of it and smaller"
    if len(checked) > 1:
        before = ", ".join(f"{trial.backend} ({trial.verdict})" for trial in checked[:-1])
        return f"{reason}; what came before it on the sample did not do over all rows: {before}"
    return reason


def setting_of(indexer: Indexer) -> dict[str, Json]:
    """Return the options that differ from the backend's defaults."""
    plain = asdict(cast(Any, type(indexer)()))
    return {name: value for name, value in options_of(indexer).items() if value != plain[name]}


def named_setting(setting: Mapping[str, Json]) -> str:
    """Return the setting as text, `name=value name=value`."""
    return " ".join(f"{name}={value}" for name, value in setting.items())
