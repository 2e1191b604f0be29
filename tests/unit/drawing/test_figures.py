"""Sheets are pictures with a row for each query."""

from pathlib import Path

import numpy as np
from PIL import Image

from retrieval.drawing.figures import RIGHT, TILE, WRONG, Picture, save_sheet


def colours_of(path: Path) -> dict[tuple[int, int, int], int]:
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(c): int(n) for c, n in zip(colours.tolist(), counts, strict=True)}


def rgb(text: str) -> tuple[int, int, int]:
    return (int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16))


def test_right_and_wrong_are_marked(tmp_path: Path) -> None:
    photo = Image.new("RGB", (300, 100), (10, 20, 250))
    tiny = Image.new("RGB", (8, 8), (250, 20, 10))
    query = Picture(photo, "a query with a very long name indeed")
    for marks in ([True, False], [None, None], [True, True]):
        path = tmp_path / "sheet.png"
        save_sheet(path, [(query, [Picture(tiny, "n", "0.1", mark) for mark in marks])], "title")
        colours = colours_of(path)
        assert (rgb(RIGHT) in colours) == (True in marks)
        assert (rgb(WRONG) in colours) == (False in marks)
        # the photo keeps its proportions: three times as wide as high
        assert colours[10, 20, 250] == 104 * 35
        assert colours[250, 20, 10] > 2 * 80 * 80


def test_size_follows_queries_and_neighbours(tmp_path: Path) -> None:
    picture = Picture(None, "gone")
    sizes = []
    for queries, neighbours in ((1, 1), (3, 1), (1, 4), (0, 0)):
        save_sheet(tmp_path / "s.png", [(picture, [picture] * neighbours)] * queries, "")
        with Image.open(tmp_path / "s.png") as sheet:
            sizes.append(sheet.size)
    assert sizes[1][0] == sizes[0][0]
    assert sizes[1][1] > sizes[0][1] + 2 * TILE
    assert sizes[2][0] >= sizes[0][0] + 3 * TILE
    assert sizes[2][1] == sizes[0][1]
