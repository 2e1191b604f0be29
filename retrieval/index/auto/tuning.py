"""Choose an index by measurement: `retr index --backend auto`.

Candidates of every backend are built over a sample of the rows. Each is searched with queries that
are not in the sample, with the least effort that reaches the target recall. The candidate that is
expected to be fastest over all rows is then built over all rows. Its effort is set and checked
there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from retrieval.choices import choice
from retrieval.contracts import Indexer, Metric, Tunable, Vectors
from retrieval.errors import BadInput, Mismatch
from retrieval.hits import InMemory
from retrieval.index.auto.measuring import Stage, TuningQueries
from retrieval.index.auto.sampling import Progress, SampleResult, sample_results
from retrieval.index.auto.trials import Target, Trial, Tuning, reason_of, unreached
from retrieval.index.build import check_target, locked_build, unwritten_facts, write_index
from retrieval.index.folder import IndexFacts
from retrieval.index.row_tables import RowTables
from retrieval.registry import make_indexer
from retrieval.storage.places import Place
from retrieval.storage.sets.compatible import check_same_encoder, common_facts, read_all
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.storage.sets.manifest import EncoderFacts

EXACT_MAX_NUMBERS = 2**20  # rows × dim up to which exact search takes a tenth of a millisecond


def build_best(
    sets: Sequence[Embeddings],
    folder: Place,
    target: Target,
    *,
    metric: Metric | str | None = None,
    queries: Embeddings | Vectors | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> tuple[IndexFacts, Tuning]:
    """Build the fastest index over the embeddings that reaches the target, in `folder`.

    queries: embeddings of typical queries, or vectors (q, dim) of queries in words by the same
        encoder; None to hold out rows of the sets as queries.
    seed: random seed. Times differ between runs, so that another run may choose another of several
        candidates that are equally fast.

    Raises the errors of `build_index`; Mismatch for queries of another encoder, and for queries
    that are the rows themselves; BadInput, which names the best candidate, if no candidate reaches
    the target. After an error, an index in `folder` is unchanged.
    """
    metric = None if metric is None else choice(Metric, metric)
    encoder = common_facts(sets)
    metric = metric or sets[0].facts.metric
    if isinstance(queries, Embeddings):
        _check_queries(queries, encoder, sets)
    check_target(folder)
    rows, vectors = read_all(sets)
    given = queries.vectors() if isinstance(queries, Embeddings) else queries
    asked = TuningQueries.of(vectors, given, seed)
    with locked_build(folder) as partial:
        found = SampleResult([], [], [("exact", make_indexer("exact", {"metric": metric}))])
        reason = f"{len(vectors):,} rows are few: exact search, without trials"
        few = vectors.size <= EXACT_MAX_NUMBERS
        if not few:
            (found,) = sample_results(vectors, asked, metric, [target], seed, partial, progress)
        checked: list[Trial] = []
        stage = Stage.of(vectors, asked, metric, target.k, len(vectors), None)
        chosen = _first_that_fits(stage, found, target, partial, checked, progress)
        if chosen is None:
            raise BadInput(unreached(checked or found.trials, target))
        whole = partial / "whole"
        whole.mkdir()
        index = chosen.indexer.load(chosen.folder)
        facts = unwritten_facts(chosen.backend, chosen.indexer, index, sets)
        built = write_index(
            whole, folder, index, RowTables.of(rows, sets), facts, InMemory(vectors)
        )
    if not few:
        reason = reason_of(checked, target)
    tuning = Tuning(
        target, seed, len(asked), asked.held_out, found.trials, found.failed, checked, reason
    )
    return built, tuning


def tried(
    vectors: Vectors, metric: Metric | str, targets: Sequence[Target], *, seed: int = 0
) -> list[list[tuple[str, Indexer]]]:
    """Return, for each target, the backends and their options that reach it, the best first.

    All targets have the same k. Candidates are measured over samples, with held-out rows as
    queries. Each candidate is built once for all targets.
    """
    metric = choice(Metric, metric)
    asked = TuningQueries.of(vectors, None, seed)
    with TemporaryDirectory(prefix="retr-auto-") as folder:
        found = sample_results(vectors, asked, metric, targets, seed, Path(folder), lambda _: None)
    return [each.ranked for each in found]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The candidate that reached the target over all rows, and the folder of its files."""

    backend: str
    indexer: Indexer
    folder: Path


def _first_that_fits(
    stage: Stage,
    found: SampleResult,
    target: Target,
    partial: Path,
    checked: list[Trial],
    progress: Progress,
) -> _Chosen | None:
    """Build the candidates over all rows, the best first, until one reaches the target.

    checked: each trial over all rows is appended.
    """
    for backend, indexer in found.ranked:
        progress(f"{backend} over all {len(stage.vectors):,} rows")
        place = partial / str(len(checked))
        place.mkdir()
        trial, chosen = stage.checked(backend, cast(Tunable, indexer), place, target)
        checked.append(trial)
        if not trial.verdict:
            return _Chosen(backend, chosen, place)
    return None


def _check_queries(queries: Embeddings, encoder: EncoderFacts, sets: Sequence[Embeddings]) -> None:
    check_same_encoder(encoder, queries.facts.encoder, str(sets[0].folder), str(queries.folder))
    if queries.facts.dim != sets[0].facts.dim:
        raise Mismatch(
            f"{queries.folder} has {queries.facts.dim} dimensions, the database "
            f"{sets[0].facts.dim}; encode it again"
        )
    if queries.identity in {each.identity for each in sets}:
        raise Mismatch(
            f"{queries.folder} is also the database, so that each query would find itself; give "
            "other queries, or leave out --queries to hold out some rows"
        )
