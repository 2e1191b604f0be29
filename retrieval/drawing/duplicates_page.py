"""Write a page to look through groups of duplicates, side by side."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from retrieval.drawing.galleries import open_picture
from retrieval.drawing.pages import embedded_picture, write_page
from retrieval.images.facts import is_local_file
from retrieval.pairs.groups import Group, GroupImage, Groups
from retrieval.runtime.threads import usable_cores
from retrieval.units import size

MAX_GROUPS = 500  # more would be hundreds of megabytes
MAX_REMOVED_SHOWN = 23  # of a group
PICTURE_SIDE = 160  # pixels


@dataclass(frozen=True, slots=True)
class _Tile:
    """An image on the page. source: of its <img>. link: to its file; None if it is not here."""

    title: str
    path: str
    facts: Sequence[str]
    note: str
    source: str | None
    is_small: bool
    link: str | None


@dataclass(frozen=True, slots=True)
class _Row:
    """A group on the page: its tiles, the kept image first. hidden: images without a tile."""

    tiles: Sequence[_Tile]
    images: int
    bytes: str
    hidden: int


def write_duplicates_page(path: Path, groups: Groups, title: str) -> int:
    """Write the HTML file, whole or not at all; return the number of groups on it.

    It shows the first MAX_GROUPS groups. Raises CannotWrite if it cannot be written.
    """
    shown = groups.groups[:MAX_GROUPS]
    with ThreadPoolExecutor(usable_cores()) as threads:
        rows = [*threads.map(_row, shown)]
    values = {
        "title": title,
        "groups": rows,
        "total": len(groups.groups),
        "remove": sum(len(group.remove) for group in groups.groups),
        "bytes": size(sum(group.bytes for group in groups.groups)),
    }
    write_page(path, "duplicates.html", values)
    return len(rows)


def _likeness(image: GroupImage) -> str:
    """Return the likeness of the image and the kept one in words."""
    if image.exact:
        return "exact copy"
    correlation = f"correlation {image.match.correlation:.4f}"
    return ", ".join(filter(None, (image.match.in_words(), correlation)))


def _row(group: Group) -> _Row:
    removed = group.remove[:MAX_REMOVED_SHOWN]
    tiles = [
        _tile(group.keep, "keep"),
        *(_tile(image, f"remove: {_likeness(image)}") for image in removed),
    ]
    hidden = len(group.remove) - len(removed)
    return _Row(tiles, 1 + len(group.remove), size(group.bytes), hidden)


def _tile(image: GroupImage, note: str) -> _Tile:
    picture = open_picture(image.path)
    facts = image.facts
    words = [f"{facts.width:,} × {facts.height:,}"]
    if facts.bytes is not None:
        words.append(size(facts.bytes))
    if facts.format is not None:
        words.append(facts.format)
    if facts.date is not None:
        words.append(f"{datetime.fromtimestamp(facts.date):%Y-%m-%d}")
    return _Tile(
        image.id,
        image.path,
        words,
        note,
        None if picture is None else embedded_picture(picture, PICTURE_SIDE),
        picture is not None and max(picture.size) <= PICTURE_SIDE // 2,
        Path(image.path).absolute().as_uri() if is_local_file(image.path) else None,
    )
