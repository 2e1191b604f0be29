"""Arguments of a search: words, or images as files, folders, globs, URLs and rows of containers."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

from retrieval.errors import BadInput
from retrieval.images import Item
from retrieval.images.pixels.decoding import SUFFIXES
from retrieval.images.source import Note, no_note
from retrieval.images.tables.choice import NO_CHOICE, Columns
from retrieval.storage.places import place_of

ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")  # of a file's name
MAX_PATH_CHARACTERS = 4096  # of Linux


def is_words(given: str) -> bool:
    """Return whether an argument is words to search for, not an image.

    It is, unless a file or folder has this name or it looks like a path: it has a slash, a `*`, a
    `[`, a `#`, an ending such as `.jpg`, or begins with a dot or a tilde. So a path that is
    mistyped is an error, and no search in words.
    """
    looks = given.startswith((".", "~")) or any(mark in given for mark in "/\\*[#")
    if looks or not given.strip() or ENDING.search(given):
        return False
    return len(given) > MAX_PATH_CHARACTERS or not _exists(given)


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False


@dataclass(frozen=True, slots=True, eq=False)
class QueryImage:
    """One image to search for.

    name: as the user wrote it; the path, for an image of a folder.
    path: where `read_image` finds it.
    label: its class, if its source has one.
    image: what `Embedder.embed` takes.
    """

    name: str
    path: str
    label: str | None
    image: Item | str


def query_images(
    given: str | Path | Sequence[str | Path], note: Note = no_note, columns: Columns = NO_CHOICE
) -> Iterator[QueryImage]:
    """Yield the images that the arguments stand for, in the order given.

    A folder or glob stands for all images in it; a single path is a list of one. `note` and
    `columns` are as for `open_source`.

    Raises BadInput for an empty name, BadSource for a folder that holds no images.
    """
    for each in [given] if isinstance(given, str | Path) else given:
        yield from _images(str(each), note, columns)


def _images(given: str, note: Note, columns: Columns) -> Iterator[QueryImage]:
    """Yield the images that one argument stands for."""
    if not given:  # Path("") is the current folder
        raise BadInput("an image has an empty name; give a file, a folder or a glob")
    if "://" in given:
        is_one = "#" in given or place_of(given).suffix.lower() in SUFFIXES
        if is_one and not has_magic(given):
            yield QueryImage(given, given, None, given)
        else:
            yield from _images_in(given, note, columns)
        return
    path = Path(given)
    if path.is_dir():  # even if a data set has the same name
        yield from _images_in(str(path.absolute()), note, columns)
    elif any(c in given for c in "*?[") and not path.exists():
        yield from _images_in(given, note, columns)
    elif "#" in given and not path.exists():
        yield QueryImage(given, given, None, given)
    else:
        yield QueryImage(given, str(path.absolute()), None, str(path.absolute()))


def _images_in(given: str, note: Note, columns: Columns) -> Iterator[QueryImage]:
    """Yield the images of a folder or glob, named by their paths."""
    # A search for single files does not read folders and tables, and does not wait for their code.
    from retrieval.images import open_source
    from retrieval.images.folders.listing import listed, said_of

    source = open_source(given, note=note, columns=columns)
    found = listed(source)
    if found is not None and found.left_out.passed_over:
        note(said_of(found.left_out.passed_over))
    for item in source.items():
        yield QueryImage(item.path, item.path, item.label, item)
