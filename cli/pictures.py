"""Draw sheets of search results and of pairs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cli.output import distinguishable
from retrieval.drawing.figures import PairPicture, Picture, save_pairs, save_sheet
from retrieval.drawing.figures import written as words_picture
from retrieval.drawing.galleries import open_picture
from retrieval.errors import CannotWrite
from retrieval.images.source import text
from retrieval.index.searching import Hit
from retrieval.pairs.comparing import ImagePair, PairComparison
from retrieval.pairs.duplicates import Duplicate, Duplicates
from retrieval.pairs.likeness import Turn
from retrieval.pairs.verification import CalibrationTest
from retrieval.quality.labelled import Labelled

Rows = Sequence[tuple[Picture, Sequence[Picture]]]
"""Queries with their neighbors."""


def pictured(
    names: Sequence[str],
    paths: Sequence[str | None],
    labels: Sequence[str | None],
    answers: Sequence[Sequence[Hit]],
) -> Rows:
    """Return the picture of each query, and those of its hits.

    Hits are marked as right or wrong if both labels are known. The image is None if it cannot be
    read. A query without a path is drawn as its words.
    """
    rows = []
    for name, at, label, hits in zip(names, paths, labels, answers, strict=True):
        asked = words_picture(name) if at is None else open_picture(at)
        title = "" if at is None else text(Path(name).name)
        query = Picture(asked, label or title, "query")
        neighbors = [
            Picture(
                open_picture(hit.path),
                f"{hit.rank}  {hit.label or Path(hit.id).name}",
                distance,
                None if label is None or hit.label is None else hit.label == label,
            )
            for hit, distance in zip(
                hits, distinguishable([hit.distance for hit in hits]), strict=True
            )
        ]
        rows.append((query, neighbors))
    return rows


def draw_sheet(path: Path, rows: Rows, heading: str) -> None:
    """Write a PNG with a line for each query. Raises CannotWrite if `path` cannot be written."""
    _written(path, lambda: save_sheet(path, rows, heading))


def draw_pairs(
    path: Path, tested: Labelled, outcome: CalibrationTest, heading: str, most: int, seed: int
) -> None:
    """Write a PNG of random pairs with their labels, distance and probability.

    Half of them show the same class. Pairs are marked by whether the threshold is right.
    """
    drawn, calibration = outcome.pairs, outcome.calibration
    generator = np.random.default_rng(seed)
    kinds = (
        generator.permutation(np.flatnonzero(kind))[: most // 2]
        for kind in (drawn.alike, ~drawn.alike)
    )
    probabilities = calibration.curve.probability(outcome.distances)
    paths = tested.known_paths()
    pictures = []
    rows = [row for both in zip(*kinds, strict=False) for row in both]
    distances = distinguishable(outcome.distances[rows].tolist())
    for row, written in zip(rows, distances, strict=True):
        first, second = (
            Picture(open_picture(paths[i]), str(tested.labels[i]))
            for i in (int(drawn.first[row]), int(drawn.second[row]))
        )
        same = float(outcome.distances[row]) <= calibration.threshold
        note = f"{'same' if same else 'not'}: {written}, p {probabilities[row]:.2f}"
        pictures.append(PairPicture(first, second, note, same == drawn.alike[row]))
    _written(path, lambda: save_pairs(path, pictures, heading))


def draw_compared(
    path: Path, answers: Sequence[tuple[ImagePair, PairComparison]], heading: str
) -> None:
    """Write a PNG of the compared pairs. Raises CannotWrite if `path` cannot be written."""
    pictures = []
    distances = distinguishable([answer.distance for _, answer in answers])
    for (pair, answer), note in zip(answers, distances, strict=True):
        if answer.same is not None:
            said = "same" if answer.same else "not"
            note = f"{said}: {note}, p {answer.probability_same:.2f}"
        first = Picture(open_picture(pair.path_a), text(Path(pair.a).name))
        second = Picture(open_picture(pair.path_b), text(Path(pair.b).name))
        pictures.append(PairPicture(first, second, note))
    _written(path, lambda: save_pairs(path, pictures, heading))


def draw_duplicates(
    path: Path, found: Duplicates, drawn: Sequence[Duplicate], heading: str
) -> None:
    """Write a PNG of the pairs with the correlation of their pixels.

    Pairs are marked by whether their labels are the same, if both are known.
    """
    pictures = []
    sets = found.first, found.second
    paths = [each.all_paths() for each in sets]
    for pair in drawn:
        rows = pair.first, pair.second
        labels = [each.labels[row] for each, row in zip(sets, rows, strict=True)]
        one, two = (
            Picture(open_picture(of[row]), label or text(Path(of[row]).name))
            for of, row, label in zip(paths, rows, labels, strict=True)
        )
        turned = "crop" if pair.crop else Turn(pair.mirrored, pair.rotated).in_words()
        note = ", ".join(filter(None, (f"{pair.correlation:.3f}", turned)))
        same = None if None in labels else labels[0] == labels[1]
        pictures.append(PairPicture(one, two, note, same))
    _written(path, lambda: save_pairs(path, pictures, heading))


def _written(path: Path, save: Callable[[], None]) -> None:
    try:
        save()
    except OSError as error:
        raise CannotWrite(path, error) from None
