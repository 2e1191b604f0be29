"""Build the best candidates over all rows, and choose among them."""

from collections.abc import Sequence
from contextlib import suppress
from shutil import rmtree
from typing import cast

from retrieval.contracts import Tunable
from retrieval.errors import BadInput
from retrieval.index.auto.halving import Trials
from retrieval.index.auto.trials import Trial, Tried, close_to_best, named, ranked_trials, unreached
from retrieval.registry import make_indexer
from retrieval.units import duration

MAX_CONTENDERS = 3  # candidates that are compared over all rows
COMPARISONS = 2  # rounds in which all contenders are timed


def best_of(trials: Trials, ranked: Sequence[Tried]) -> tuple[Tried, list[Trial]]:
    """Return the best candidate, built over all rows, and the trials over all rows, its own last.

    ranked: the candidates that may meet the target, the best first. Ctrl+C ends the
    comparison, if one has reached the target over all rows; before that, it raises
    KeyboardInterrupt. Raises BadInput, which names the best candidate, if none reaches the target.
    """
    stage = trials.stage(len(trials.vectors), None)
    contenders: list[Tried] = []
    missed: list[Trial] = []
    close = close_to_best(ranked_trials(ranked, trials.target) or ranked)
    for each in _in_time(trials, ranked):
        if contenders and (trials.interrupted or len(contenders) == MAX_CONTENDERS):
            break
        if contenders and (each not in close or each.trial.expected_build > trials.budget.left):
            continue
        try:
            tried = trials.tried(stage, each.key)
        except KeyboardInterrupt:
            if not contenders:
                raise
            break
        if tried is not None and tried.trial.verdict:
            missed.append(tried.trial)
            rmtree(tried.folder)
        elif tried is not None:
            contenders.append(tried)
            trials.best = contenders[0]
    if not contenders:
        problem = unreached(missed or trials.measured, trials.failed, trials.target)
        raise BadInput("; ".join([problem, *trials.budget.notes]))
    with suppress(KeyboardInterrupt):
        for _ in range(COMPARISONS if len(contenders) > 1 else 0):
            contenders = [
                each.no_slower_than(
                    *stage.timed(each.chosen.load(each.folder), trials.target.batches)
                )
                for each in contenders
            ]
    best, *others = ranked_trials(contenders, trials.target)
    return best, [*missed, *(each.trial for each in others), best.trial]


def exact_search(trials: Trials) -> tuple[Tried, list[Trial]]:
    """Return exact search over all rows, as `best_of` does. Raises BadInput if it is not enough."""
    exact = cast(Tunable, make_indexer("exact", {"metric": trials.metric}))
    tried = trials.tried(trials.stage(len(trials.vectors), None), ("exact", exact))
    if tried is None or tried.trial.verdict:
        some = [] if tried is None else [tried.trial]
        raise BadInput(unreached(some, trials.failed, trials.target))
    return tried, [tried.trial]


def _in_time(trials: Trials, ranked: Sequence[Tried]) -> list[Tried]:
    """Return the candidates: first those that can be built in time, then the others.

    The others are in the order of their time to build.
    """
    soon = [each for each in ranked if trials.budget.allows(each.trial.expected_build)]
    late = sorted(
        (each for each in ranked if each not in soon), key=lambda each: each.trial.expected_build
    )
    if late and soon and ranked[0] in late:
        best = ranked[0].trial
        trials.budget.notes.append(
            f"{named(best.backend, best.setting)} may be faster, but would take "
            f"{duration(best.expected_build)} to build"
        )
    return [*soon, *late]
