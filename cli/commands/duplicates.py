"""`retr duplicates`: near-identical images within a set, or between two."""

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
    from retrieval.pairs.duplicates import Found
    from retrieval.workspace import Workspace

SHOWN = 20  # pairs in the table
MOST_DRAWN = 100  # pairs on a sheet


@command(threads=True, max_megapixels=True)
def duplicates(
    output: Output,
    workspace: "Workspace",
    embeddings: Annotated[
        str | None,
        typer.Argument(
            metavar="DIR",
            help="The embeddings folder.  [default: the last that was encoded]",
        ),
    ] = None,
    between: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A B",
            help="Two embeddings folders, such as of test and train, in place of one: pairs of an "
            "image of A and one of B.",
        ),
    ] = None,
    neighbors: Annotated[
        int,
        typer.Option("-k", help="How many neighbors of each image to compare with it by pixels."),
    ] = 10,
    correlation: Annotated[
        float,
        typer.Option(
            help="Least correlation of the pixels of near-identical images; less than 0.95 also "
            "lets single pixels differ by more, as those of crops do."
        ),
    ] = 0.95,
    metric: MetricName = None,
    out: Annotated[Path | None, typer.Option(help="Write all pairs into this CSV.")] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Draw the pairs that are most alike into this PNG."),
    ] = None,
) -> None:
    """Find near-identical images: proposed by embeddings, confirmed by pixels.

    Each image is compared with its nearest neighbors, as it is and mirrored. Copies in another
    size, format or quality are found; images that differ in a part or in brightness are not.

    Example: retr duplicates --between test-embeddings train-embeddings --sheet duplicates.png
    """
    from retrieval.errors import BadInput
    from retrieval.index.folder import check_same_encoder
    from retrieval.pairs.duplicates import find_duplicates
    from retrieval.quality.labelled import Labelled
    from retrieval.storage.files import write_csv
    from retrieval.storage.shards import open_embeddings
    from retrieval.workspace import Role

    if between is not None and embeddings is not None:
        raise BadInput("an embeddings folder and --between were given; give one of them")
    if between is None:
        folders = [embeddings or workspace.needed(Role.EMBEDDINGS, "retr encode", "EMBEDDINGS")]
    else:
        folders = [*between]
    opened = [open_embeddings(folder) for folder in folders]
    first = opened[0]
    for other in opened[1:]:
        where = str(first.folder), str(other.folder)
        check_same_encoder(first.facts.encoder, other.facts.encoder, *where)
    sets = []
    for each in opened:
        rows, vectors = each.read()
        ids, labels = rows["id"].to_pylist(), rows["label"].to_pylist()
        sets.append(Labelled(vectors, ids, labels, rows["path"]))
    with output.progress("reading", "img") as show:
        found = find_duplicates(
            sets[0],
            None if between is None else sets[1],
            parsed_metric(metric) or first.facts.metric,
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

        drawn = found.duplicates[:MOST_DRAWN]
        draw_duplicates(sheet, found, drawn, first.facts.encoder.title)
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


def _print(output: Output, found: "Found") -> None:
    shown = found.duplicates[:SHOWN]
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
    if len(found.duplicates) > SHOWN:
        output.say(f"… and {len(found.duplicates) - SHOWN:,} more")
    output.say(
        f"{plural(len(found.duplicates), 'pair')} of near-identical images among "
        f"{plural(found.compared, 'pair')} of neighbours whose pixels were compared"
    )
    if found.compared < found.proposed:
        output.say(f"{found.proposed - found.compared:,} pairs further apart were not compared")
