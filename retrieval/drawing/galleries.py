"""Open images for galleries: queries, each with its nearest neighbors."""

from collections.abc import Sequence

from PIL import Image

from retrieval.contracts import Framing
from retrieval.drawing.figures import Picture
from retrieval.errors import BadImage
from retrieval.images import read_image
from retrieval.quality.evaluation import Evaluation
from retrieval.quality.labelled import Labelled

MAX_PICTURE_SIDE = 512  # pixels of the longest side

Gallery = list[tuple[Picture, list[Picture]]]
"""Queries with their neighbors, nearest first."""


def open_picture(path: str | None) -> Image.Image | None:
    """Return the image, reduced to `MAX_PICTURE_SIDE`; None if it cannot be read."""
    try:
        if path is None:
            return None
        image = read_image(path, Framing(MAX_PICTURE_SIDE))
        image.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE))  # large images would fill the memory
        return image
    except BadImage:
        return None  # the image was moved or deleted: the sheet says "no picture"


def gallery_of(
    evaluation: Evaluation, queries: Labelled, database: Labelled, rows: Sequence[int]
) -> Gallery:
    """Return pictures of some queries and of the neighbors that the evaluation kept.

    rows: rows of `evaluation.per_query`. Neighbors are marked as right or wrong by their labels.
    """
    measures = evaluation.per_query
    column = measures.columns.index("map")
    row_of = {id_: row for row, id_ in enumerate(queries.ids)}
    query_paths, database_paths = queries.known_paths(), database.known_paths()
    gallery = []
    for i in rows:
        path = query_paths[row_of[measures.ids[i]]]
        note = f"AP {measures.values[i, column]:.3f}"
        neighbors = []
        for rank, row in enumerate((row for row in measures.rows[i].tolist() if row >= 0), start=1):
            label = database.labels[row]
            right = None if label is None else label == measures.labels[i]
            picture = open_picture(database_paths[row])
            neighbors.append(Picture(picture, label or "–", f"{rank}", right))
        gallery.append((Picture(open_picture(path), measures.labels[i], note), neighbors))
    return gallery
