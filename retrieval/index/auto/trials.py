"""Trials of index options: the target, each measurement, and the choice among them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from retrieval.contracts import Indexer, Json, Tunable
from retrieval.errors import BadInput
from retrieval.index.folder import options_of

MIN_KEPT = 3  # candidates of a round that are measured in the next round, too
MAX_KEPT_PER_BACKEND = 2
SLOW_RATIO = 2.5
"""A candidate that takes this multiple of the best one's time is not measured in the next round.
After one, no other candidate of its backend is measured: options change less than that."""

ANY_RECALL = 1e-9  # a target that every candidate reaches
EQUAL_TIME_RATIO = 1.05  # up to this multiple of the fastest time, times count as equal
CLOSE_RATIO = 1.3
"""A candidate whose expected time is up to this multiple of the best one's may prove to be the
fastest over all rows."""

OVERSTATED_BYTES = 2.5  # ratio by which a small sample may overstate the size of an index

BUILD_GROWTH = 1.1  # power of the number of rows with which the time to link rows grows


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
    build_seconds: without the time that compilation took.
    expected_seconds, expected_bytes, expected_build: extrapolated to all rows; the last in seconds.
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
    expected_build: float
    verdict: str = ""

    @property
    def expected_latency(self) -> float:
        """Return the latency over all rows, in seconds."""
        return self.latency * self.expected_seconds / self.seconds

    @property
    def summary(self) -> str:
        """Return the measurements in a few words."""
        return (
            f"best so far: {named(self.backend, self.setting)}, {1000 * self.seconds:.3g} ms, "
            f"recall {self.recall:.3f}"
        )

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
    budget: the seconds that trials and the build were allowed to take; None if they had no limit.
    seconds: what they took.
    """

    target: Target
    seed: int
    queries: int
    held_out: bool
    trials: list[Trial]
    failed: list[str]
    checked: list[Trial]
    reason: str
    budget: float | None
    seconds: float

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr index --json` prints."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """A candidate of a backend, the options of it that were chosen, and their trial.

    folder: its files; only those over all rows are kept.
    batch_seconds: mean seconds of a query in a batch, when its recall was measured; for exact
        search, those expected over all rows.
    """

    backend: str
    candidate: Tunable
    chosen: Tunable
    trial: Trial
    folder: Path
    batch_seconds: float

    @property
    def key(self) -> tuple[str, Tunable]:
        """Return the candidate and its backend."""
        return self.backend, self.candidate

    def in_proportion(self, ratio: float) -> "Tried":
        """Return the same for a search whose time grows in proportion to the rows."""
        trial = replace(self.trial, expected_seconds=self.trial.seconds * ratio)
        return replace(self, trial=trial, batch_seconds=self.batch_seconds * ratio)

    def no_slower_than(self, seconds: float, latency: float) -> "Tried":
        """Return the same with the shorter times of two measurements."""
        seconds, latency = min(seconds, self.trial.seconds), min(latency, self.trial.latency)
        trial = replace(self.trial, seconds=seconds, latency=latency, expected_seconds=seconds)
        return replace(self, trial=trial)


def better_half(ranked: Sequence[Tried]) -> list[Tried]:
    """Return the better half of ranked candidates, without those that are far slower."""
    found: list[Tried] = []
    for each in ranked:
        of_backend = sum(other.backend == each.backend for other in found)
        if of_backend < MAX_KEPT_PER_BACKEND and not is_slow(each.trial, found):
            found.append(each)
    return found[: max(MIN_KEPT, len(ranked) // 2)]


def close_to_best(ranked: Sequence[Tried]) -> list[Tried]:
    """Return those of the first one's sample that may prove to be the fastest over all rows.

    Times that are extrapolated from different samples cannot be compared.
    """
    same = [each for each in ranked if each.trial.rows == ranked[0].trial.rows]
    most = CLOSE_RATIO * min((each.trial.expected_seconds for each in same), default=0)
    return [each for each in same if each.trial.expected_seconds <= most]


def is_slow(trial: Trial, ranked: Sequence[Tried]) -> bool:
    """Return whether the trial is far slower than the best of these candidates."""
    fastest = min((each.trial.expected_seconds for each in ranked), default=math.inf)
    return trial.expected_seconds > SLOW_RATIO * fastest


def extrapolated(small: Trial, large: Trial, rows: int) -> Trial:
    """Return the larger trial with its times extrapolated to `rows`.

    The time of a query is taken to grow as a power of the number of rows. The power is fitted to
    both trials and kept between 0 and 1: no search is faster over more rows, or slower than an
    exact search. The time of a build grows linearly between both trials, and a little more beyond;
    the size grows linearly.
    """
    growth = math.log(large.seconds / small.seconds) / math.log(large.rows / small.rows)
    expected = large.seconds * (rows / large.rows) ** min(max(0.0, growth), 1.0)
    slope = max(0.0, large.build_seconds - small.build_seconds) / (large.rows - small.rows)
    more = slope * (rows - large.rows) * (rows / large.rows) ** (BUILD_GROWTH - 1)
    bytes_a_row = max(0, large.size_bytes - small.size_bytes) / (large.rows - small.rows)
    return replace(
        large,
        expected_seconds=expected,
        expected_build=large.build_seconds + more,
        expected_bytes=large.size_bytes + bytes_a_row * (rows - large.rows),
    )


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


def hopeful_trials(tried: Sequence[Tried], target: Target) -> list[Tried]:
    """Return the ranked candidates, and then those that may meet the target over all rows.

    A part of an index may not grow with the rows, so that a small sample overstates its size. No
    index gets faster with more rows.
    """
    ranked = ranked_trials(tried, target)
    low = replace(target, max_latency=None)
    if target.max_memory is not None:
        low = replace(low, max_memory=OVERSTATED_BYTES * target.max_memory)
    limit = target.max_latency or math.inf
    others = [each for each in tried if each not in ranked and each.trial.latency <= limit]
    return [*ranked, *ranked_trials(others, low)]


def verdict_of(trial: Trial, target: Target) -> str:
    """Return the measurement that misses the target; empty if the trial meets it."""
    if trial.recall < target.recall:
        return f"recall@{target.k} {trial.recall:.4f}"
    if target.max_memory is not None and trial.expected_bytes > target.max_memory:
        return f"{trial.expected_bytes / 1e6:,.0f} MB"
    if target.max_latency is not None and trial.expected_latency > target.max_latency:
        return f"{1000 * trial.expected_latency:.3g} ms"
    return ""


def unreached(trials: Sequence[Trial], failed: Sequence[str], target: Target) -> str:
    """Return the error for a target that no candidate reaches; it names the best candidate.

    failed: the candidates that could not be measured, with the error.
    """
    if not trials:
        return f"no index could be built: {'; '.join(failed)}"
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
        f"no index reaches {', '.join(wanted)}; the best over {most:,} rows was "
        f"{named(best.backend, best.setting)} with recall@{target.k} {best.recall:.4f}, for all "
        f"rows {best.expected_bytes / 1e6:,.4g} MB and {1000 * best.expected_latency:.3g} ms; "
        "ask for less"
    )


def reason_of(checked: Sequence[Trial], target: Target, notes: Sequence[str]) -> str:
    """Return a sentence that says why the last of the checked trials was chosen.

    notes: what the budget changed.
    """
    how = "in batches" if target.batches else "one query at a time"
    reason = f"the fastest {how} of what reaches recall@{target.k} {target.recall:g}, or within "
    reason += f"{EQUAL_TIME_RATIO - 1:.0%} of it and smaller"
    missed = ", ".join(f"{each.backend} ({each.verdict})" for each in checked if each.verdict)
    if missed:
        reason += f"; not enough over all rows: {missed}"
    return "; ".join([reason, *notes])


def setting_of(indexer: Indexer) -> dict[str, Json]:
    """Return the options that differ from the backend's defaults."""
    plain = asdict(cast(Any, type(indexer)()))
    return {name: value for name, value in options_of(indexer).items() if value != plain[name]}


def named(backend: str, setting: Mapping[str, Json]) -> str:
    """Return the backend and its setting as text, `hnsw m=32 ef=56`."""
    return " ".join([backend, *(f"{name}={value}" for name, value in setting.items())])
