"""`retr index`: embeddings to a searchable index."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli.auto_target import AutoTarget, limit
from cli.command import command
from cli.options import (
    MetricName,
    Options,
    PartsOptions,
    is_ray,
    parsed_metric,
    parsed_options,
)
from cli.output import Output, plural
from cli.tables import print_tuning
from retrieval.units import SECONDS, duration, size

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.contracts import Metric, Vectors
    from retrieval.index.auto.trials import Tuning
    from retrieval.index.folder import IndexFacts
    from retrieval.storage.places import Place
    from retrieval.storage.sets.embeddings import Embeddings
    from retrieval.workspace import Workspace

AUTO = "auto"
DEFAULT_BACKEND = "hnsw"


UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class IndexChange:
    """An index after the command, and how it came about."""

    folder: "Place"
    facts: "IndexFacts"
    verb: str
    tuning: "Tuning | None" = None


EmbeddingsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DIR",
        help="Embeddings folders, indexed together.  [default: the last one encoded]",
    ),
]

BackendOption = Annotated[
    str | None,
    typer.Option(
        help="Backend: exact, ivf, hnsw, hnsw-pca, ivfpq, vamana, faiss, milvus, "
        "pgvector, the name of a plug-in, or auto (measure, and take the fastest that reaches "
        "--target-recall).  "
        "[default: hnsw]",
    ),
]

AddOption = Annotated[
    bool,
    typer.Option("--add", help="Add the embeddings to the existing index."),
]

DeleteOption = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD=VALUE",
        help="Delete matching rows from the existing index, such as 'label=cat' or "
        "'id=a.png,b.png'.",
    ),
]

OutOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Index folder to write.  [default: a folder in the workspace]"
    ),
]


MergeOption = Annotated[
    bool,
    typer.Option("--merge", help="Build one index of the parts of the existing index."),
]


@command(threads=True)
def index(
    output: Output,
    workspace: "Workspace",
    embeddings: EmbeddingsArgument = None,
    backend: BackendOption = None,
    metric: MetricName = None,
    options: Options = None,
    *,
    auto: AutoTarget,
    parts: PartsOptions,
    add: AddOption = False,
    delete: DeleteOption = None,
    merge: MergeOption = False,
    out: OutOption = None,
) -> None:
    """Build an index over embeddings, or bring it up to date.

    An index of embeddings that have changed since is updated, if few rows changed and the backend
    can add rows; otherwise it is built again. The old index stays until the new one is complete.

    Example: retr index --backend hnsw --set m=32 --set ef=200

    Example: retr index --backend auto --target-recall 0.99 --max-memory 2GB

    Example: retr index --parts 8 --out s3://bucket/index s3://bucket/embeddings

    Example: retr index --add more-embeddings
    """
    import time

    from retrieval.errors import BadInput
    from retrieval.storage.places import place_of
    from retrieval.workspace import Role

    on_ray = is_ray(parts.engine, parts.address)
    _check_auto(backend, options, auto, parts)
    if on_ray and not parts.parts:
        raise BadInput("--engine ray builds an index in parts; give their number with --parts")
    if add or delete is not None or merge:
        _check_change(backend, metric, options, parts, delete, add or bool(embeddings), merge)
    started = time.perf_counter()
    if merge:
        done = _merge(output, _standing(workspace, out))
    elif delete is not None:
        done = _delete(_standing(workspace, out), delete)
    elif add:
        done = _add(output, _standing(workspace, out), _open(workspace, embeddings))
    else:
        sets = _open(workspace, embeddings)
        name = backend or DEFAULT_BACKEND
        measure = parsed_metric(metric) or sets[0].facts.metric
        folder = place_of(out) if out else workspace.index_folder(sets[0].folder, name, measure)
        if name == AUTO:
            done = _build_best(output, sets, folder, measure, auto)
        else:
            done = _build(
                output, sets, name, folder, measure, parsed_options(options), parts, on_ray
            )
    seconds = time.perf_counter() - started
    if out is None or workspace.folder.is_dir():
        workspace.remember(Role.INDEX, done.folder)
    _print(output, done, seconds)
    output.document(_document(done, seconds))


def _check_auto(
    backend: str | None, options: list[str] | None, auto: AutoTarget, parts: PartsOptions
) -> None:
    """Raise BadInput for options that --backend auto needs or does not take."""
    from retrieval.errors import BadInput

    given = auto.given()
    if backend != AUTO:
        if given:
            raise BadInput(
                f"{' and '.join(given)} without --backend {AUTO}; add --backend {AUTO}, or leave "
                f"{'it' if len(given) == 1 else 'them'} out"
            )
        return
    if parts.parts:
        raise BadInput(
            f"--backend {AUTO} builds one index; leave --parts out, or name another backend"
        )
    if options:
        raise BadInput(f"--backend {AUTO} chooses the options itself; leave --set out")


def _check_change(
    backend: str | None,
    metric: str | None,
    options: list[str] | None,
    parts: PartsOptions,
    delete: str | None,
    adds: bool,
    merges: bool,
) -> None:
    """Raise BadInput for options that a change of an index does not take."""
    from retrieval.errors import BadInput

    if backend is not None or metric is not None or options or parts.parts:
        raise BadInput(
            "--add, --delete and --merge keep the index's backend, metric and options; leave "
            "--backend, --metric, --set and --parts out"
        )
    if merges and (adds or delete is not None):
        raise BadInput("--merge takes no embeddings and no --delete; give it alone")
    if delete is not None and adds:
        raise BadInput("--delete takes no embeddings; add rows with a separate command")


def _standing(workspace: "Workspace", out: str | None) -> "Place":
    """Return the folder of the index that is changed."""
    from retrieval.storage.places import place_of
    from retrieval.workspace import Role

    return place_of(out) if out else workspace.needed(Role.INDEX, "retr index", "--out")


def _open(workspace: "Workspace", folders: list[str] | None) -> "list[Embeddings]":
    from retrieval.storage.sets.embeddings import open_embeddings
    from retrieval.workspace import Role

    if folders:
        return [open_embeddings(folder) for folder in folders]
    return [open_embeddings(workspace.needed(Role.DATABASE, "retr encode", "EMBEDDINGS"))]


def _delete(folder: "Place", where: str) -> IndexChange:
    from retrieval.index.update import delete_rows

    return IndexChange(folder, delete_rows(folder, where), "changed")


def _merge(output: Output, folder: "Place") -> IndexChange:
    from retrieval.index.folder import IndexFacts
    from retrieval.index.update import merge_parts

    if not IndexFacts.read(folder).parts:
        output.say("nothing to do: the index is not in parts")
        return IndexChange(folder, IndexFacts.read(folder), UNCHANGED)
    return IndexChange(folder, merge_parts(folder), "changed")


def _add(output: Output, folder: "Place", sets: "list[Embeddings]") -> IndexChange:
    from retrieval.index.folder import IndexFacts
    from retrieval.index.update import add_rows

    before = IndexFacts.read(folder)
    facts = add_rows(folder, sets)
    if facts != before:
        return IndexChange(folder, facts, "changed")
    output.say("nothing to do: the rows are in the index already")
    return IndexChange(folder, facts, UNCHANGED)


def _build(
    output: Output,
    sets: "list[Embeddings]",
    backend: str,
    folder: "Place",
    metric: "Metric",
    options: dict[str, str],
    parts: PartsOptions,
    on_ray: bool,
) -> IndexChange:
    """Build an index, or its parts here or on a cluster."""
    from cli.quiet import quiet_libraries
    from retrieval.index.build import build_index
    from retrieval.index.build_segments import build_segments
    from retrieval.index.follow import follow_embeddings

    if parts.parts is None:
        if (followed := follow_embeddings(sets, backend, folder, metric, options)) is not None:
            verb = f"updated ({followed.added:,} added, {followed.deleted:,} deleted)"
            return IndexChange(folder, followed.facts, verb if followed.is_change else UNCHANGED)
        return IndexChange(folder, build_index(sets, backend, folder, metric, options), "built")
    with ExitStack() as stack:
        engine = None
        if on_ray:
            from retrieval.index.on_ray import segments_on_cluster

            stack.enter_context(quiet_libraries(output.debug))
            engine = stack.enter_context(segments_on_cluster(parts.address))
        show = stack.enter_context(output.progress("index", "part"))
        facts = build_segments(
            sets, backend, folder, parts.parts, metric, options, engine, progress=show
        )
    return IndexChange(folder, facts, "built")


def _build_best(
    output: Output,
    sets: "list[Embeddings]",
    folder: "Place",
    metric: "Metric",
    auto: AutoTarget,
) -> IndexChange:
    """Build the fastest index that reaches the target, and print how it was chosen."""
    from retrieval.index.auto.tuning import build_best
    from retrieval.quality.words.texts import is_texts, text_queries
    from retrieval.storage.sets.embeddings import open_embeddings

    target = auto.target()
    queries: Embeddings | Vectors | None = None
    if auto.queries is not None and is_texts(auto.queries):
        queries = text_queries(auto.queries, sets[0].facts.encoder).vectors
    elif auto.queries is not None:
        queries = open_embeddings(auto.queries)
    budget = limit("--budget", auto.budget, SECONDS)
    seed = auto.seed or 0
    with output.steps() as step:
        facts, tuning = build_best(
            sets,
            folder,
            target,
            metric=metric,
            queries=queries,
            seed=seed,
            budget=budget,
            progress=step,
        )
    print_tuning(output, tuning)
    return IndexChange(folder, facts, "built", tuning)


def _print(output: Output, done: IndexChange, seconds: float) -> None:
    facts = done.facts
    output.say(
        f"{plural(facts.rows, 'row')} of {facts.dim} dimensions in {done.folder}\n"
        f"{facts.backend}, {facts.metric}, {done.verb} in {duration(seconds)}, "
        f"{size(facts.size_in(done.folder))}"
    )
    settings = {**facts.options, **facts.details}
    if settings:
        output.say(", ".join(f"{name} {value}" for name, value in settings.items()))
    wanted = 1.0 if done.tuning is None else done.tuning.target.recall
    recall = facts.poor_recall
    if recall is None or recall >= wanted:
        return
    remedies = [f"build with --backend {AUTO}"]
    if facts.efforts:
        remedies.insert(0, f"raise {' or '.join(facts.efforts)} with --set, here or at search")
    output.warn(
        f"recall@10 is {recall:.3f} on a sample of the index's rows; {', or '.join(remedies)}"
    )


def _document(done: IndexChange, seconds: float) -> "dict[str, JsonValue]":
    facts = done.facts
    tuning: dict[str, JsonValue] = {}
    if done.tuning is not None:
        tuning = {"tuning": done.tuning.to_json()}
    return tuning | {
        "out": str(done.folder),
        "change": done.verb.partition(" ")[0],
        "backend": facts.backend,
        "metric": str(facts.metric),
        "rows": facts.rows,
        "dim": facts.dim,
        "options": dict(facts.options),
        "details": dict(facts.details),
        "seconds": seconds,
        "size_bytes": facts.size_in(done.folder),
    }
