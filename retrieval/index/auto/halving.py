"""Try the candidates of all backends over growing samples of the rows: successive halving.

Every candidate is measured over a first, small sample. The better half of them is measured over a
sample that is four times as large, and so on. Their times over all rows are extrapolated from the
last two samples. See Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and
Hyperparameter Optimization", AISTATS 2016.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Metric, Tunable, Vectors
from retrieval.errors import RetrError
from retrieval.index.auto.budget import Budget
from retrieval.index.auto.measuring import Stage, TuningQueries
from retrieval.index.auto.trials import (
    Target,
    Trial,
    Tried,
    better_half,
    close_to_best,
    extrapolated,
    hopeful_trials,
    is_slow,
    named,
    ranked_trials,
    setting_of,
)
from retrieval.registry import indexer_names, indexer_plugin

FIRST_ROWS = 4_000
GROWTH = 4  # ratio of the sizes of two successive samples
MAX_SAMPLE_ROWS = 64_000

ROOM_FACTOR = 2.0  # an index takes at most this multiple of its vectors

HOPELESS_RATIO = 4
"""A candidate is given up if it takes this multiple of the best candidate's time and does not reach
the target."""

Candidate = tuple[str, Tunable]
"""The name of a backend, and its options."""

Progress = Callable[[str], None]


@dataclass(slots=True)
class Trials:
    """Builds and measures candidates.

    measured: the trials over samples, in their order. errors: of the candidates that could not be
    measured. best: the best candidate so far.
    """

    vectors: Vectors
    asked: TuningQueries
    metric: Metric
    target: Target
    folder: Path
    budget: Budget
    progress: Progress
    measured: list[Trial] = field(default_factory=list)
    errors: dict[Candidate, str] = field(default_factory=dict)
    best: Tried | None = None
    built: int = 0
    interrupted: bool = False

    def __post_init__(self) -> None:
        resolve_choices(self)

    @property
    def failed(self) -> list[str]:
        """Return the errors, each with the candidate's name."""
        return [*self.errors.values()]

    def stage(self, rows: int, draw: np.random.Generator | None) -> Stage:
        """Return a sample of `rows` rows; see `Stage.of`."""
        return Stage.of(self.vectors, self.asked, self.metric, self.target.k, rows, draw)

    def tried(self, stage: Stage, candidate: Candidate) -> Tried | None:
        """Return the trial of the candidate; None if it fails."""
        backend, indexer = candidate
        setting = setting_of(indexer).items()
        build = {key: value for key, value in setting if key not in indexer.search_options}
        name = named(backend, build)
        learned = f"; {self.best.trial.summary}" if self.best else ""
        self.progress(f"{name} over {len(stage.vectors):,} rows{learned}")
        place = self.folder / str(self.built)
        place.mkdir()
        self.built += 1
        try:
            tried = stage.tried(backend, indexer, place, self.target, self._patience(stage))
        except (RetrError, RuntimeError, MemoryError) as problem:
            self.errors[candidate] = f"{name}: {problem}"
            shutil.rmtree(place)
            return None
        if not stage.is_whole:
            shutil.rmtree(place)
        return tried

    def _has_slow_sibling(self, backend: str, found: Sequence[Tried]) -> bool:
        """Return whether all trials of the backend reach the target, but far too slowly."""
        ranked = ranked_trials(found, self.target)
        siblings = [each.trial for each in ranked if each.backend == backend]
        return bool(siblings) and all(is_slow(each, ranked) for each in siblings)

    def _lacks_memory(self) -> bool:
        """Return whether an index of the vectors may take more memory than the target allows."""
        most = self.target.max_memory
        size = self.vectors.size * np.dtype(np.float32).itemsize
        return most is not None and most < ROOM_FACTOR * size

    def _patience(self, stage: Stage) -> float:
        """Return the seconds a query after which a candidate of this sample is given up."""
        best = self.best
        if best is None or best.trial.rows != len(stage.vectors) or stage.is_whole:
            return math.inf
        return HOPELESS_RATIO * best.batch_seconds

    def over_samples(self, seed: int) -> list[Tried]:
        """Return the candidates that may meet the target over all rows, the best first.

        Trials end when the budget is spent. Ctrl+C ends them, too, if a candidate has reached the
        target; before that, it raises KeyboardInterrupt. seed: random seed of the samples.
        """
        draw = np.random.default_rng(seed)
        n_rows, dim = self.vectors.shape
        left = candidates_of(self.metric, n_rows, dim, seed, self._lacks_memory())
        rounds: list[list[Tried]] = [[]]
        for rows in sample_sizes(n_rows):
            if self._is_over() or not left:
                break
            found: list[Tried] = []
            try:
                self._round(rows, draw, left, rounds[-1], found)
            except KeyboardInterrupt:
                if self.best is None:
                    raise
                self.interrupted = True
                self.budget.end("by Ctrl+C")
            rounds.append(found)
            hopeful = hopeful_trials(self._in_budget(found), self.target)
            is_first = len(rounds) == 2
            kept = hopeful if is_first and self._lacks_memory() else better_half(hopeful)
            left = [each.key for each in kept]
        ranked: list[Tried] = []
        later: set[Candidate] = set()
        for found in reversed(rounds):  # the later the round, the better its candidates
            ranked += hopeful_trials([each for each in found if each.key not in later], self.target)
            later |= {each.key for each in found}
        return [each for each in ranked if each.key not in self.errors]

    def _round(
        self,
        rows: int,
        draw: np.random.Generator,
        left: Sequence[Candidate],
        before: Sequence[Tried],
        found: list[Tried],
    ) -> None:
        """Measure the candidates that are left over a sample, as long as the budget allows.

        before: the trials of the previous round. found: each trial is appended.
        """
        stage = self.stage(rows, draw)
        smaller = {each.key: each.trial for each in before}
        for candidate in left:
            if self._is_over():
                return
            if self._has_slow_sibling(candidate[0], found):
                continue
            tried = self.tried(stage, candidate)
            if tried is None:
                continue
            if candidate in smaller:
                trial = extrapolated(smaller[candidate], tried.trial, len(self.vectors))
                tried = replace(tried, trial=trial)
            if candidate[0] == "exact":
                tried = tried.in_proportion(len(self.vectors) / len(stage.vectors))
            found.append(tried)
            self.measured.append(tried.trial)
            self._learn(found)

    def _is_over(self) -> bool:
        """Return whether no time is left; one candidate is measured in any case."""
        return bool(self.measured) and self.budget.is_spent()

    def _learn(self, found: Sequence[Tried]) -> None:
        """Remember the best of this round that can be built in time, and the time of its build."""
        ranked = ranked_trials(self._in_budget(found), self.target)
        if ranked:
            self.best = ranked[0]
            self.budget.needed = min(each.trial.expected_build for each in close_to_best(ranked))

    def _in_budget(self, found: Sequence[Tried]) -> Sequence[Tried]:
        """Return those that can be built in time; all of them without a budget."""
        if self.budget.seconds is None:
            return found
        return [each for each in found if self.budget.allows(each.trial.expected_build)]


def sample_sizes(rows: int) -> Iterator[int]:
    """Yield the sizes of the samples of an index of `rows` rows: at most half of them."""
    size = min(FIRST_ROWS, (rows + 1) // 2)
    while size <= min(MAX_SAMPLE_ROWS, (rows + 1) // 2):
        yield size
        size *= GROWTH


def candidates_of(
    metric: Metric | str, rows: int, dim: int, seed: int, lacks_memory: bool
) -> list[Candidate]:
    """Return the candidates of every backend: the first one of each, then the second, and so on.

    Exact search is the first. Candidates with the attribute `saves_memory` are for short memory
    only: they are smaller than the vectors, and slower or less accurate.
    """
    metric = choice(Metric, metric)
    found: list[tuple[int, Candidate]] = []
    for name in sorted(indexer_names(), key=lambda name: (name != "exact", name)):
        plugin = indexer_plugin(name)
        if hasattr(plugin, "candidates"):
            found += [
                (number, (name, candidate))
                for number, candidate in enumerate(plugin.candidates(metric, rows, dim, seed))
                if lacks_memory or not getattr(candidate, "saves_memory", False)
            ]
    return [candidate for _, candidate in sorted(found, key=lambda each: each[0])]
