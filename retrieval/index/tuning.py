"""Which index to build, by measurement: `retr index --backend auto`.

Candidates of every backend are built over a sample of the rows, and searched with queries that are
not among them, with the least effort that reaches the target recall. What is fastest, as a larger
sample lets expect for all rows, is built over all of them, and its effort set and checked there.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Indexer, Metric, Tunable, Vectors
from retrieval.errors import BadInput, Mismatch, RetrError
from retrieval.hits import InMemory
from retrieval.index.build import building, check_room, described, write_index
from retrieval.index.folder import IndexFacts
from retrieval.index.measuring import Stage, TuningQueries
from retrieval.index.trials import (
    Target,
    Trial,
    Tried,
    Tuning,
    extrapolated,
    finalists,
    named_setting,
    ranked_trials,
    reason_of,
    setting_of,
    unreached,
)
from retrieval.registry import indexer_names, indexer_plugin, make_indexer
from retrieval.storage.compatible import check_same_encoder, common_facts, read_all
from retrieval.storage.embeddings import Embeddings
from retrieval.storage.manifest import EncoderFacts
from retrieval.storage.places import Place

FEW_NUMBERS = 2**20  # rows × dim up to which exact search takes a tenth of a millisecond
LARGEST_SAMPLE = 100_000  # rows
FIRST_SHARE = 4  # the first sample is a fourth of the second
LEAST_FIRST = 5_000  # rows, unless there are fewer

Progress = Callable[[str], None]


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
    asked = TuningQueries.of(vectors, None if queries is None else queries.read()[1], seed)
    with building(folder) as partial:
        found = _Found([], [], [("exact", make_indexer("exact", {"metric": metric}))])
        few = vectors.size <= FEW_NUMBERS
        if not few:
            (found,) = _tried(vectors, asked, metric, [target], seed, partial, progress)
        everything = Stage.of(vectors, asked, metric, target.k, len(vectors), None)
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
                    reason = reason_of(checked, target)
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
        raise BadInput(unreached(checked or found.trials, target))


def tried(
    vectors: Vectors, metric: Metric | str, targets: Sequence[Target], *, seed: int = 0
) -> list[list[tuple[str, Indexer]]]:
    """For each target, all of one k, the backends and their options that reach it; the best first.

    As far as samples say, and with rows that are held out to ask. Each candidate is built once for
    all of the targets.
    """
    metric = choice(Metric, metric)
    asked = TuningQueries.of(vectors, None, seed)
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


def _tried(
    vectors: Vectors,
    asked: TuningQueries,
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
    kept: dict[Indexer, tuple[Stage, Path]] = {}

    def measured(rows: int, candidates: Sequence[tuple[str, Indexer]]) -> list[list[Tried]]:
        """For each target, the candidates that could be measured."""
        stage = Stage.of(vectors, asked, metric, targets[0].k, rows, draw)
        found: list[list[Tried]] = [[] for _ in targets]
        for backend, candidate in candidates:
            name = f"{backend} {named_setting(setting_of(candidate))}".strip()
            progress(f"{name} over {len(stage.vectors):,} rows")
            place = folder / f"trial-{len(kept)}"
            place.mkdir()
            try:
                trials = stage.measured(backend, cast(Tunable, candidate), place, targets)
            except (RetrError, RuntimeError, MemoryError) as problem:
                failed.append(f"{name}: {problem}")
                trials = []
            for of_target, (trial, chosen) in zip(found, trials, strict=False):
                of_target.append(Tried(backend, candidate, chosen, trial))
            if trials and rows == second:
                kept[candidate] = stage, place
            else:
                shutil.rmtree(place)
        return found

    def again(each: Tried, target: Target) -> Tried:
        """Timed once more: there may have been a moment in which the machine was slow."""
        stage, place = kept[each.candidate]
        return each.no_slower_than(*stage._timed(each.chosen.load(place), target.batches))

    small = measured(first, list(_candidates(metric, rows, dim, seed)))
    if first == second:
        found = []
        for target, all_there_is in zip(targets, small, strict=True):
            final = [again(each, target) for each in all_there_is]
            trials = [each.trial for each in final]
            found.append(_Found(trials, failed, _choices(ranked_trials(final, target))))
        return found
    finalists = [finalists(tried, target) for tried, target in zip(small, targets, strict=True)]
    once = {each.candidate: (each.backend, each.candidate) for of in finalists for each in of}
    large = measured(second, [*once.values()])
    found = []
    for target, before, after, chosen in zip(targets, small, large, finalists, strict=True):
        smaller = {each.candidate: each.trial for each in before}
        mine = {each.candidate for each in chosen}
        timed = [again(each, target) for each in after if each.candidate in mine]
        final = [
            replace(each, trial=extrapolated(smaller[each.candidate], each.trial, rows))
            for each in timed
        ]
        trials = [each.trial for each in (*before, *final)]
        found.append(_Found(trials, failed, _choices(ranked_trials(final, target))))
    return found


def _choices(ranked: Sequence["Tried"]) -> list[tuple[str, Indexer]]:
    return [(each.backend, each.chosen) for each in ranked]


def _candidates(metric: Metric, rows: int, dim: int, seed: int) -> Iterator[tuple[str, Indexer]]:
    for name in sorted(indexer_names(), key=lambda name: (name != "exact", name)):
        plugin = indexer_plugin(name)
        if hasattr(plugin, "candidates"):
            for candidate in plugin.candidates(metric, rows, dim, seed):
                yield name, candidate
