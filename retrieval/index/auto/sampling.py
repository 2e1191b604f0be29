"""Try the candidates of all backends over samples of the rows.

Every candidate is measured over a first, small sample. The best of them are measured over a second,
larger sample. Their times over all rows are extrapolated from both.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Indexer, Metric, Tunable, Vectors
from retrieval.errors import RetrError
from retrieval.index.auto.measuring import Stage, TuningQueries
from retrieval.index.auto.trials import (
    Target,
    Trial,
    Tried,
    extrapolated,
    finalists,
    named_setting,
    ranked_trials,
    setting_of,
)
from retrieval.registry import indexer_names, indexer_plugin

MAX_SAMPLE_ROWS = 100_000
FIRST_SAMPLE_DIVISOR = 4  # the first sample is a fourth of the second
MIN_FIRST_SAMPLE_ROWS = 5_000  # unless the second sample has fewer

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The trials over samples for one target.

    failed: the candidates that could not be measured, with the error. ranked: (backend, options) of
    the candidates that reach the target, the best first.
    """

    trials: list[Trial]
    failed: list[str]
    ranked: list[tuple[str, Indexer]]


@dataclass(frozen=True, slots=True)
class _Trials:
    """Builds and measures candidates over samples. `failed` and `kept` grow with each trial."""

    vectors: Vectors
    asked: TuningQueries
    metric: Metric
    targets: Sequence[Target]
    folder: Path
    draw: np.random.Generator
    progress: Progress
    failed: list[str] = field(default_factory=list)
    kept: dict[Indexer, tuple[Stage, Path]] = field(default_factory=dict)

    def measured(
        self, rows: int, candidates: Sequence[tuple[str, Indexer]], keep: bool
    ) -> list[list[Tried]]:
        """Measure the candidates over `rows` rows; return the trials for each target.

        A candidate that fails has no trial. keep: whether to keep the indices for `timed_again`.
        """
        k = self.targets[0].k
        stage = Stage.of(self.vectors, self.asked, self.metric, k, rows, self.draw)
        found: list[list[Tried]] = [[] for _ in self.targets]
        for number, (backend, candidate) in enumerate(candidates):
            place = self.folder / f"trial-{number}"
            place.mkdir()
            trials = self._trial(stage, backend, candidate, place)
            for of_target, (trial, chosen) in zip(found, trials, strict=False):
                of_target.append(Tried(backend, candidate, chosen, trial))
            if trials and keep:
                self.kept[candidate] = stage, place
            else:
                shutil.rmtree(place)
        return found

    def _trial(
        self, stage: Stage, backend: str, candidate: Indexer, place: Path
    ) -> list[tuple[Trial, Indexer]]:
        """Return the trial and the options for each target; empty if the candidate fails."""
        name = f"{backend} {named_setting(setting_of(candidate))}".strip()
        self.progress(f"{name} over {len(stage.vectors):,} rows")
        try:
            return stage.measured(backend, cast(Tunable, candidate), place, self.targets)
        except (RetrError, RuntimeError, MemoryError) as problem:
            self.failed.append(f"{name}: {problem}")
            return []

    def timed_again(self, tried: Tried, target: Target) -> Tried:
        """Time a kept candidate again, in case the machine was slow for a moment."""
        stage, place = self.kept[tried.candidate]
        return tried.no_slower_than(*stage.timed(tried.chosen.load(place), target.batches))


def sample_results(
    vectors: Vectors,
    asked: TuningQueries,
    metric: Metric | str,
    targets: Sequence[Target],
    seed: int,
    folder: Path,
    progress: Progress,
) -> list[SampleResult]:
    """Measure every candidate over the first sample, and the best of them over the second.

    Return the result for each target. targets: all have the same k. folder: for files of trials.
    """
    metric = choice(Metric, metric)
    rows, dim = vectors.shape
    second = min(MAX_SAMPLE_ROWS, rows - (len(asked) if asked.held_out else 0))
    first = min(second, max(second // FIRST_SAMPLE_DIVISOR, MIN_FIRST_SAMPLE_ROWS))
    draw = np.random.default_rng(seed)
    trials = _Trials(vectors, asked, metric, targets, folder, draw, progress)
    candidates = list(_candidates(metric, rows, dim, seed))
    small = trials.measured(first, candidates, keep=first == second)
    if first == second:
        results = []
        for target, tried in zip(targets, small, strict=True):
            final = [trials.timed_again(each, target) for each in tried]
            results.append(_result([each.trial for each in final], final, target, trials.failed))
        return results
    chosen = [finalists(tried, target) for tried, target in zip(small, targets, strict=True)]
    once = {each.candidate: (each.backend, each.candidate) for some in chosen for each in some}
    large = trials.measured(second, [*once.values()], keep=True)
    results = []
    for target, before, after, some in zip(targets, small, large, chosen, strict=True):
        smaller = {each.candidate: each.trial for each in before}
        mine = {each.candidate for each in some}
        timed = [trials.timed_again(each, target) for each in after if each.candidate in mine]
        final = [
            replace(each, trial=extrapolated(smaller[each.candidate], each.trial, rows))
            for each in timed
        ]
        measured = [each.trial for each in (*before, *final)]
        results.append(_result(measured, final, target, trials.failed))
    return results


def _result(
    trials: list[Trial], final: Sequence[Tried], target: Target, failed: list[str]
) -> SampleResult:
    ranked = [(each.backend, each.chosen) for each in ranked_trials(final, target)]
    return SampleResult(trials, failed, ranked)


def _candidates(metric: Metric, rows: int, dim: int, seed: int) -> Iterator[tuple[str, Indexer]]:
    """Yield the candidates of every backend, exact search first."""
    for name in sorted(indexer_names(), key=lambda name: (name != "exact", name)):
        plugin = indexer_plugin(name)
        if hasattr(plugin, "candidates"):
            for candidate in plugin.candidates(metric, rows, dim, seed):
                yield name, candidate
