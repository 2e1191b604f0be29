"""Compares images two by two: how far they are apart, and how likely they show the same class."""

import csv
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.calibration import Calibration
from retrieval.contracts import (
    Encoder,
    Framing,
    Images,
    Json,
    Maps,
    Metric,
    PairScorer,
    Vectors,
)
from retrieval.errors import BadImage, BadInput
from retrieval.evaluation import Labelled
from retrieval.images import frame, read_image
from retrieval.pairs import Pairs, pair_distances
from retrieval.ranking import Distances, usable_cores

AT_ONCE = 512  # images that are decoded before they are encoded
PAIRS_AT_ONCE = 64  # of a scorer, whose maps take megabytes an image


@dataclass(frozen=True, slots=True)
class Asked:
    """Two images, by the names that they are to be reported under and the paths they are at."""

    a: str
    b: str
    path_a: str
    path_b: str
    line: int | None = None  # of the file that asks

    @classmethod
    def of(cls, a: str, b: str) -> "Asked":
        """Two images by their paths."""
        return cls(a, b, a, b)


@dataclass(frozen=True, slots=True)
class Compared:
    """The answer. probability_same is None where nothing gives it, layers without a scorer."""

    a: str
    b: str
    distance: float
    probability_same: float | None
    layers: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Json]:
        """As in `retr compare --json`."""
        return {
            "a": self.a,
            "b": self.b,
            "distance": self.distance,
            "probability_same": self.probability_same,
            "layers": None if self.layers is None else dict(self.layers),
        }


def read_pairs(file: Path) -> tuple[list[Asked], list[str]]:
    """The pairs of a CSV file of two columns, and what is wrong with lines that are no pair.

    A first line `a,b` is a header. Names are relative to the file's folder. Raises BadInput for a
    file that cannot be read.
    """
    asked, problems = [], []
    try:
        with file.open(newline="", encoding="utf-8") as text:
            lines = csv.reader(text)
            for cells in lines:
                number = lines.line_num
                names = [cell.strip() for cell in cells]
                if not any(names) or (number == 1 and names == ["a", "b"]):
                    continue
                if len(names) != 2 or not all(names):
                    problems.append(f"line {number} has {len(names)} columns or an empty one")
                    continue
                a, b = names
                asked.append(Asked(a, b, str(file.parent / a), str(file.parent / b), number))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read {file} ({error}); give a CSV of two columns, a,b") from None
    return asked, problems


def compare(
    asked: Sequence[Asked],
    encoder: Encoder,
    metric: Metric,
    calibration: Calibration | None,
    scorer: PairScorer | None = None,
) -> tuple[list[tuple[Asked, Compared]], list[tuple[Asked, BadImage]]]:
    """The answers, in order, and the pairs that have none, each with the image at fault.

    Each image is read and encoded once, in however many pairs it is. The probability is the
    scorer's, where it has one, or else the calibration's.
    """
    paths = [*dict.fromkeys(path for pair in asked for path in (pair.path_a, pair.path_b))]
    vectors, unreadable = embed_paths(paths, encoder)
    row = {path: i for i, path in enumerate(path for path in paths if path not in unreadable)}
    answered, failed = [], []
    for pair in asked:
        bad = unreadable.get(pair.path_a) or unreadable.get(pair.path_b)
        if bad is None:
            answered.append(pair)
        else:
            failed.append((pair, bad))
    pairs = Pairs(
        np.array([row[pair.path_a] for pair in answered], np.int64),
        np.array([row[pair.path_b] for pair in answered], np.int64),
        np.zeros(len(answered), bool),
    )
    distances = pair_distances(vectors, pairs, metric)
    probabilities = None if calibration is None else calibration.curve.probability(distances)
    layers: list[dict[str, float]] | list[None] = [None] * len(answered)
    if scorer is not None:
        differences = layer_differences([(p.path_a, p.path_b) for p in answered], scorer)
        layers = [dict(zip(scorer.layers, line, strict=True)) for line in differences.tolist()]
        known = scorer.probability(differences)
        probabilities = probabilities if known is None else known
    found = [
        (pair, Compared(pair.a, pair.b, distance, probability, of_layers))
        for pair, distance, probability, of_layers in zip(
            answered,
            distances.tolist(),
            [None] * len(answered) if probabilities is None else probabilities.tolist(),
            layers,
            strict=True,
        )
    ]
    return found, failed


def layer_differences(pairs: Sequence[tuple[str, str]], scorer: PairScorer) -> Vectors:
    """(pairs, layers): the mean squared differences of pairs of images, given by their paths.

    Each image's maps are computed once, and kept until its last pair is done. Raises BadImage for
    an image that cannot be read.
    """
    last = {path: i for i, pair in enumerate(pairs) for path in pair}
    kept: dict[str, list[Maps]] = {}
    parts = [np.empty((0, len(scorer.layers)), np.float32)]
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        some = pairs[start : start + PAIRS_AT_ONCE]
        paths = [*dict.fromkeys(path for pair in some for path in pair)]
        kept |= _maps([path for path in paths if path not in kept], scorer)
        together = [
            np.concatenate(layer) for layer in zip(*(kept[path] for path in paths), strict=True)
        ]
        row = {path: i for i, path in enumerate(paths)}
        first, second = (np.array([row[pair[side]] for pair in some]) for side in (0, 1))
        parts.append(scorer.differences(together, first, second))
        for path in paths:
            if last[path] < start + len(some):
                del kept[path]
    return np.concatenate(parts)


def improbability(
    scorer: PairScorer, paths: Mapping[str, str | None]
) -> Callable[[Labelled, Pairs], Distances]:
    """How unlikely the scorer finds it that pairs of images show the same class, as a distance.

    paths: where the image of each id is. Raises BadInput for a scorer that was not trained; the
    function raises it for an image whose place is not known.
    """
    if scorer.probability(np.zeros((1, len(scorer.layers)), np.float32)) is None:
        raise BadInput(
            f"scorer {scorer.name} was not trained; give a folder of 'retr train layers'"
        )

    def distances(images: Labelled, pairs: Pairs) -> Distances:
        places = [paths[name] for name in images.ids]
        at = [(places[i], places[j]) for i, j in zip(pairs.first, pairs.second, strict=True)]
        known = [(a, b) for a, b in at if a is not None and b is not None]
        if len(known) < len(at):
            raise BadInput("the embeddings do not say where their images are; encode anew")
        probabilities = scorer.probability(layer_differences(known, scorer))
        assert probabilities is not None
        return 1 - probabilities

    return distances


def _maps(paths: Sequence[str], scorer: PairScorer) -> dict[str, list[Maps]]:
    """Each image's maps (1, numbers)."""
    if not paths:
        return {}
    images = np.stack([frame(read_image(path), scorer.framing) for path in paths])
    maps = scorer.maps(images)
    return {path: [layer[i : i + 1] for layer in maps] for i, path in enumerate(paths)}


def embed_paths(paths: Sequence[str], encoder: Encoder) -> tuple[Vectors, dict[str, BadImage]]:
    """The embeddings (n, dim) of the images that can be read, in order, and what others lack."""
    unreadable: dict[str, BadImage] = {}
    parts: list[Vectors] = [np.empty((0, encoder.dim), np.float32)]
    with ThreadPoolExecutor(usable_cores()) as threads:
        for start in range(0, len(paths), AT_ONCE):
            some = paths[start : start + AT_ONCE]
            framed = threads.map(lambda path: _framed(path, encoder.framing), some)
            images = []
            for path, found in zip(some, framed, strict=True):
                if isinstance(found, BadImage):
                    unreadable[path] = found
                else:
                    images.append(found)
            if images:
                parts.append(encoder.encode(np.stack(images)))
    return np.concatenate(parts), unreadable


def _framed(path: str, framing: Framing) -> Images | BadImage:
    try:
        return frame(read_image(path), framing)
    except BadImage as error:
        return error
