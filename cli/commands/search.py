"""`retr search`: the images nearest to images and to words."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.collections import encoded
from cli.command import command
from cli.onnx_cache import keep_for_searches
from cli.options import (
    Device,
    EngineOptions,
    ImageColumn,
    LabelColumn,
    SearchOptions,
    Where,
    parsed_options,
)
from cli.output import Output, distinguishable, plural
from retrieval.errors import BadInput
from retrieval.values import shortened

if TYPE_CHECKING:
    from retrieval.contracts import Encoder
    from retrieval.contracts import Json as JsonValue
    from retrieval.images.source import Note
    from retrieval.images.tables.choice import Columns
    from retrieval.index.searching import QueryHits, Searcher
    from retrieval.storage.places import Place
    from retrieval.storage.sets.manifest import Skipped
    from retrieval.workspace import Workspace


QueriesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="QUERY...",
        help="Image files, folders, globs, or FILE#ROW for a row of a table; or words. What looks "
        "like a path is never taken as words.",
    ),
]


@dataclass(frozen=True, slots=True)
class WordOptions:
    """The options that join images and words to one query."""

    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="WORDS",
            help="Words for what the images should show. With --text or --not, all that is given "
            "is one query. Repeatable.",
        ),
    ] = None
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--not", metavar="WORDS", help="Words for what they should not show. Repeatable."
        ),
    ] = None
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            metavar="PART=NUMBER",
            help="Weight of a part of such a query: images, text or not. Repeatable.  [default: "
            "images=1, text=1, not=0.5]",
        ),
    ] = None

    def search(
        self,
        searcher: "Searcher",
        queries: list[str],
        k: int | None,
        where: str | None,
        note: "Note",
        columns: "Columns",
    ) -> "tuple[list[QueryHits], list[Skipped]]":
        """Return the hits of each query, or of all joined, and the images not read."""
        from retrieval.embedding.query import parsed_weights
        from retrieval.index.asking import search_each, search_joined

        if not (self.text or self.without):
            return search_each(searcher, queries, k, where, note, columns)
        words = self.text or [], self.without or [], parsed_weights(self.weight or [])
        return [search_joined(searcher, queries, *words, k, where, note, columns)], []

    def takes_words(self, queries: list[str]) -> bool:
        """Return whether there are any words."""
        from retrieval.embedding.queries import is_words

        return bool(self.text or self.without) or any(map(is_words, queries))

    def check(self, queries: list[str]) -> None:
        """Raise BadInput if nothing is asked for, before an index is opened."""
        from retrieval.index.asking import check_asked

        check_asked(queries, bool(self.text or self.without), self.weight or [])


KOption = Annotated[
    int | None,
    typer.Option(
        "-k",
        help="Number of neighbors.  [default: 10, or all rows if there are fewer]",
    ),
]

IndexOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Index folder to search.  [default: the last one built]",
    ),
]

InOption = Annotated[
    str | None,
    typer.Option(
        "--in",
        metavar="FOLDER",
        help="Folder of images to search. Its embeddings and index are kept in the workspace, or "
        "else in the user's data folder, and are brought up to date first.",
    ),
]

MaxDistance = Annotated[
    float | None, typer.Option(help="Return only images at this distance or nearer.")
]

PathsOption = Annotated[
    bool, typer.Option("--paths", help="Print only the paths of the images found, one a line.")
]

NullOption = Annotated[
    bool,
    typer.Option("--null", "-0", help="End each path with a NUL, not a newline; implies --paths."),
]

ShowOption = Annotated[
    str | None,
    typer.Option(
        "--show",
        metavar="COLUMN,…",
        help="Show these columns of the images found, such as taken,camera.",
    ),
]

SheetOption = Annotated[
    Path | None,
    typer.Option(help="Draw the queries and their neighbors into this PNG file."),
]

EncoderOption = Annotated[
    str | None,
    typer.Option(
        help="Encoder of the query images; it must be the encoder of the index.  [default: "
        "the index's]",
    ),
]

PreviewOption = Annotated[
    bool, typer.Option("--preview", help="Draw the neighbors in the terminal.")
]


@command(threads=True, max_megapixels=True, root=True)
def search(
    output: Output,
    workspace: "Workspace",
    queries: QueriesArgument = None,
    k: KOption = None,
    index: IndexOption = None,
    inside: InOption = None,
    max_distance: MaxDistance = None,
    where: Where = None,
    show: ShowOption = None,
    sheet: SheetOption = None,
    encoder: EncoderOption = None,
    preview: PreviewOption = False,
    paths: PathsOption = False,
    null: NullOption = False,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    options: SearchOptions = None,
    device: Device = "auto",
    *,
    words: WordOptions,
    spread: EngineOptions,
) -> None:
    """Find the images nearest to each query: an image, or words.

    Words need an index whose encoder takes them, such as clip:ViT-B-32-256.

    With --in, the folder is encoded and indexed first. Later searches encode only files that are
    new or have changed.

    Example: retr search img.png --in photos/

    Example: retr search "a dog on a beach" --in photos/

    Example: retr search beach.jpg --text "at night" --not people

    Example: retr search img.png --in photos/ --paths -0 | xargs -0 cp -t similar/

    Example: retr search img.png -k 10 --where 'label = cat' --sheet neighbors.png

    Example: retr search img.png --where "taken >= 2024-05 and width > height" --show taken
    """
    from retrieval.images.tables.choice import Columns
    from retrieval.index.searching import Searcher
    from retrieval.registry import open_encoder

    asked = queries or []
    words.check(asked)
    paths = paths or null
    if paths and output.json:
        raise BadInput("--paths and --json exclude each other; give one of them")
    cluster = spread.cluster()
    folder, opened = _index_folder(
        output, workspace, index, inside, encoder, device, words.takes_words(asked)
    )
    if opened is None and encoder is not None:
        opened = open_encoder(encoder, device)
    searcher = Searcher.open(
        folder, parsed_options(options), opened, device, spread.engine, cluster
    )
    shown = _Shown.of(searcher, show)
    columns = Columns(image_column, label_column)
    answers, skipped = words.search(searcher, asked, k, where, output.warn, columns)
    answers = [answer.within(max_distance) for answer in answers]
    for bad in skipped:
        output.warn(f"skipped {bad.path}: {bad.reason}")
    if paths:
        output.paths((hit.path for answer in answers for hit in answer.hits if hit.path), null)
    else:
        _print(output, answers, len(skipped), shown)
    _warn_of_gone(output, answers)
    _draw(output, answers, str(folder), sheet, preview)
    output.document([shown.to_json(answer) for answer in answers])
    if (by_name := searcher.embedder.opened_by_name) is not None:
        keep_for_searches(output, by_name)


def _index_folder(
    output: Output,
    workspace: "Workspace",
    index: str | None,
    inside: str | None,
    encoder: str | None,
    device: str,
    words: bool,
) -> "tuple[Place, Encoder | None]":
    """Return the index to search, and its encoder if it was opened. --in brings it up to date."""
    from retrieval.storage.places import place_of
    from retrieval.workspace import Role

    if inside is None:
        place = place_of(index) if index else workspace.needed(Role.INDEX, "retr index", "--index")
        return place, None
    if index is not None:
        raise BadInput("--in and --index exclude each other; give one of them")
    from retrieval.collection import indexed_collection

    found, chosen = encoded(output, workspace, inside, encoder, device, words)
    return indexed_collection(found.embeddings, chosen), found.encoder


def _warn_of_gone(output: Output, answers: "list[QueryHits]") -> None:
    """Say once that images are no longer where they were."""
    from retrieval.images.reading import is_gone

    paths = dict.fromkeys(hit.path for answer in answers for hit in answer.hits if hit.path)
    gone = [path for path in paths if is_gone(path)]
    if gone:
        output.warn(
            f"{len(gone):,} of {plural(len(paths), 'image')} found are not where they were, such "
            f"as {gone[0]}; if their folder was moved, name the new one with --root, or once and "
            "for all with retr relocate"
        )


def _draw(
    output: Output, answers: "list[QueryHits]", heading: str, sheet: Path | None, preview: bool
) -> None:
    """Draw queries and neighbors in the terminal, into a file, or both."""
    preview = preview and output.for_people and sys.stdout.isatty()
    if not preview and sheet is None:
        return
    from cli.pictures import draw_sheet, pictured  # slow to import

    pictures = pictured(
        [answer.name for answer in answers],
        [answer.path for answer in answers],
        [answer.label for answer in answers],
        [answer.hits for answer in answers],
    )
    if preview:
        from cli.preview import show, shows_blocks

        if shows_blocks():
            show(pictures)
        else:
            output.warn("--preview needs a terminal in UTF-8; use --sheet to draw into a file")
    if sheet is not None:
        draw_sheet(sheet, pictures, heading)
        output.say(f"drawn: {sheet}")


@dataclass(frozen=True, slots=True)
class _Shown:
    """The columns that are shown of each hit."""

    searcher: "Searcher"
    names: list[str]

    @classmethod
    def of(cls, searcher: "Searcher", show: str | None) -> "_Shown":
        """Return the columns of the option --show. Raises UnknownName before the search."""
        names = [] if show is None else [name.strip() for name in show.split(",")]
        if names:  # the libraries that read columns are slow to import
            searcher.columns([], names)
        return cls(searcher, names)

    def of_hits(self, answer: "QueryHits") -> "list[dict[str, JsonValue]]":
        """Return the values of the columns for each hit."""
        if not self.names:
            return [{} for _ in answer.hits]
        return self.searcher.columns([hit.id for hit in answer.hits], self.names)

    def to_json(self, answer: "QueryHits") -> "dict[str, JsonValue]":
        """Return the document of an answer; hits have `columns` if any are shown."""
        document = answer.to_json()
        if self.names:
            hits = zip(answer.hits, self.of_hits(answer), strict=True)
            document["hits"] = [hit.to_json() | {"columns": columns} for hit, columns in hits]
        return document


def _cell(value: "JsonValue") -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else str(value)


def _print(output: Output, answers: "list[QueryHits]", skipped: int, shown: _Shown) -> None:
    for answer in answers:
        _print_hits(output, answer, shown)
    if skipped:
        output.say(f"{plural(skipped, 'image')} could not be read")


def _print_hits(output: Output, answer: "QueryHits", shown: _Shown) -> None:
    label = "" if answer.label is None else f" ({answer.label})"
    output.say(f"{answer.name if answer.path else shortened(answer.name)}{label}")
    if not answer.hits:
        output.say("nothing found\n")
        return
    distances = distinguishable([hit.distance for hit in answer.hits])
    output.table(
        ("rank", "distance", "label", "id", *shown.names, "path"),
        [
            (
                *(str(hit.rank), distance, hit.label or "–", hit.id),
                *map(_cell, columns.values()),
                hit.path or "–",
            )
            for hit, distance, columns in zip(
                answer.hits, distances, shown.of_hits(answer), strict=True
            )
        ],
        left=5 + len(shown.names),
    )
    output.say()
