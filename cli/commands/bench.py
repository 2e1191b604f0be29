"""`retr bench`: recall, speed, size and lost mAP of indices."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import Database, MetricName, Seed, parsed_metric
from cli.output import Output
from cli.tables import print_bench

if TYPE_CHECKING:
    from benchmarks.suite.data import BenchData
    from benchmarks.suite.report import Change
    from benchmarks.suite.run import SuiteReport
    from retrieval.contracts import Metric
    from retrieval.workspace import Workspace


BackendsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        help="Backend to measure. Repeatable.  [default: exact, ivf, hnsw, hnsw-pca and "
        "ivfpq, those that support the metric]",
    ),
]

GridOption = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of options to try for each backend.  [default: a quick grid]",
    ),
]

Hdf5Option = Annotated[
    Path | None,
    typer.Option(
        help="Measure on the vectors of an ann-benchmarks file instead of embeddings (needs "
        "'retr[hdf5]').",
    ),
]

ExportHdf5Option = Annotated[
    Path | None,
    typer.Option(
        help="Write queries, database and 100 true neighbors of each query as an "
        "ann-benchmarks file, without measuring.",
    ),
]

FullOption = Annotated[
    bool, typer.Option("--full", help="Use a finer grid, with one thread and with all threads.")
]

ThreadsOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Number of threads for builds and searches, or all. Repeatable.  [default: 1]",
    ),
]

BenchQueries = Annotated[
    str | None,
    typer.Option(
        "--queries",
        metavar="DIR|FILE",
        help="Embeddings folder of the queries, or a CSV file with a column text: queries in "
        "words.  [default: the last test split]",
    ),
]

OutOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the report: bench.json, .csv, .md, .png, .html (needs "
        "'retr[plots]'), and the measurements of each query.",
    ),
]

ComparedOption = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        "--compare",
        metavar="OLD NEW",
        help="Compare two reports, without measuring.",
    ),
]


@command()
def bench(
    output: Output,
    workspace: "Workspace",
    queries: BenchQueries = None,
    database: Database = None,
    backends: BackendsOption = None,
    metric: MetricName = None,
    grid: GridOption = None,
    hdf5: Hdf5Option = None,
    export_hdf5: ExportHdf5Option = None,
    full: FullOption = False,
    threads: ThreadsOption = None,
    seed: Seed = 0,
    out: OutOption = None,
    compared: ComparedOption = None,
) -> None:
    """Compare indices: recall, latency, size, memory and lost mAP.

    Without embeddings of a test split, 1,000 random rows of the database are held out as queries.

    Example: retr bench --backend exact --backend hnsw --threads 2
    """
    from benchmarks.suite import report as reports
    from benchmarks.suite.grid import FULL, QUICK, read_grid
    from benchmarks.suite.hdf5 import write
    from benchmarks.suite.run import default_backends, run
    from retrieval.errors import BadInput
    from retrieval.storage.files import made_folder

    if compared is not None:
        others = (queries, database, backends, metric, grid, hdf5, export_hdf5, full, threads, out)
        _compare(output, *compared, alone=not any(others))
        return
    if full and grid is not None:
        raise BadInput("--full and --grid exclude each other; leave one of them out")
    n_threads = _threads(threads or (["1", "all"] if full else ["1"]))
    data = _data(workspace, queries, database, hdf5, parsed_metric(metric), seed)
    if export_hdf5 is not None:
        write(export_hdf5, data.queries.vectors, data.database.vectors, data.metric)
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
    _print(output, report, data)
    document = reports.document_of(report, data)
    if folder is not None:
        _print_files(output, reports.write(folder, document, report.by_query))
    output.document(document)


def _data(
    workspace: "Workspace",
    queries: str | None,
    database: str | None,
    hdf5: Path | None,
    metric: "Metric | None",
    seed: int,
) -> "BenchData":
    from benchmarks.suite.data import (
        data_of_embeddings,
        data_of_hdf5,
        data_of_texts,
        latest_test_split,
    )
    from retrieval.errors import BadInput
    from retrieval.quality.words.texts import is_texts
    from retrieval.storage.sets.embeddings import open_embeddings
    from retrieval.workspace import Role

    if hdf5 is not None:
        if queries is not None or database is not None:
            raise BadInput("--hdf5 has queries and database; leave --queries and --database out")
        return data_of_hdf5(hdf5, metric)
    searched = open_embeddings(
        database or workspace.needed(Role.DATABASE, "retr encode", "--database")
    )
    if queries is not None and is_texts(queries):
        return data_of_texts(queries, searched, metric)
    asked = open_embeddings(queries) if queries else latest_test_split(workspace, searched)
    return data_of_embeddings(asked, searched, metric, seed)


def _threads(given: list[str]) -> list[int]:
    from benchmarks.suite.machine import cores
    from retrieval.errors import BadInput

    found = []
    for text in given:
        if text != "all" and not text.isdecimal():
            raise BadInput(f"--threads '{text}' is not a number; give a number, or all")
        found.append(len(cores()) if text == "all" else int(text))
    return [*dict.fromkeys(found)]


def _print(output: Output, report: "SuiteReport", data: "BenchData") -> None:
    from retrieval.quality.metrics import DEFINITIONS

    output.say(f"queries: {data.queries_name}\ndatabase: {data.database_name}")
    print_bench(output, report)
    output.say()
    for definition in ("index_recall_at", "map_at", "map_loss"):
        output.say(f"- {DEFINITIONS[definition]}")


def _print_files(output: Output, files: list[Path]) -> None:
    names = [path.name for path in files]
    output.say(f"written into {files[0].parent}: {', '.join(names)}")
    if "bench.html" not in names:
        output.warn("bench.html needs plotly; pip install 'retr[plots]'")


def _compare(output: Output, old: Path, new: Path, alone: bool) -> None:
    """Print the changes from one report to another. Raises BadInput unless the option is alone."""
    from benchmarks.suite import report
    from retrieval.errors import BadInput

    if not alone:
        raise BadInput("--compare takes no other options; leave them out")
    before, after = report.read(old), report.read(new)
    changes = report.compare(before, after)
    for name in ("cpu", "cores"):
        if before["machine"].get(name) != after["machine"].get(name):
            output.warn(
                f"the reports are of two machines ({name}: {before['machine'].get(name)}, "
                f"{after['machine'].get(name)}); their speeds are hard to compare"
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
    """Return the change as a factor, or as a difference for shares, which may be 0."""
    if change.measure.startswith(("recall", "mAP")):
        return f"{change.after - change.before:+.4f}"
    return f"× {change.after / change.before:.2f}"
