"""Draws sheets: the answer to a search, and pairs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from retrieval.calibration import Calibration
from retrieval.comparing import Asked, Compared
from retrieval.errors import BadImage, BadInput
from retrieval.evaluation import Labelled
from retrieval.figures import PairPicture, Picture, save_pairs, save_sheet
from retrieval.images import read_image
from retrieval.searching import Hit
from retrieval.verification import Outcome


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
    _written(path, lambda: save_sheet(path, rows, heading))


def draw_pairs(
    path: Path,
    tested: Labelled,
    paths: Mapping[str, str | None],
    outcome: Outcome,
    heading: str,
    most: int,
) -> None:
    """Write a PNG of the first pairs of either kind, with labels, distance and probability.

    tested: the images; paths: where they are, by id. Pairs are marked by whether the threshold
    puts them right.
    """
    drawn, half = outcome.pairs, len(outcome.pairs) // 2
    chosen = [row for place in range(min(most // 2, half)) for row in (place, half + place)]
    calibration = outcome.calibration
    probabilities = calibration.curve.probability(outcome.distances)
    pictures = []
    for row in chosen:
        sides = [
            Picture(_opened(paths[tested.ids[i]]), str(tested.labels[i]))
            for i in (int(drawn.first[row]), int(drawn.second[row]))
        ]
        distance = float(outcome.distances[row])
        said = "same" if distance <= calibration.threshold else "not"
        pictures.append(
            PairPicture(
                sides[0],
                sides[1],
                f"{said}: {distance:.3f}, p {probabilities[row]:.2f}",
                (distance <= calibration.threshold) == drawn.alike[row],
            )
        )
    _written(path, lambda: save_pairs(path, pictures, heading))


def draw_compared(
    path: Path,
    answers: Sequence[tuple[Asked, Compared]],
    calibration: Calibration | None,
    heading: str,
) -> None:
    """Write a PNG of the compared pairs. Raises BadInput if `path` cannot be written."""
    pictures = []
    for pair, answer in answers:
        note = f"{answer.distance:.4f}"
        if calibration is not None and answer.probability_same is not None:
            same = answer.distance <= calibration.threshold
            note = f"{'same' if same else 'not'}: {note}, p {answer.probability_same:.2f}"
        first = Picture(_opened(pair.path_a), Path(pair.a).name)
        second = Picture(_opened(pair.path_b), Path(pair.b).name)
        pictures.append(PairPicture(first, second, note))
    _written(path, lambda: save_pairs(path, pictures, heading))


def _written(path: Path, save: Callable[[], None]) -> None:
    try:
        save()
    except OSError as error:
        raise BadInput(f"cannot write {path} ({error.strerror}); name another file") from None


def _opened(path: str | None) -> Image.Image | None:
    try:
        return None if path is None else read_image(path)
    except BadImage:
        return None  # moved or deleted since: the sheet says "no picture"
