"""`retr bench`: what each index costs, and what it loses."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.evaluate import Database, Queries
from cli.options import Debug, Json, MetricName, Quiet, WorkspaceFolder, parsed_metric
from cli.output import Output, duration, size

if TYPE_CHECKING:
    from benchmarks.suite import Report
    from retrieval.contracts import Metric
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.ranking import Rows
    from retrieval.storage.shards import Embeddings
    from retrieval.workspace import Workspace

BACKENDS = ("exact", "ivf", "hnsw")
HELD_OUT = 1000  # rows that serve as queries where there is no test split


def bench(
    queries: Queries = None,
    database: Database = None,
    backends: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            help="A backend to measure; may be repeated.  [default: exact, ivf, hnsw]",
            show_default=False,
        ),
    ] = None,
    metric: MetricName = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file of options to try for each backend.  [default: a quick one]",
            show_default=False,
        ),
    ] = None,
    hdf5: Annotated[
        Path | None,
        typer.Option(
            help="Measure on the vectors of a file of ann-benchmarks, in place of embeddings "
            "(needs 'retr[hdf5]').",
            show_default=False,
        ),
    ] = None,
    export_hdf5: Annotated[
        Path | None,
        typer.Option(
            help="Write queries, database and 100 true neighbours of each query as such a file, "
            "and measure nothing.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each build and search.")] = 1,
    seed: Annotated[int, typer.Option(help="Draws held-out queries, and seeds the backends.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the results as bench.json into this folder.", show_default=False),
    ] = None,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure recall, latency, size, memory and lost mAP of indices side by side.

    Where there are no embeddings of a test split, 1,000 rows drawn by seed are held out of the
    database as queries.

    Example: retr bench --backend exact --backend hnsw --threads 2
    """
    from benchmarks import hdf5 as ann_benchmarks
    from benchmarks.grid import read_grid
    from benchmarks.suite import run
    from retrieval.errors import BadInput
    from retrieval.quality.metrics import DEFINITIONS
    from retrieval.storage.files import made_folder, write_json

    output = Output(json, quiet)
    if hdf5 is not None and (queries is not None or database is not None):
        raise BadInput("--hdf5 has queries and database; leave --queries and --database away")
    data = (
        _embeddings(queries, database, parsed_metric(metric), seed, workspace)
        if hdf5 is None
        else _vectors(hdf5, parsed_metric(metric))
    )
    if export_hdf5 is not None:
        asked, searched = data.queries.vectors, data.database.vectors
        ann_benchmarks.write(export_hdf5, asked, searched, data.metric)
        output.say(f"written: {export_hdf5}")
        output.document({"out": str(export_hdf5), "metric": data.metric.value})
        return
    folder = None if out is None else made_folder(out)

    with output.steps() as step:
        report = run(
            data.queries,
            data.database,
            data.metric,
            backends or BACKENDS,
            grid=None if grid is None else read_grid(grid),
            threads=threads,
            seed=seed,
            neighbors=data.neighbors,
            progress=step,
        )
    document = report.to_json()
    document["data"] = report.data | {
        "queries": data.queries_name,
        "database": data.database_name,
        "counts": {"queries": len(data.queries), "database": len(data.database)},
        "encoder": data.encoder,
    }
    output.say(f"queries: {data.queries_name}\ndatabase: {data.database_name}")
    print_report(output, report)
    output.say()
    for definition in ("index_recall_at", "map_at", "map_loss"):
        output.say(f"- {DEFINITIONS[definition]}")
    if folder is not None:
        write_json(folder / "bench.json", document)
        output.say(f"numbers: {folder / 'bench.json'}")
    output.document(document)


def print_report(output: Output, report: "Report") -> None:
    """Print the table, and the conditions that its numbers hold under."""
    data, conditions = report.data, report.conditions
    output.say(
        f"{data['queries']:,} queries against {data['database']:,} vectors of {data['dim']} "
        f"dimensions, {data['metric']}; threads: {conditions['threads']}; "
        f"{report.machine['cpu']}"
    )
    output.table(
        (
            "backend",
            "setting",
            "recall@1",
            "@10",
            "@100",
            "mAP@100",
            "mAP lost",
            "batch q/s",
            "single q/s",
            "p50 ms",
            "p95",
            "p99",
            "build",
            "file",
            "memory",
        ),
        [
            (
                row.backend,
                " ".join(f"{name}={value}" for name, value in row.setting.items()),
                *(f"{row.recall_at[k]:.4f}" for k in (1, 10, 100)),
                "–" if row.map_at is None else f"{row.map_at[100]:.4f}",
                "–" if row.map_loss is None else f"{row.map_loss:+.4f}",
                f"{row.qps:,.0f}",
                f"{row.qps_single:,.0f}",
                *(f"{row.latency_ms[p]:.3f}" for p in ("p50", "p95", "p99")),
                duration(row.build_seconds),
                size(row.size_bytes),
                "–" if row.memory_bytes is None else size(row.memory_bytes),
            )
            for row in report.rows
        ],
        left=2,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """What is measured on, and what it is called; encoder: None for vectors of others."""

    queries: "Labelled"
    database: "Labelled"
    metric: "Metric"
    queries_name: str
    database_name: str
    encoder: str | None = None
    neighbors: "Rows | None" = None


def _embeddings(
    queries: Path | None,
    database: Path | None,
    metric: "Metric | None",
    seed: int,
    workspace: Path | None,
) -> _Data:
    """Embeddings of a test split against those of a database, or rows held out of it."""
    from retrieval.indexing import check_same_encoder
    from retrieval.quality.labelled import Labelled
    from retrieval.storage.shards import open_embeddings
    from retrieval.workspace import Role, Workspace

    place = Workspace.at(workspace)
    searched = open_embeddings(database or place.needed(Role.DATABASE, "retr encode", "--database"))
    asked = open_embeddings(queries) if queries else _test_split(place, searched)
    if asked is None:
        held_out, rest = Labelled.of(searched).split_off(HELD_OUT, seed)
        name = f"{len(held_out):,} rows held out of {searched.folder}"
    else:
        check_same_encoder(
            asked.facts.encoder, searched.facts.encoder, str(asked.folder), str(searched.folder)
        )
        held_out, rest = Labelled.of(asked), Labelled.of(searched)
        name = str(asked.folder)
    facts = searched.facts
    chosen = metric or facts.metric
    return _Data(held_out, rest, chosen, name, str(searched.folder), facts.encoder.name)


def _vectors(file: Path, metric: "Metric | None") -> _Data:
    """The vectors of a file of ann-benchmarks."""
    from benchmarks import hdf5

    data = hdf5.read(file, metric)
    names = f"{file}: test", f"{file}: train"
    return _Data(data.queries, data.database, data.metric, *names, neighbors=data.neighbors)


def _test_split(place: "Workspace", database: "Embeddings") -> "Embeddings | None":
    """The workspace's last test split, if the same encoder made it from the same data set."""
    from retrieval.storage.shards import open_embeddings
    from retrieval.workspace import Role

    folder = place.latest(Role.QUERIES)
    if folder is None:
        return None
    found = open_embeddings(folder)
    same_encoder = found.facts.encoder.fingerprint == database.facts.encoder.fingerprint
    # Splits are named `cifar10/test`, or `FOLDER/test`: what stands before is the data set.
    sets = {each.facts.source.name.rpartition("/")[0] for each in (found, database)}
    return found if same_encoder and len(sets) == 1 and found.folder != database.folder else None
