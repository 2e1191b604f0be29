"""`retr index`: embeddings to a searchable index."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import (
    Address,
    MetricName,
    Options,
    is_ray,
    parsed_metric,
    parsed_options,
)
from cli.output import Output, plural
from retrieval.units import BYTES, SECONDS, duration, parse_quantity, size

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.index.build_segments import Engine
    from retrieval.index.folder import IndexFacts
    from retrieval.index.tuning import Trial, Tuning
    from retrieval.workspace import Workspace

AUTO = "auto"


@command(threads=True)
def index(
    output: Output,
    workspace: "Workspace",
    embeddings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DIR",
            help="Embeddings folders, indexed as one.  [default: the last that was encoded]",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="exact, ivf, hnsw, hnsw-pca, ivfpq, vamana, faiss, milvus, or a plug-in's name; "
            "or auto: the fastest that reaches a recall, by measurement.  [default: hnsw]",
        ),
    ] = None,
    metric: MetricName = None,
    options: Options = None,
    target_recall: Annotated[
        float | None,
        typer.Option(
            help="For auto: the recall of the nearest neighbours to reach.  [default: 0.95]",
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(help="For auto: such as 2GB, or 500MB."),
    ] = None,
    max_latency: Annotated[
        str | None,
        typer.Option(
            help="For auto, that 95 of 100 queries may take: such as 1ms, or 200us.",
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", help="For auto: how many neighbours.  [default: 10]"),
    ] = None,
    batches: Annotated[
        bool,
        typer.Option(
            "--batches",
            help="For auto: choose by the time of many queries in one call, not of single ones.",
        ),
    ] = False,
    queries: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="For auto: embeddings to measure with.  [default: some of the rows]",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="For auto: of what is drawn.  [default: 0]"),
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Build it in so many parts, side by side, each of a group of the embeddings' "
            "shards; they are searched as one.  [default: one index]",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What builds the parts: local, by processes of this machine; or ray, by a Ray "
            "cluster (pip install 'retr[ray]')."
        ),
    ] = "local",
    address: Address = None,
    add: Annotated[
        bool,
        typer.Option("--add", help="Add the embeddings as further rows to the index that stands."),
    ] = False,
    delete: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Delete rows from the index that stands, such as 'label=cat' or 'id=a.png,b.png'.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="The index folder.  [default: one in the workspace]",
        ),
    ] = None,
) -> None:
    """Build an index over embeddings.

    An index that stands in the folder already is replaced once the new one is whole.

    Example: retr index --backend hnsw --set m=32 --set ef=200

    Example: retr index --backend auto --target-recall 0.99 --max-memory 2GB

    Example: retr index --parts 8 --out s3://bucket/index s3://bucket/embeddings

    Example: retr index --add more-embeddings
    """
    import time

    from retrieval.errors import BadInput
    from retrieval.index.folder import IndexFacts, build_index
    from retrieval.storage.places import place_of
    from retrieval.storage.shards import open_embeddings
    from retrieval.workspace import Role

    wanted = (target_recall, max_memory, max_latency, k, batches or None, queries, seed)
    if backend != AUTO and any(value is not None for value in wanted):
        raise BadInput(
            f"what an index must reach is for --backend {AUTO}; {backend or 'hnsw'} is built as "
            "--set says"
        )
    on_ray = is_ray(engine, address)
    if on_ray and not parts:
        raise BadInput("a cluster builds an index in parts; say in how many with --parts")
    if backend == AUTO and parts:
        raise BadInput(f"--backend {AUTO} builds one index; name the backend of the parts")
    if backend == AUTO and options:
        raise BadInput(f"--backend {AUTO} chooses the options; leave --set away")
    if add or delete is not None:
        if backend is not None or metric is not None or options or parts:
            raise BadInput(
                "an index that stands keeps its backend, metric and options; leave them away"
            )
        if delete is not None and (add or embeddings):
            raise BadInput("--delete takes no embeddings; add rows by another command")
    started = time.perf_counter()
    tuning: Tuning | None = None
    changed = False
    if delete is not None:
        from retrieval.index.update import delete_rows

        folder = place_of(out) if out else workspace.needed(Role.INDEX, "retr index", "--out")
        facts = delete_rows(folder, delete)
    else:
        sets = (
            [open_embeddings(each) for each in embeddings]
            if embeddings
            else [open_embeddings(workspace.needed(Role.DATABASE, "retr encode", "EMBEDDINGS"))]
        )
        measure = parsed_metric(metric) or sets[0].facts.metric
        if add:
            from retrieval.index.update import add_rows

            folder = place_of(out) if out else workspace.needed(Role.INDEX, "retr index", "--out")
            before = IndexFacts.read(folder)
            facts = add_rows(folder, sets)
            changed = facts != before
            if not changed:
                output.say("they are there already: nothing to do")
        else:
            name = backend or "hnsw"
            folder = place_of(out) if out else workspace.index_folder(sets[0].folder, name, measure)
            if name == AUTO:
                from retrieval.index.tuning import Target, build_best

                target = Target(
                    0.95 if target_recall is None else target_recall,
                    10 if k is None else k,
                    _limit("--max-memory", max_memory, BYTES),
                    _limit("--max-latency", max_latency, SECONDS),
                    batches,
                )
                asked = None if queries is None else open_embeddings(queries)
                with output.steps() as step:
                    facts, tuning = build_best(
                        sets,
                        folder,
                        target,
                        metric=measure,
                        queries=asked,
                        seed=seed or 0,
                        progress=step,
                    )
                _print(output, tuning)
            elif parts is not None:
                from cli.quiet import quiet_libraries
                from retrieval.index.build_segments import build_parts

                chosen = parsed_options(options)
                with (
                    quiet_libraries(output.debug) if on_ray else nullcontext(),
                    output.progress("index", "part") as show,
                    cluster_of_parts(address) if on_ray else nullcontext() as by,
                ):
                    facts = build_parts(
                        sets, name, folder, parts, measure, chosen, by, progress=show
                    )
            else:
                facts = build_index(sets, name, folder, measure, parsed_options(options))
    seconds = time.perf_counter() - started
    if out is None or workspace.folder.is_dir():
        workspace.remember(Role.INDEX, folder)

    n_bytes = facts.size_in(folder)
    settings = {**facts.options, **facts.details}
    done = "changed" if delete or (add and changed) else "left as it was" if add else "built"
    output.say(
        f"{plural(facts.rows, 'row')} of {facts.dim} dimensions in {folder}\n"
        f"{facts.backend}, {facts.metric}, {done} in {duration(seconds)}, {size(n_bytes)}"
    )
    if settings:
        output.say(", ".join(f"{name} {value}" for name, value in settings.items()))
    _warn_of_poor_recall(output, facts, 1.0 if tuning is None else tuning.target.recall)
    document: dict[str, JsonValue] = {} if tuning is None else {"tuning": tuning.to_json()}
    output.document(
        document
        | {
            "out": str(folder),
            "backend": facts.backend,
            "metric": str(facts.metric),
            "rows": facts.rows,
            "dim": facts.dim,
            "options": dict(facts.options),
            "details": dict(facts.details),
            "seconds": seconds,
            "size_bytes": n_bytes,
        }
    )


@contextmanager
def cluster_of_parts(address: str | None) -> "Iterator[Engine]":
    """An engine for parts on the cluster at the address, as `cluster.connected` has it."""
    from retrieval.runtime.ray import connected, crew_here, run_tasks

    with connected(address):
        cpus = crew_here("cpu").cpus
        yield lambda build, tasks: run_tasks(build, tasks, cpus)


def _warn_of_poor_recall(output: Output, facts: "IndexFacts", wanted: float) -> None:
    """Warn where the measured recall is poor, and lower than what is wanted."""
    recall = facts.poor_recall
    if recall is None or recall >= wanted:
        return
    raised = f"raise {' or '.join(facts.efforts)} with --set, here or at search" * bool(
        facts.efforts
    )
    remedies = [each for each in (raised, f"build with --backend {AUTO}") if each]
    output.warn(
        f"recall@10 is {recall:.3f} for some of the index's own rows; {', or '.join(remedies)}"
    )


def _limit(option: str, text: str | None, units: dict[str, float]) -> float | None:
    return None if text is None else parse_quantity(option, text, units)


def _print(output: Output, tuning: "Tuning") -> None:
    """What was tried, what stands now, and why."""
    target = tuning.target
    for problem in tuning.failed:
        output.warn(f"not measured: {problem}")
    if tuning.trials:
        whose = "rows held out of the samples" if tuning.held_out else "the given embeddings"
        output.say(f"{tuning.queries:,} queries: {whose}")
        output.table(
            ("backend", "setting", "rows", f"recall@{target.k}", "q/s", "p95 ms", "size", ""),
            [_line(trial, trial.verdict) for trial in tuning.trials]
            + [_line(trial, trial.verdict or "chosen") for trial in tuning.checked],
            left=2,
        )
    output.say(tuning.reason)


def _line(trial: "Trial", remark: str) -> tuple[str, ...]:
    setting = " ".join(f"{name}={value}" for name, value in trial.setting.items())
    return (
        trial.backend,
        setting,
        f"{trial.rows:,}",
        f"{trial.recall:.4f}",
        f"{1 / trial.seconds:,.0f}",
        f"{1000 * trial.latency:.3f}",
        size(trial.size_bytes),
        remark,
    )
