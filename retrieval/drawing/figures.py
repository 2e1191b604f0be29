"""Draw sheets of images: queries with their neighbors, and pairs of images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# Sizes in pixels.
TILE = 112  # a side of a picture
GAP = 12
TEXT = 13  # height of the letters
CAPTION = 2 * TEXT + 12  # two lines under each picture
FRAME = 4

PAPER, INK, FAINT = "#ffffff", "#1c1e21", "#6b7076"
RIGHT, WRONG, PLAIN = "#1a7f37", "#cf222e", "#d0d4d9"
"""Colors of marks and frames."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image with two lines of text.

    image: None if it cannot be read. right: True or False to mark it as a right or wrong neighbor;
    None for no mark.
    """

    image: Image.Image | None
    title: str
    note: str = ""
    right: bool | None = None


def save_sheet(
    path: Path, queries: Sequence[tuple[Picture, Sequence[Picture]]], heading: str
) -> None:
    """Write a PNG with a row for each query: the query at the left, then its neighbors."""
    columns = max((len(neighbors) for _, neighbors in queries), default=0)
    height = TILE + CAPTION
    top = 3 * TEXT
    sheet = Image.new(
        "RGB",
        (
            GAP + (1 + columns) * (TILE + GAP) + 2 * GAP,
            top + len(queries) * (height + GAP) + GAP,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, TEXT), heading, INK, ImageFont.load_default(TEXT + 2))
    for row, (query, neighbors) in enumerate(queries):
        y = top + row * (height + GAP)
        _draw(sheet, draw, (GAP, y), query)
        line = GAP + TILE + GAP + GAP // 2
        draw.line((line, y, line, y + height - GAP), PLAIN, 1)
        for column, picture in enumerate(neighbors, start=1):
            _draw(sheet, draw, (GAP + column * (TILE + GAP) + 2 * GAP, y), picture)
    sheet.save(path, "PNG")


def written(words: str) -> Image.Image:
    """Return a square picture of the words, for a query that has no image."""
    side, margin, letters = 2 * TILE, GAP, 2 * TEXT
    picture = Image.new("RGB", (side, side), PAPER)
    font = ImageFont.load_default(letters)
    lines: list[str] = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > side - 2 * margin:
            lines.append(word)
        else:
            lines[-1] = longer
    most = (side - 2 * margin) // (letters + 6)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " …"]
    height = len(lines) * (letters + 6)
    top = max(margin, (side - height) // 2)
    ImageDraw.Draw(picture).multiline_text((margin, top), "\n".join(lines), INK, font, spacing=6)
    return picture


@dataclass(frozen=True, slots=True, eq=False)
class PairPicture:
    """Two images side by side, with a line of text below.

    right: True or False to mark a right or wrong answer; None for no mark.
    """

    first: Picture
    second: Picture
    note: str
    right: bool | None = None


def save_pairs(path: Path, pairs: Sequence[PairPicture], heading: str, columns: int = 4) -> None:
    """Write a PNG of the pairs, `columns` in a row."""
    columns = max(1, min(columns, len(pairs)))
    width, height = 2 * TILE + GAP // 2, TILE + CAPTION + TEXT
    top = 3 * TEXT
    rows = -(-len(pairs) // columns)
    sheet = Image.new(
        "RGB",
        (2 * GAP + columns * (width + 2 * GAP) - 2 * GAP, top + rows * (height + GAP) + GAP),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, TEXT), heading, INK, ImageFont.load_default(TEXT + 2))
    font = ImageFont.load_default(TEXT)
    for place, pair in enumerate(pairs):
        x = GAP + place % columns * (width + 2 * GAP)
        y = top + place // columns * (height + GAP)
        _draw(sheet, draw, (x, y), replace(pair.first, note="", right=None))
        _draw(sheet, draw, (x + TILE + GAP // 2, y), replace(pair.second, note="", right=None))
        below = y + TILE + TEXT + 8
        indent = 0
        if pair.right is not None:
            _mark(draw, x, below, pair.right)
            indent = 20
        draw.text((x + indent, below), pair.note, INK, font)
    sheet.save(path, "PNG")


def _draw(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], picture: Picture
) -> None:
    x, y = at
    frame = {True: RIGHT, False: WRONG, None: PLAIN}[picture.right]
    width = 1 if picture.right is None else FRAME
    draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), outline=frame, width=width)
    if picture.image is None:
        draw.text((x + TILE // 4, y + TILE // 2 - TEXT), "no picture", FAINT)
    else:
        inner = TILE - 2 * FRAME
        image = _fitted(picture.image, inner)
        sheet.paste(image, (x + (TILE - image.width) // 2, y + (TILE - image.height) // 2))
    if picture.right is not None:
        _mark(draw, x + TILE - 18, y + 4, picture.right)
    font = ImageFont.load_default(TEXT)
    draw.text((x, y + TILE + 3), _shortened(picture.title, font), INK, font)
    draw.text((x, y + TILE + 5 + TEXT), _shortened(picture.note, font), FAINT, font)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Return the image scaled to fit a square of `side` pixels.

    A small image is enlarged by a whole number, so that its pixels stay sharp.
    """
    scale = side / max(image.size)
    if scale >= 2:
        return image.resize(
            (image.width * int(scale), image.height * int(scale)), Image.Resampling.NEAREST
        )
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """Draw a disc of 14 pixels with a tick or a cross, for readers who cannot see its color."""
    draw.ellipse((x, y, x + 14, y + 14), RIGHT if right else WRONG)
    if right:
        draw.line((x + 3, y + 7, x + 6, y + 10, x + 11, y + 4), PAPER, 2)
    else:
        draw.line((x + 4, y + 4, x + 10, y + 10), PAPER, 2)
        draw.line((x + 4, y + 10, x + 10, y + 4), PAPER, 2)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the text, cut to the width of a picture."""
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(text + "…") > TILE:
        text = text[:-1]
    return text + "…"
