"""`retr duplicates`: near-identical images in one set, or between two sets, and which to keep."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import MetricName, parsed_choice, parsed_metric
from cli.output import Output, distinguishable, plural

if TYPE_CHECKING:
    from retrieval.contracts import Json
    from retrieval.pairs.duplicates import Duplicate, Duplicates
    from retrieval.pairs.groups import Groups
    from retrieval.quality.labelled import Labelled
    from retrieval.storage.sets.embeddings import Embeddings
    from retrieval.workspace import Workspace

MAX_ROWS_SHOWN = 20  # in a table
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

AsIsOption = Annotated[
    bool,
    typer.Option("--as-is", help="Leave out mirrored and rotated copies."),
]

CropsOption = Annotated[
    bool,
    typer.Option(
        "--crops",
        help="Also find crops: images that show a rectangle of another, with 50 to 95% of its "
        "width or height.",
    ),
]

KeepOption = Annotated[
    str,
    typer.Option(
        help="Image of a group to keep: largest (most pixels), oldest, newest or first (by id)."
    ),
]


@dataclass(frozen=True, slots=True)
class Files:
    """Files that the command writes."""

    out: Annotated[Path | None, typer.Option(help="Write all pairs to this CSV file.")] = None
    csv: Annotated[
        Path | None,
        typer.Option(help="Write the images to keep and to remove to this CSV file."),
    ] = None
    page: Annotated[
        Path | None,
        typer.Option(help="Write an HTML page that shows each group side by side."),
    ] = None
    sheet: Annotated[
        Path | None, typer.Option(help="Draw the most similar pairs into this PNG file.")
    ] = None


@command(threads=True, max_megapixels=True, root=True)
def duplicates(
    output: Output,
    workspace: "Workspace",
    embeddings: EmbeddingsArgument = None,
    between: BetweenOption = None,
    keep: KeepOption = "largest",
    as_is: AsIsOption = False,
    crops: CropsOption = False,
    neighbors: NeighborsOption = 10,
    correlation: CorrelationOption = 0.95,
    metric: MetricName = None,
    *,
    files: Files,
) -> None:
    """Find near-identical images, and the one of each group to keep. Nothing is deleted.

    Exact copies are found by a hash of the files. Other images are compared pixel by pixel: with
    their nearest neighbors, and with images whose thumbnails are similar, also mirrored or rotated
    by 90, 180 or 270 degrees. This finds copies in another size, format or quality. It does not
    find images that differ in a part or clearly in brightness.

    With --crops, an image is also a duplicate if it is near-identical to a rectangle of one of its
    neighbors, at any scale. Each side of the rectangle has at least 50% of the whole image's side,
    and one has at most 95%. The rectangle is not mirrored or rotated. The whole image is kept.

    Example: retr duplicates --keep oldest --page duplicates.html --csv duplicates.csv
    """
    from retrieval.pairs.duplicates import find_duplicates
    from retrieval.pairs.exact_copies import current_contents
    from retrieval.pairs.groups import Keep, find_groups
    from retrieval.pairs.likeness import AS_IT_IS, TURNS
    from retrieval.pairs.stored import stored_thumbnails

    chosen = parsed_choice("keep", keep, Keep)
    _check_folders(files)
    opened = _open(workspace, embeddings, between)
    sets = [_images(each) for each in opened]
    with output.progress("reading", "img") as show:
        found = find_duplicates(
            sets[0],
            None if between is None else sets[1],
            parsed_metric(metric) or opened[0].facts.metric,
            neighbors=neighbors,
            least=correlation,
            turns=(AS_IT_IS,) if as_is else TURNS,
            crops=crops,
            contents=current_contents(opened),
            stored=stored_thumbnails(opened),
            progress=show,
        )
    groups = find_groups(found, chosen)
    for error in (*found.unreadable, *groups.unreadable):
        output.warn(f"skipped {error}")
    _print(output, found, groups)
    _write(output, files, found, groups, opened[0].facts.encoder.title)
    output.document(_document(found, groups))


def _check_folders(files: Files) -> None:
    """Raise BadInput for a file whose folder is missing, before the work."""
    from retrieval.errors import BadInput

    for file in (files.out, files.csv, files.page, files.sheet):
        if file is not None and not file.parent.is_dir():
            raise BadInput(f"{file.parent} is not a folder; make it, or name another file")


def _open(
    workspace: "Workspace", embeddings: str | None, between: tuple[Path, Path] | None
) -> "list[Embeddings]":
    """Return the embeddings of one folder, or of the two of --between."""
    from retrieval.errors import BadInput
    from retrieval.storage.sets.compatible import common_facts
    from retrieval.storage.sets.embeddings import open_embeddings
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


def _document(found: "Duplicates", groups: "Groups") -> "Json":
    sets = [found.first] if found.first is found.second else [found.first, found.second]
    return {
        "groups": groups.to_json(),
        "pairs": [*found.rows()],
        "duplicates": [*found.rows()],
        "images": [len(each) for each in sets],
        "compared": found.compared,
        "proposed": found.proposed,
        "unreadable": [str(error) for error in (*found.unreadable, *groups.unreadable)],
    }


def _print(output: Output, found: "Duplicates", groups: "Groups") -> None:
    """Print the groups, or the pairs of two sets, and a summary."""
    from retrieval.units import size

    if found.first is found.second:
        rows = _print_groups(output, groups)
    else:
        rows = _print_pairs(output, found)
    if rows > MAX_ROWS_SHOWN:
        output.say(f"… and {rows - MAX_ROWS_SHOWN:,} more")
    exact = sum(pair.exact for pair in found.duplicates)
    cut = sum(pair.crop is not None for pair in found.duplicates)
    output.say(
        f"{plural(len(found.duplicates) - exact - cut, 'pair')} of near-identical images among "
        f"{plural(found.compared, 'pair')} of neighbors that were compared by pixels; "
        f"{plural(exact, 'pair')} of exact copies"
        + (f"; {plural(cut, 'crop')}" if found.cropping else "")
    )
    if found.compared < found.proposed:
        output.say(
            f"{found.proposed - found.compared:,} pairs at larger distances were not compared"
        )
    if groups.groups:
        removed = sum(len(group.remove) for group in groups.groups)
        freed = sum(group.bytes for group in groups.groups)
        output.say(
            f"{plural(len(groups.groups), 'group')}: {plural(removed, 'image')} to remove"
            f"{f', {size(freed)}' if freed else ''}; nothing was deleted"
        )


def _print_groups(output: Output, groups: "Groups") -> int:
    """Print the first images to remove, each with the one to keep; return the number of all."""
    from retrieval.units import size

    rows = [(group.keep, image) for group in groups.groups for image in group.remove]
    output.table(
        ("keep", "remove", "", "correlation", "pixels", "size"),
        [
            (
                keep.id,
                image.id,
                "exact copy" if image.exact else image.match.in_words(),
                f"{image.match.correlation:.4f}",
                f"{image.facts.width}×{image.facts.height}",
                "–" if image.facts.bytes is None else size(image.facts.bytes),
            )
            for keep, image in rows[:MAX_ROWS_SHOWN]
        ],
        left=3,
    )
    return len(rows)


def _print_pairs(output: Output, found: "Duplicates") -> int:
    """Print the most similar pairs of two sets; return the number of all."""
    shown = found.duplicates[:MAX_ROWS_SHOWN]
    distances = distinguishable([pair.distance for pair in shown])
    output.table(
        ("correlation", "distance", "", "a", "label", "b", "label"),
        [
            (
                f"{pair.correlation:.4f}",
                distance,
                _relation(pair),
                str(found.first.ids[pair.first]),
                found.first.labels[pair.first] or "–",
                str(found.second.ids[pair.second]),
                found.second.labels[pair.second] or "–",
            )
            for pair, distance in zip(shown, distances, strict=True)
        ],
        left=7,
    )
    return len(found.duplicates)


def _relation(pair: "Duplicate") -> str:
    """Return how the images of a pair differ, in words."""
    from retrieval.pairs.likeness import Turn

    if pair.crop:
        return "b is a crop of a" if pair.crop.of_first else "a is a crop of b"
    return "exact copy" if pair.exact else Turn(pair.mirrored, pair.rotated).in_words()


def _write(
    output: Output, files: Files, found: "Duplicates", groups: "Groups", encoder: str
) -> None:
    """Write the files that were asked for."""
    from retrieval.pairs.groups import COLUMNS
    from retrieval.storage.files import write_csv

    if files.out is not None:
        write_csv(files.out, found.rows())
        output.say(f"written: {files.out}")
    if files.csv is not None:
        write_csv(files.csv, groups.rows(), COLUMNS)
        output.say(f"written: {files.csv}")
    if files.page is not None:
        from retrieval.drawing.duplicates_page import write_duplicates_page  # slow to import

        count = write_duplicates_page(files.page, groups, "Near-identical images")
        output.say(f"written: {files.page}, {plural(count, 'group')}")
    if files.sheet is not None:
        from cli.pictures import draw_duplicates  # slow to import

        drawn = found.duplicates[:MAX_PAIRS_DRAWN]
        draw_duplicates(files.sheet, found, drawn, encoder)
        output.say(f"drawn: {files.sheet}, {plural(len(drawn), 'pair')}")
