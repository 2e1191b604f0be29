"""`retr plot`: plots of embeddings, of trainings and of pairs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cli.command import command
from cli.options import Seed
from cli.output import Output
from cli.tables import GROUP_TITLES

if TYPE_CHECKING:
    from retrieval.storage.places import Place
    from retrieval.workspace import Workspace

SCATTER = "scatter"
MAX_DIMS = 12
TEXT_COLUMNS = ("scored_on",)  # columns of a log that hold no numbers


WhatArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="WHAT",
        help="Embeddings folder, folder of a trained encoder or its log.csv, or a "
        "pairs.json.  [default: the last embeddings]",
    ),
]

MethodOption = Annotated[
    str,
    typer.Option(
        help="Plot of embeddings: pca, umap (needs 'retr[plots]'), or scatter (the first "
        "dimensions against each other)."
    ),
]

DimsOption = Annotated[
    int | None,
    typer.Option(
        help="With --method scatter: number of dimensions.  [default: 5, or all if there "
        "are fewer]",
    ),
]

LimitOption = Annotated[int, typer.Option(help="Maximum number of embeddings, drawn at random.")]


@command()
def plot(
    output: Output,
    workspace: "Workspace",
    what: WhatArgument = None,
    out: Annotated[Path, typer.Option(help="Picture to write; .png or .svg.")] = Path("plot.png"),
    method: MethodOption = "pca",
    dims: DimsOption = None,
    limit: LimitOption = 10_000,
    seed: Seed = 0,
) -> None:
    """Plot embeddings, training curves, or the ROC of pairs.

    Example: retr plot test-embeddings --method umap --out map.svg
    """
    from retrieval.drawing.plots import check_picture
    from retrieval.errors import BadInput
    from retrieval.storage.cards import LOG, is_trained
    from retrieval.storage.places import place_of
    from retrieval.workspace import Role

    check_picture(out)
    given = place_of(what) if what else workspace.needed(Role.EMBEDDINGS, "retr encode", "WHAT")
    here = given if isinstance(given, Path) else None
    log = here / LOG if here and is_trained(here) else here
    if log and log != here and not log.is_file():
        raise BadInput(f"{given} has no {LOG}; give a folder written by 'retr train'")
    if log and log.suffix == ".csv":
        _plot_log(log, out)
        kind = "curves"
    elif here and here.suffix == ".json":
        _plot_pairs(here, out)
        kind = "roc"
    elif given.is_dir():
        kind = method
        _plot_embeddings(given, out, method, dims, limit, seed)
    else:
        raise BadInput(
            f"{given} cannot be plotted; give an embeddings folder, a log.csv or a pairs.json"
        )
    output.say(f"drawn: {out}")
    output.document({"out": str(out), "kind": kind})


def _plot_log(file: Path, out: Path) -> None:
    import csv

    from retrieval.drawing.plots import draw_curves
    from retrieval.errors import BadData

    try:
        with file.open(newline="", encoding="utf-8") as text:
            rows = [
                {
                    name: value if name in TEXT_COLUMNS else _number(value)
                    for name, value in row.items()
                }
                for row in csv.DictReader(text)
            ]
        draw_curves(out, rows)
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise BadData(
            f"{file} is not a training log ({error}); give one written by 'retr train'"
        ) from None


def _number(text: str) -> float:
    """Return the number in a cell of the log; NaN for an empty cell."""
    return float(text) if text else float("nan")


def _plot_pairs(file: Path, out: Path) -> None:
    from retrieval.drawing.plots import draw_roc
    from retrieval.errors import BadData
    from retrieval.storage.files import read_json

    try:
        curves = cast(dict[str, Any], read_json(file)["roc"])
        draw_roc(out, {GROUP_TITLES.get(name, name): points for name, points in curves.items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadData(
            f"{file} has no ROC ({error}); give a pairs.json written by 'retr pairs --out'"
        ) from None


def _plot_embeddings(
    folder: "Place", out: Path, method: str, dims: int | None, limit: int, seed: int
) -> None:
    from retrieval.drawing.layout import Layout, laid_out
    from retrieval.drawing.plots import draw_map, draw_scatter_matrix
    from retrieval.errors import BadInput, UnknownName
    from retrieval.quality.labelled import Labelled
    from retrieval.storage.sets.embeddings import open_embeddings

    if method not in (SCATTER, *Layout):
        raise UnknownName("method", method, (SCATTER, *Layout))
    if limit < 1:
        raise BadInput(f"--limit {limit} is below 1; give 1 or more")
    opened = open_embeddings(folder)
    images = Labelled.of(opened).sample(limit, seed)
    facts = opened.facts
    title = f"{len(images):,} of {facts.source.name} by {facts.encoder.title}"
    if method == SCATTER:
        most = min(MAX_DIMS, facts.dim)
        if most < 2:
            raise BadInput(f"{folder} has one dimension, and a plot needs 2; give other embeddings")
        dims = min(5, most) if dims is None else dims
        if not 2 <= dims <= most:
            raise BadInput(f"--dims {dims} is out of range; give 2 to {most}")
        vectors = images.vectors[:, :dims]
        draw_scatter_matrix(out, vectors, images.labels, f"dimensions 1 to {dims}, {title}")
    else:
        points = laid_out(images.vectors, Layout(method), facts.metric, seed)
        draw_map(out, points, images.labels, f"{method.upper()}, {title}")
