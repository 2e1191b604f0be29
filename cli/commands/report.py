"""`retr report`: an encoder and its indices, as one HTML file."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.commands.evaluate import NAMES, Database, Queries, opened_sides, protocol_sides
from cli.options import (
    MetricName,
    parsed_metric,
)
from cli.output import Output

if TYPE_CHECKING:
    from retrieval.drawing.figures import Picture
    from retrieval.drawing.report import Bench
    from retrieval.quality.evaluation import Evaluation
    from retrieval.quality.labelled import Labelled
    from retrieval.storage.shards import Embeddings
    from retrieval.workspace import Workspace

KS = (1, 5, 10, 100)
SHOWN = 10  # neighbours of a query
MOST_CLASSES = 50  # whose confusions can be looked at
EXTREMES = 6  # queries of the best and of the worst
ROWS = {"precision_at": "P@k", "recall_at": "recall@k", "map_at": "mAP@k", "ndcg_at": "nDCG@k"}


@command(threads=True, max_megapixels=True)
def report(
    output: Output,
    workspace: "Workspace",
    queries: Queries = None,
    database: Database = None,
    bench: Annotated[
        Path | None,
        typer.Option(
            help="What 'retr bench --out' wrote: its table and plot stand in the report.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    metric: MetricName = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="official, unseen, hashing-54k or hashing-59k.  [default: all queries, the whole "
            "database]",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Of the map: pca, or umap (needs 'retr[plots]').")
    ] = "pca",
    limit: Annotated[int, typer.Option(min=4, help="Points on the map, drawn by seed.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
) -> None:
    """Write a report: measures, classes, curves, best and worst queries, a map, and indices.

    Example: retr report --queries test --database train --bench bench --out report.html
    """
    import numpy as np

    from retrieval.drawing.layout import Layout, laid_out
    from retrieval.drawing.report import Report, write_report
    from retrieval.errors import UnknownName
    from retrieval.quality.curves import confusion, extremes, precision_recall
    from retrieval.quality.evaluation import evaluate
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.metrics import DEFINITIONS

    asked, searched = opened_sides(queries, database, workspace)
    if method not in [*Layout]:
        raise UnknownName("method", method, [*Layout])
    measured = None if bench is None else _bench(bench, searched.facts.encoder.name)
    chosen = protocol_sides(output, protocol, asked, searched, seed, None, whole=False)
    left, right = (
        (Labelled.of(asked), Labelled.of(searched))
        if chosen is None
        else (chosen.queries, chosen.database)
    )
    compared_by = parsed_metric(metric) or searched.facts.metric
    result = evaluate(left, right, compared_by, KS, SHOWN)
    few = len(result.per_class) <= MOST_CLASSES
    labels, shares = confusion(result, right) if few else ([], np.empty((0, 0)))
    best, worst = extremes(result, EXTREMES)
    drawn = right.sample(limit, seed)
    mappable = len(drawn) > 3 and drawn.vectors.shape[1] > 1
    points = laid_out(drawn.vectors, Layout(method), compared_by, seed) if mappable else None
    encoder = searched.facts.encoder
    made = Report(
        title=f"{encoder.title} on {searched.facts.source.name}",
        facts={
            "encoder": f"{encoder.name} ({encoder.fingerprint[:8]})",
            "metric": str(compared_by),
            "queries": f"{result.queries:,} of {asked.facts.source.name}",
            "database": f"{result.database:,} of {searched.facts.source.name}",
            **({} if chosen is None else {"protocol": str(chosen.protocol)}),
        },
        overall=_overall(result),
        measures=_measures(result),
        classes=_classes(result),
        labels=labels,
        confusion=shares,
        curves=precision_recall(left, right, compared_by),
        best=_gallery(result, left, right, best),
        worst=_gallery(result, left, right, worst),
        points=points,
        point_labels=drawn.labels,
        map_title=f"{len(drawn):,} images of the database by {method.upper()}",
        definitions={name: DEFINITIONS[name] for name in result.defined},
        commands=_commands(asked, searched, bench),
        bench=measured,
        notes=_notes(result),
    )
    write_report(out, made)
    output.say(f"written: {out}")
    output.document({"out": str(out), "map": result.map, "queries": result.queries})


def _overall(result: "Evaluation") -> dict[str, str]:
    """The measures of full rankings, with half of their intervals."""
    found = {}
    for key, name in NAMES.items():
        margin = result.margin(key)
        found[name] = f"{result.means[key]:.4f}" + ("" if margin is None else f" ± {margin:.4f}")
    return found


def _measures(result: "Evaluation") -> tuple[list[str], list[list[str]]]:
    lines = []
    for key, name in ROWS.items():
        line = [name]
        for k, value in getattr(result, key).items():
            margin = result.margin(key, k)
            line.append(f"{value:.4f}" + ("" if margin is None else f" ± {margin:.4f}"))
        lines.append(line)
    return ["k", *(f"{k:,}" for k in result.ks)], lines


def _classes(result: "Evaluation") -> tuple[list[str], list[list[str]]]:
    header = ["class", "queries", "mAP", *(f"P@{k}" for k in result.ks)]
    return header, [
        [label, f"{of.queries:,}", "–" if of.map is None else f"{of.map:.4f}"]
        + [f"{of.precision_at[k]:.4f}" for k in result.ks]
        for label, of in result.per_class.items()
    ]


def _notes(result: "Evaluation") -> list[str]:
    notes = []
    if result.unlabelled:
        notes.append(f"{result.unlabelled:,} queries have no label, and were left out.")
    if result.without_relevant:
        notes.append(f"{result.without_relevant:,} queries have nothing to find: left out.")
    return notes


def _gallery(
    result: "Evaluation",
    queries: "Labelled",
    database: "Labelled",
    chosen: Sequence[int],
) -> "list[tuple[Picture, list[Picture]]]":
    """The chosen queries, as rows of `per_query`, with pictures of their first neighbours."""
    from cli.pictures import opened
    from retrieval.drawing.figures import Picture

    of = result.per_query
    column = of.columns.index("map")
    row_of = {id_: row for row, id_ in enumerate(queries.ids)}
    asked_paths, found_paths = queries.known_paths(), database.known_paths()
    rows = []
    for i in chosen:
        asked = row_of[of.ids[i]]
        note = f"AP {of.values[i, column]:.3f}"
        query = Picture(opened(asked_paths[asked]), of.labels[i], note)
        hits = []
        for rank, row in enumerate((row for row in of.rows[i].tolist() if row >= 0), start=1):
            label = database.labels[row]
            right = None if label is None else label == of.labels[i]
            hits.append(Picture(opened(found_paths[row]), label or "–", f"{rank}", right))
        rows.append((query, hits))
    return rows


def _bench(place: Path, encoder: str) -> "Bench":
    """The table and the plot of a bench. Raises Mismatch for one of another encoder."""
    from benchmarks.suite import report as benches
    from retrieval.drawing.report import Bench
    from retrieval.errors import BadInput, Mismatch

    document = benches.read(place)
    data, folder = document["data"], place if place.is_dir() else place.parent
    if data["encoder"] != encoder:
        raise Mismatch(
            f"{place} measured indices of {data['encoder']}, and the embeddings are of {encoder}; "
            "give a bench of the same"
        )
    table, plot = folder / f"{benches.NAME}.md", folder / f"{benches.NAME}.png"
    if not table.is_file():
        raise BadInput(f"{table} is not there; give a folder that 'retr bench --out' wrote")
    lines = [line for line in table.read_text("utf-8").splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    counts = data["counts"]
    return Bench(
        header,
        rows,
        plot.read_bytes() if plot.is_file() else None,
        f"{counts['queries']:,} queries against {counts['database']:,} vectors of {data['dim']} "
        f"dimensions, {data['metric']}; {document['machine']['cpu']}",
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
