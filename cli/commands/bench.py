"""`retr bench`: what each index costs, and what it loses."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.evaluate import Database, Queries
from cli.options import Debug, Json, MetricName, Quiet, WorkspaceFolder, parsed_metric
from cli.output import Output, duration, size

if TYPE_CHECKING:
    from benchmarks.suite.report import Change
    from benchmarks.suite.run import SuiteReport
    from retrieval.contracts import Json as JsonValue
    from retrieval.contracts import Metric
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.ranking import Rows
    from retrieval.storage.shards import Embeddings
    from retrieval.workspace import Workspace

HELD_OUT = 1000  # rows that serve as queries where there is no test split


def bench(
    queries: Queries = None,
    database: Database = None,
    backends: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            help="A backend to measure; may be repeated.  [default: exact, ivf, hnsw, hnsw-pca, "
            "ivfpq, those of them that have the metric]",
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
    full: Annotated[
        bool, typer.Option("--full", help="A finer grid, with one thread and with all.")
    ] = False,
    threads: Annotated[
        list[str] | None,
        typer.Option(
            help="Threads of each build and search, a number or all; may be repeated.  "
            "[default: 1]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws held-out queries, and seeds the backends.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for the report: bench.json, .csv, .md, .png, .html (needs "
            "'retr[plots]'), and what each query took.",
            show_default=False,
        ),
    ] = None,
    compared: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            metavar="OLD NEW",
            help="Measure nothing, and say what changed between two reports.",
            show_default=False,
        ),
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
    from benchmarks.suite import hdf5 as ann_benchmarks
    from benchmarks.suite import report as reports
    from benchmarks.suite.grid import FULL, QUICK, read_grid
    from benchmarks.suite.run import default_backends, run
    from retrieval.errors import BadInput
    from retrieval.quality.metrics import DEFINITIONS
    from retrieval.storage.files import made_folder

    output = Output(json, quiet)
    if compared is not None:
        if any((queries, database, backends, metric, grid, hdf5, export_hdf5, full, threads, out)):
            raise BadInput("--compare measures nothing; leave the other options away")
        _compare(output, *compared)
        return
    if full and grid is not None:
        raise BadInput("--full is a grid of its own; leave it or --grid away")
    n_threads = _threads(threads or (["1", "all"] if full else ["1"]))
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
            backends or default_backends(data.metric),
            grid=read_grid(grid or (FULL if full else QUICK)),
            threads=n_threads,
            seed=seed,
            neighbors=data.neighbors,
            progress=step,
        )
    document: dict[str, JsonValue] = {"format": reports.FORMAT, "version": reports.VERSION}
    document |= report.to_json()
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
        written = reports.write(folder, document, report.by_query, table(report))
        output.say(f"written into {folder}: {', '.join(path.name for path in written)}")
        if all(path.suffix != ".html" for path in written):
            output.warn("no bench.html, for there is no plotly; pip install 'retr[plots]'")
    output.document(document)


def print_report(output: Output, report: "SuiteReport") -> None:
    """Print the table, and the conditions that its numbers hold under."""
    data = report.data
    output.say(
        f"{data['queries']:,} queries against {data['database']:,} vectors of {data['dim']} "
        f"dimensions, {data['metric']}; {report.machine['cpu']}"
    )
    header, *lines = table(report)
    output.table(header, lines, left=2)
    output.say("*: on the Pareto front of recall@10 and queries per second in batches")


def table(report: "SuiteReport") -> list[list[str]]:
    """A header, and a line for each row of the report."""
    from benchmarks.suite.grid import named

    header = (
        "backend", "setting", "threads", "recall@1", "@10", "@100", "mAP@100", "mAP lost",
        "batch q/s", "single q/s", "p50 ms", "p95", "p99", "p99.9", "build", "file", "memory",
    )  # fmt: skip
    lines = [
        [
            row.backend + (" *" if row.pareto else ""),
            named(row.setting),
            str(row.threads),
            *(f"{row.recall_at[k]:.4f}" for k in (1, 10, 100)),
            "–" if row.map_at is None else f"{row.map_at[100]:.4f}",
            "–" if row.map_loss is None else f"{row.map_loss:+.4f}",
            f"{row.qps:,.0f}",
            f"{row.qps_single:,.0f}",
            *(f"{value:.3f}" for value in row.latency_ms.values()),
            duration(row.build_seconds),
            size(row.size_bytes),
            "–" if row.memory_bytes is None else size(row.memory_bytes),
        ]
        for row in report.rows
    ]
    return [[*header], *lines]


def _threads(given: list[str]) -> list[int]:
    from benchmarks.suite.machine import cores
    from retrieval.errors import BadInput

    found = []
    for text in given:
        if text != "all" and not text.isdecimal():
            raise BadInput(f"--threads cannot be '{text}'; give a number, or all")
        found.append(len(cores()) if text == "all" else int(text))
    return [*dict.fromkeys(found)]


def _compare(output: Output, old: Path, new: Path) -> None:
    """Print what changed from one report to another."""
    from benchmarks.suite import report

    before, after = report.read(old), report.read(new)
    changes = report.compare(before, after)
    for name in ("cpu", "cores"):
        if before["machine"].get(name) != after["machine"].get(name):
            output.warn(
                f"the machines differ ({name}: {before['machine'].get(name)}, "
                f"{after['machine'].get(name)}), and so may their speeds"
            )
    beyond = [change for change in changes if change.better is not None]
    ratio = report.median_speedup(changes)
    output.say(
        f"{len(beyond)} of {len(changes)} measures changed beyond noise; in the median of all "
        f"settings, batches are {ratio:.2f} times as fast"
    )
    if beyond:
        output.table(
            ("backend", "setting", "threads", "measure", "before", "after", "", ""),
            [
                (
                    change.backend,
                    change.setting,
                    str(change.threads),
                    change.measure,
                    f"{change.before:,.4g}",
                    f"{change.after:,.4g}",
                    _difference(change),
                    "better" if change.better else "worse",
                )
                for change in beyond
            ],
            left=4,
        )
    output.document({"ratio": ratio, "changes": [change.to_json() for change in changes]})


def _difference(change: "Change") -> str:
    """As a factor; of shares, which may be 0, as a difference."""
    if change.measure.startswith(("recall", "mAP")):
        return f"{change.after - change.before:+.4f}"
    return f"× {change.after / change.before:.2f}"


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
    queries: str | None,
    database: str | None,
    metric: "Metric | None",
    seed: int,
    workspace: Path | None,
) -> _Data:
    """Embeddings of a test split against those of a database, or rows held out of it."""
    from retrieval.index.folder import check_same_encoder
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
    from benchmarks.suite import hdf5

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
