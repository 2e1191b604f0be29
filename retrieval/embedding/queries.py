"""The images of a query: files, folders, globs and stored paths, read and framed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

import numpy as np

from retrieval.contracts import Framing, Images
from retrieval.errors import BadImage, BadInput
from retrieval.images import Item, frame, load, open_source, read_image
from retrieval.images.decoding import SUFFIXES
from retrieval.images.folders.listing import listed, said_of
from retrieval.images.source import Note, no_note
from retrieval.images.tables.choice import NO_CHOICE, Columns
from retrieval.storage.manifest import Skipped
from retrieval.storage.places import place_of


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Framed images (n, side, side, 3), with the name each was asked by, path, and label."""

    images: Images
    names: list[str]
    paths: list[str]
    labels: list[str | None]


def read_queries(
    given: str | Path | Sequence[str | Path],
    framing: Framing,
    note: Note = no_note,
    columns: Columns = NO_CHOICE,
) -> tuple[Queries, list[Skipped]]:
    """Return the images that could be read, in the order given, and those that could not.

    A folder or glob stands for all images in it; a single path is a list of one. `note` and
    `columns` are as for `open_source`.

    Raises BadImage if none could be read, the first one's reason, and BadSource for a folder that
    holds none.
    """
    names, paths, labels = [], [], []
    images: list[Images] = []
    skipped: list[Skipped] = []
    for each in [given] if isinstance(given, str | Path) else given:
        for item in _items(str(each), note, columns):
            try:
                # An item without content is one to be read by its path.
                pixels = (
                    frame(read_image(item.path, framing), framing)
                    if isinstance(item.content, bytes) and not item.content
                    else load(item, framing)
                )
            except BadImage as error:
                skipped.append(Skipped(error.path, error.reason))
                continue
            images.append(pixels)
            names.append(item.id)
            paths.append(item.path)
            labels.append(item.label)
    if not images:
        raise BadImage(skipped[0].path, skipped[0].reason + "; give an image that can be read")
    return Queries(np.stack(images), names, paths, labels), skipped


def _items(given: str, note: Note, columns: Columns) -> Iterator[Item]:
    """The images that one argument stands for."""
    if not given:  # which Path takes for the current folder
        raise BadInput("an image has an empty name; give a file, a folder or a glob")
    if "://" in given:
        is_one = "#" in given or place_of(given).suffix.lower() in SUFFIXES
        if is_one and not has_magic(given):
            yield Item(given, None, given, b"")
        else:
            yield from _found(given, note, columns)
        return
    path = Path(given)
    if path.is_dir():  # also one that is named as a data set
        yield from _found(str(path.absolute()), note, columns)
    elif any(c in given for c in "*?[") and not path.exists():
        yield from _found(given, note, columns)
    elif "#" in given and not path.exists():
        yield Item(given, None, given, b"")
    else:
        yield Item(given, None, str(path.absolute()), path)


def _found(given: str, note: Note, columns: Columns) -> Iterator[Item]:
    """The images of a folder or glob, by their paths."""
    source = open_source(given, note=note, columns=columns)
    found = listed(source)
    if found is not None and found.left_out.passed_over:
        note(said_of(found.left_out.passed_over))
    for item in source.items():
        yield Item(item.path, item.label, item.path, item.content)
