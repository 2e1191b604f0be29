"""`retr index`: embeddings to a searchable index."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import (
    Debug,
    Json,
    MetricName,
    Options,
    Quiet,
    WorkspaceFolder,
    parsed_metric,
    parsed_options,
)
from cli.output import Output, duration, plural, size


def index(
    embeddings: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Embeddings folders, indexed as one.  [default: the last that was encoded]",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="exact, ivf, hnsw, hnsw-sq, ivfpq, faiss, or a plug-in's name.")] = "hnsw",
    metric: MetricName = None,
    options: Options = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The index folder.  [default: one in the workspace]", show_default=False),
    ] = None,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Build an index over embeddings.

    An index that stands in the folder already is replaced once the new one is whole.

    Example: retr index --backend hnsw --set m=32 --set ef=200
    """
    import time

    from retrieval.indexing import build_index
    from retrieval.storage.shards import open_embeddings
    from retrieval.workspace import Role, Workspace

    output = Output(json, quiet)
    place = Workspace.at(workspace)
    folders = embeddings or [place.needed(Role.DATABASE, "retr encode", "EMBEDDINGS")]
    sets = [open_embeddings(folder) for folder in folders]
    chosen = parsed_metric(metric) or sets[0].facts.metric
    folder = out or place.index_folder(folders[0], backend, chosen)
    started = time.perf_counter()
    facts = build_index(sets, backend, folder, chosen, parsed_options(options))
    seconds = time.perf_counter() - started
    if out is None or place.folder.is_dir():
        place.remember(Role.INDEX, folder)

    n_bytes = sum((folder / name).stat().st_size for name in facts.files)
    settings = {**facts.options, **facts.details}
    output.say(
        f"{plural(facts.rows, 'row')} of {facts.dim} dimensions in {folder}\n"
        f"{backend}, {facts.metric}, built in {duration(seconds)}, {size(n_bytes)}"
    )
    if settings:
        output.say(", ".join(f"{name} {value}" for name, value in settings.items()))
    output.document(
        {
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
