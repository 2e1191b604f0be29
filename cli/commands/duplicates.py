"""`retr duplicates`: near-identical images in one set, or between two sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import (
    MetricName,
    parsed_metric,
)
from cli.output import Output, distinguishable, plural

if TYPE_CHECKING:
    from retrieval.pairs.duplicates import Duplicates
    from retrieval.quality.labelled import Labelled
    from retrieval.storage.embeddings import Embeddings
    from retrieval.workspace import Workspace

MAX_PAIRS_SHOWN = 20  # in the table
MAX_PAIRS_DRAWN = 100  # on a sheet


EmbeddingsArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="DIR",
        help="Embeddings folder.  [default: the last one encoded]",
    ),
]

BetweenOption = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        metavar="A B",
        help="Two embeddings folders, such as a test split and a training split: find pairs "
        "of an image of A and one of B.",
    ),
]

NeighborsOption = Annotated[
    int,
    typer.Option("-k", help="Number of neighbors of each image to compare by pixels."),
]

CorrelationOption = Annotated[
    float,
    typer.Option(
        help="Minimum correlation of the pixels. Below 0.95, single pixels may also differ "
        "more, as in crops."
    ),
]

SheetOption = Annotated[
    Path | None,
    typer.Option(help="Draw the most similar pairs into this PNG file."),
]


@command(threads=True, max_megapixels=True, root=True)
def duplicates(
    output: Output,
    workspace: "Workspace",
    embeddings: EmbeddingsArgument = None,
    between: BetweenOption = None,
    neighbors: NeighborsOption = 10,
    correlation: CorrelationOption = 0.95,
    metric: MetricName = None,
    out: Annotated[Path | None, typer.Option(help="Write all pairs to this CSV file.")] = None,
    sheet: SheetOption = None,
) -> None:
    """Find near-identical images.

    Each image is compared with its nearest neighbors, pixel by pixel, as it is and mirrored. This
    finds copies in another size, format or quality. It does not find images that differ in a part
    or clearly in brightness.

    Example: retr duplicates --between test-embeddings train-embeddings --sheet duplicates.png
    """
    from retrieval.pairs.duplicates import find_duplicates
    from retrieval.storage.files import write_csv

    opened = _open(workspace, embeddings, between)
    first = opened[0].facts
    sets = [_images(each) for each in opened]
    with output.progress("reading", "img") as show:
        found = find_duplicates(
            sets[0],
            None if between is None else sets[1],
            parsed_metric(metric) or first.metric,
            neighbors=neighbors,
            least=correlation,
            progress=show,
        )
    for error in found.unreadable:
        output.warn(f"skipped {error}")
    _print(output, found)
    if out is not None:
        write_csv(out, found.rows())
        output.say(f"written: {out}")
    if sheet is not None:
        from cli.pictures import draw_duplicates  # slow to import

        drawn = found.duplicates[:MAX_PAIRS_DRAWN]
        draw_duplicates(sheet, found, drawn, first.encoder.title)
        output.say(f"drawn: {sheet}, {plural(len(drawn), 'pair')}")
    output.document(
        {
            "duplicates": [*found.rows()],
            "images": [len(each) for each in sets],
            "compared": found.compared,
            "proposed": found.proposed,
            "unreadable": [str(error) for error in found.unreadable],
        }
    )


def _open(
    workspace: "Workspace", embeddings: str | None, between: tuple[Path, Path] | None
) -> "list[Embeddings]":
    """Return the embeddings of one folder, or of the two of --between."""
    from retrieval.errors import BadInput
    from retrieval.storage.compatible import common_facts
    from retrieval.storage.embeddings import open_embeddings
    from retrieval.workspace import Role

    if between is None:
        folder = embeddings or workspace.needed(Role.EMBEDDINGS, "retr encode", "EMBEDDINGS")
        return [open_embeddings(folder)]
    if embeddings is not None:
        raise BadInput("an embeddings folder and --between exclude each other; give one of them")
    opened = [open_embeddings(folder) for folder in between]
    common_facts(opened)  # raises Mismatch for two encoders
    return opened


def _images(embeddings: "Embeddings") -> "Labelled":
    """Return the images under the ids of their folder, without its name."""
    from retrieval.quality.labelled import Labelled

    rows, vectors = embeddings.read()
    ids, labels = rows["id"].to_pylist(), rows["label"].to_pylist()
    return Labelled(vectors, ids, labels, rows["path"])


def _print(output: Output, found: "Duplicates") -> None:
    shown = found.duplicates[:MAX_PAIRS_SHOWN]
    distances = distinguishable([pair.distance for pair in shown])
    output.table(
        ("correlation", "distance", "", "a", "label", "b", "label"),
        [
            (
                f"{pair.correlation:.4f}",
                distance,
                "mirrored" if pair.mirrored else "",
                str(found.first.ids[pair.first]),
                found.first.labels[pair.first] or "–",
                str(found.second.ids[pair.second]),
                found.second.labels[pair.second] or "–",
            )
            for pair, distance in zip(shown, distances, strict=True)
        ],
        left=7,
    )
    if len(found.duplicates) > MAX_PAIRS_SHOWN:
        output.say(f"… and {len(found.duplicates) - MAX_PAIRS_SHOWN:,} more")
    output.say(
        f"{plural(len(found.duplicates), 'pair')} of near-identical images among "
        f"{plural(found.compared, 'pair')} of neighbors that were compared by pixels"
    )
    if found.compared < found.proposed:
        output.say(
            f"{found.proposed - found.compared:,} pairs at larger distances were not compared"
        )
