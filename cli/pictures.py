"""Draws the answer to a search as a sheet."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from retrieval.errors import BadImage, BadInput
from retrieval.figures import Picture, save_sheet
from retrieval.images import read_image
from retrieval.searching import Hit


def draw_sheet(
    path: Path,
    names: Sequence[str],
    paths: Sequence[str],
    labels: Sequence[str | None],
    answers: Sequence[Sequence[Hit]],
    heading: str,
) -> None:
    """Write a PNG with a row for each query: its picture, then those of its hits.

    Hits are marked as right or wrong where the query's label and theirs are known. A picture
    that cannot be read any more is left blank. Raises BadInput if `path` cannot be written.
    """
    rows = []
    for name, at, label, hits in zip(names, paths, labels, answers, strict=True):
        query = Picture(_opened(at), label or Path(name).name, "query")
        neighbors = [
            Picture(
                _opened(hit.path),
                f"{hit.rank}  {hit.label or Path(hit.id).name}",
                f"{hit.distance:.4f}",
                None if label is None or hit.label is None else hit.label == label,
            )
            for hit in hits
        ]
        rows.append((query, neighbors))
    try:
        save_sheet(path, rows, heading)
    except OSError as error:
        raise BadInput(f"cannot write {path} ({error.strerror}); name another file") from None


def _opened(path: str | None) -> Image.Image | None:
    try:
        return None if path is None else read_image(path)
    except BadImage:
        return None  # moved or deleted since: the sheet says "no picture"
