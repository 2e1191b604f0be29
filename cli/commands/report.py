"""`retr report`: the quality of an encoder and its indices, as one HTML file."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import Database, MetricName, Queries, Seed, parsed_choice, parsed_metric
from cli.output import Output
from cli.sides import open_folders, open_sides

if TYPE_CHECKING:
    from retrieval.drawing.report import Bench
    from retrieval.storage.sets.embeddings import Embeddings
    from retrieval.workspace import Workspace


@command(threads=True, max_megapixels=True, root=True)
def report(
    output: Output,
    workspace: "Workspace",
    queries: Queries = None,
    database: Database = None,
    bench: Annotated[
        Path | None,
        typer.Option(
            help="Folder written by 'retr bench --out', to include its table and plot.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    metric: MetricName = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Protocol: official, unseen, hashing-54k or hashing-59k.  [default: all "
            "queries, the whole database]",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Layout of the map: pca, or umap (needs 'retr[plots]').")
    ] = "pca",
    limit: Annotated[
        int, typer.Option(min=4, help="Maximum number of points on the map, drawn at random.")
    ] = 10_000,
    seed: Seed = 0,
) -> None:
    """Write an HTML report of a retrieval evaluation.

    It shows measures, classes, curves, the best and worst queries, a map, and indices.

    Example: retr report --queries test --database train --bench bench --out report.html
    """
    from retrieval.drawing.evaluation_report import ReportSettings, evaluation_report
    from retrieval.drawing.layout import Layout
    from retrieval.drawing.report import write_report

    asked, searched = folders = open_folders(workspace, queries, database)
    layout = parsed_choice("method", method, Layout)
    measured = None if bench is None else _bench(bench, searched.facts.encoder.name)
    sides = open_sides(output, folders, protocol, seed)
    settings = ReportSettings(parsed_metric(metric), layout, limit, seed)
    commands = _commands(asked, searched, bench)
    made, result = evaluation_report(asked, searched, sides, settings, commands, measured)
    write_report(out, made)
    output.say(f"written: {out}")
    output.document({"out": str(out), "map": result.map, "queries": result.queries})


def _bench(place: Path, encoder: str) -> "Bench":
    """Return the table and the plot of a bench. Raises Mismatch for one of another encoder."""
    from benchmarks.suite import report as benches
    from benchmarks.suite.table import measured_on
    from retrieval.drawing.report import Bench
    from retrieval.errors import Mismatch

    document = benches.read(place)
    data = document["data"]
    if data["encoder"] != encoder:
        raise Mismatch(
            f"{place} was measured with encoder {data['encoder']}, and the embeddings are of "
            f"{encoder}; give a bench of the same encoder"
        )
    plot = (place if place.is_dir() else place.parent) / f"{benches.NAME}.png"
    header, *lines = benches.table_of(document, place)
    counts = data["counts"]
    return Bench(
        header,
        lines,
        plot.read_bytes() if plot.is_file() else None,
        measured_on(counts["queries"], counts["database"], data, document["machine"]["cpu"]),
    )


def _commands(asked: "Embeddings", searched: "Embeddings", bench: Path | None) -> list[str]:
    lines = []
    for each in dict.fromkeys((searched.folder, asked.folder)):
        facts = (searched if each == searched.folder else asked).facts
        name, _, split = facts.source.name.rpartition("/")
        source = [name, "--split", split] if split in ("train", "test") else [facts.source.name]
        parts = ["retr", "encode", *source, "--encoder", facts.encoder.name]
        if facts.source.first_of is not None:
            parts += ["--limit", str(facts.source.images)]
        if facts.dtype != "float32":
            parts += ["--dtype", str(facts.dtype)]
        lines.append(shlex.join([*parts, "--out", str(each)]))
    if bench is not None:
        parts = ["--queries", str(asked.folder), "--database", str(searched.folder)]
        lines.append(
            shlex.join(
                ["retr", "bench", *parts, "--out", str(bench if bench.is_dir() else bench.parent)]
            )
        )
    return [*lines, shlex.join(["retr", *sys.argv[1:]])]
