"""Draw pictures in the terminal, by its graphics protocol or as half blocks."""

import logging
import sys
from collections.abc import Sequence

from PIL import Image
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text
from textual_image.renderable import Image as Drawn

from cli.output import one_line
from cli.pictures import Rows
from retrieval.drawing.figures import Picture

PICTURE_CELLS = 16  # width of a picture; its height is half as many
CELL_PIXELS = 8  # width of a cell, for terminals with a graphics protocol
GAP_CELLS = 1  # between pictures


def shows_blocks() -> bool:
    """Return whether the terminal's encoding has the half blocks that pictures are made of."""
    try:
        "▀▄".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


def show(rows: Rows) -> None:
    """Draw each query and its neighbors side by side, each with a line of text below."""
    # textual_image warns of terminals that do not report the size of their cells.
    logging.getLogger("textual_image").setLevel(logging.ERROR)
    console = Console(file=sys.stdout, highlight=False)
    fit = max(1, (console.width + GAP_CELLS) // (PICTURE_CELLS + GAP_CELLS))
    for query, neighbors in rows:
        pictures = [query, *neighbors]
        for start in range(0, len(pictures), fit):
            line = pictures[start : start + fit]
            strip, width = _strip(line)
            console.print(Drawn(strip, width=width, height=PICTURE_CELLS // 2))
            console.print(_captions(line))


def _strip(pictures: Sequence[Picture]) -> tuple[Image.Image, int]:
    """Return the pictures side by side in one image, and its width in cells."""
    side, step = PICTURE_CELLS * CELL_PIXELS, (PICTURE_CELLS + GAP_CELLS) * CELL_PIXELS
    width = len(pictures) * (PICTURE_CELLS + GAP_CELLS) - GAP_CELLS
    strip = Image.new("RGB", (width * CELL_PIXELS, side))
    for number, picture in enumerate(pictures):
        if picture.image is None:
            continue
        image = picture.image
        scale = side / max(image.size)
        small = max(image.size) <= side
        size = tuple(max(1, round(length * scale)) for length in image.size)
        fitted = image.resize(
            (size[0], size[1]), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        )
        left = number * step + (side - fitted.width) // 2
        strip.paste(fitted, (left, (side - fitted.height) // 2))
    return strip, width


def _captions(pictures: Sequence[Picture]) -> Text:
    styles = {True: "green", False: "red", None: ""}
    line = Text(no_wrap=True)
    for picture in pictures:
        note = picture.note if picture.image is not None else "no picture"
        room = max(0, PICTURE_CELLS - cell_len(note) - 1)
        title = one_line(picture.title)
        title = set_cell_size(title, min(cell_len(title), room))
        line.append(
            set_cell_size(f"{title} {note}", PICTURE_CELLS + GAP_CELLS), styles[picture.right]
        )
    return line
