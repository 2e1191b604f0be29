"""Choose an index by measurement: `retr index --backend auto`.

Candidates of every backend are built over samples of the rows; see `halving`. Each is searched with
queries that are not in the sample, with the least effort that reaches the target recall. The
candidates that are expected to be the fastest are then built over all rows, where their effort is
set and checked.
"""

from collections.abc import Sequence

from retrieval.choices import choice
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadInput, Mismatch
from retrieval.hits import InMemory
from retrieval.index.auto.budget import Budget
from retrieval.index.auto.final import best_of, exact_search
from retrieval.index.auto.halving import Progress, Trials
from retrieval.index.auto.measuring import TuningQueries
from retrieval.index.auto.trials import Target, Tuning, reason_of
from retrieval.index.build import check_target, locked_build, unwritten_facts, write_index
from retrieval.index.folder import IndexFacts
from retrieval.index.row_tables import RowTables
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
    budget: float | None = None,
    progress: Progress = lambda _: None,
) -> tuple[IndexFacts, Tuning]:
    """Build the fastest index over the embeddings that reaches the target, in `folder`.

    queries: embeddings of typical queries, or vectors (q, dim) of queries in words by the same
        encoder; None to hold out rows of the sets as queries.
    seed: random seed. Times differ between runs, so that another run may choose another of several
        candidates that are equally fast.
    budget: seconds for trials and the build. What cannot be built in this time is built only if
        nothing else reaches the target. None for a minute, or more if the fastest index takes
        longer to build.

    Ctrl+C ends the trials: what is the best so far is built. Before anything has reached the
    target, and during the build, it raises KeyboardInterrupt.

    Raises the errors of `build_index`; Mismatch for queries of another encoder, and for queries
    that are the rows themselves; BadInput for a budget of 0 or less, and, with the name of the best
    candidate, if no candidate reaches the target. After an error, an index in `folder` is
    unchanged.
    """
    if budget is not None and not budget > 0:
        raise BadInput(f"the budget is {budget:g} s; give a time above 0")
    metric = None if metric is None else choice(Metric, metric)
    encoder = common_facts(sets)
    metric = metric or sets[0].facts.metric
    if isinstance(queries, Embeddings):
        _check_queries(queries, encoder, sets)
    check_target(folder)
    rows, vectors = read_all(sets)
    given = queries.vectors() if isinstance(queries, Embeddings) else queries
    asked = TuningQueries.of(vectors, given, seed)
    clock = Budget(budget)
    with locked_build(folder) as partial:
        trials = Trials(vectors, asked, metric, target, partial, clock, progress)
        few = vectors.size <= EXACT_MAX_NUMBERS
        chosen, checked = (
            exact_search(trials) if few else best_of(trials, trials.over_samples(seed))
        )
        whole = partial / "whole"
        whole.mkdir()
        index = chosen.chosen.load(chosen.folder)
        facts = unwritten_facts(chosen.backend, chosen.chosen, index, sets)
        built = write_index(
            whole, folder, index, RowTables.of(rows, sets), facts, InMemory(vectors)
        )
    reason = reason_of(checked, target, clock.notes)
    if few:
        reason = f"{len(vectors):,} rows are few: exact search, without trials"
    tuning = Tuning(
        target=target,
        seed=seed,
        queries=len(asked),
        held_out=asked.held_out,
        trials=trials.measured,
        failed=trials.failed,
        checked=checked,
        reason=reason,
        budget=budget,
        seconds=clock.elapsed,
    )
    return built, tuning


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
