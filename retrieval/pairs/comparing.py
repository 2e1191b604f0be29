"""Compare pairs of images: their distance, and the probability that they show the same class."""

import csv
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.choices import choice
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
from retrieval.embedding.embed import Embedder
from retrieval.errors import BadImage, BadInput, RetrError
from retrieval.images import frame, read_image
from retrieval.pairs.calibration import Calibration, GivenProbability
from retrieval.pairs.draw import Pairs, pair_distances
from retrieval.quality.labelled import Labelled
from retrieval.quality.ranking import Distances

SCORER_CHUNK_IMAGES = 64  # their maps take megabytes each


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Two images to compare: their names in the result, and their paths."""

    a: str
    b: str
    path_a: str
    path_b: str
    line: int | None = None  # in the file of pairs

    @classmethod
    def of(cls, a: str | Path, b: str | Path) -> "ImagePair":
        """Return a pair whose names are its paths."""
        return cls(str(a), str(b), str(a), str(b))


@dataclass(frozen=True, slots=True)
class PairComparison:
    """Result of the comparison of two images.

    probability_same: probability that both show the same class; None without a calibration or a
        trained scorer.
    same: whether both are taken for the same class; None as above.
    layers: difference in each layer; None without a scorer.
    """

    a: str
    b: str
    distance: float
    probability_same: float | None
    same: bool | None
    layers: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr compare --json` prints."""
        return {
            "a": self.a,
            "b": self.b,
            "distance": self.distance,
            "probability_same": self.probability_same,
            "layers": None if self.layers is None else dict(self.layers),
        }


def read_pairs(file: Path) -> tuple[list[ImagePair], list[str]]:
    """Read pairs from a CSV file of two columns; return them, and a message for each invalid line.

    A first line `a,b` is a header. Names are relative to the file's folder, and have no line
    breaks. Raises BadInput if the file cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {file} ({error}); give a CSV of two columns, a,b") from None
    asked, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            names = [cell.strip() for cell in next(csv.reader([line]), [])]
        except csv.Error as error:
            problems.append(f"line {number} is not CSV ({error})")
            continue
        if not any(names) or (number == 1 and names == ["a", "b"]):
            continue
        if len(names) != 2 or not all(names):
            problems.append(f"line {number} has {len(names)} columns, or an empty one")
            continue
        a, b = names
        asked.append(ImagePair(a, b, str(file.parent / a), str(file.parent / b), number))
    return asked, problems


def compare(
    asked: Sequence[ImagePair],
    encoder: Encoder,
    metric: Metric | str,
    calibration: Calibration | None,
    scorer: PairScorer | None = None,
    scorer_calibration: Calibration | None = None,
) -> tuple[list[tuple[ImagePair, PairComparison]], list[tuple[ImagePair, BadImage]]]:
    """Return the comparisons, in order, and the pairs with an image that cannot be read.

    Each image is encoded once, even if it is in several pairs.

    calibration: of the encoder; it gives the probability unless a trained scorer does.
    scorer: adds the differences in each layer and, if trained, the probability.
    scorer_calibration: None to keep the scorer's own probability, with a threshold of one half.
    """
    metric = choice(Metric, metric)
    paths = [*dict.fromkeys(path for pair in asked for path in (pair.path_a, pair.path_b))]
    embedded = Embedder.of(encoder).embed(paths)
    unreadable = {paths[position]: error for position, error in embedded.errors.items()}
    row = {paths[position]: i for i, position in enumerate(embedded.positions)}
    answered, failed = [], []
    for pair in asked:
        bad = [path for path in (pair.path_a, pair.path_b) if path in unreadable]
        failed += [(pair, unreadable[path]) for path in dict.fromkeys(bad)]
        if not bad:
            answered.append(pair)
    pairs = Pairs(
        np.array([row[pair.path_a] for pair in answered], np.int64),
        np.array([row[pair.path_b] for pair in answered], np.int64),
        np.zeros(len(answered), bool),
    )
    distances = pair_distances(embedded.vectors, pairs, metric)
    probabilities: list[float] | list[None] = [None] * len(answered)
    same: list[bool] | list[None] = [None] * len(answered)
    layers: list[dict[str, float]] | list[None] = [None] * len(answered)
    if calibration is not None:
        probabilities = calibration.curve.probability(distances).tolist()
        same = (distances <= calibration.threshold).tolist()
    if scorer is not None:
        differences = layer_differences([(p.path_a, p.path_b) for p in answered], scorer)
        layers = [dict(zip(scorer.layers, line, strict=True)) for line in differences.tolist()]
        known = scorer.probability(differences)
        if known is not None:
            own = scorer_calibration
            curve, threshold = (
                (GivenProbability(), 0.5) if own is None else (own.curve, own.threshold)
            )
            probabilities = curve.probability(1 - known).tolist()
            same = (1 - known <= threshold).tolist()
    rest = zip(distances.tolist(), probabilities, same, layers, strict=True)
    return [
        (pair, PairComparison(pair.a, pair.b, *of_pair))
        for pair, of_pair in zip(answered, rest, strict=True)
    ], failed


def layer_differences(pairs: Sequence[tuple[str, str]], scorer: PairScorer) -> Vectors:
    """Return the mean squared differences (pairs, layers) of pairs of images, given by path.

    Each image's maps are computed once. Raises BadImage for an image that cannot be read, RetrError
    if the disk has too little free space for the maps.
    """
    if not pairs:
        return np.empty((0, len(scorer.layers)), np.float32)
    paths = [*dict.fromkeys(path for pair in pairs for path in pair)]
    row = {path: i for i, path in enumerate(paths)}
    first, second = (np.array([row[pair[side]] for pair in pairs]) for side in (0, 1))
    return scorer.differences(_maps_of(paths, scorer), first, second)


def knows_probability(scorer: PairScorer) -> bool:
    """Return whether the scorer was trained to give probabilities."""
    return scorer.probability(np.zeros((1, len(scorer.layers)), np.float32)) is not None


def improbability(scorer: PairScorer) -> Callable[[Labelled, Pairs], Distances]:
    """Return a function for the distance of pairs: 1 - the scorer's probability of the same class.

    The maps of all images are kept between calls with the same images. Raises BadInput for a scorer
    that was not trained. The function raises BadInput for images whose path is not known.
    """
    if not knows_probability(scorer):
        raise BadInput(
            f"scorer {scorer.name} was not trained; train one with 'retr train layers', and give "
            "its folder"
        )
    kept: tuple[Labelled, list[Maps]] | None = None

    def distances(images: Labelled, pairs: Pairs) -> Distances:
        nonlocal kept
        if kept is None or kept[0] is not images:
            kept = images, _maps_of(images.all_paths(), scorer)
        differences = scorer.differences(kept[1], pairs.first, pairs.second)
        probabilities = scorer.probability(differences)
        assert probabilities is not None
        return 1 - probabilities

    return distances


def _maps_of(paths: Sequence[str], scorer: PairScorer) -> list[Maps]:
    """Return each layer's maps (n, numbers) of the images at these paths.

    Maps are in a temporary file: those of a few hundred images take a gigabyte.
    """
    maps: list[Maps] = []
    for start in range(0, len(paths), SCORER_CHUNK_IMAGES):
        images = [
            _read(path, scorer.framing) for path in paths[start : start + SCORER_CHUNK_IMAGES]
        ]
        for layer, of_layer in enumerate(scorer.maps(np.stack(images))):
            if not start:
                maps.append(_array_on_disk((len(paths), of_layer.shape[1])))
            maps[layer][start : start + len(of_layer)] = of_layer
    return maps


def _array_on_disk(shape: tuple[int, int]) -> Maps:
    """Return an array of this shape in a temporary file, which is deleted with the array."""
    with tempfile.TemporaryFile() as file:
        n_bytes = math.prod(shape) * np.dtype(np.float16).itemsize
        try:
            if hasattr(os, "posix_fallocate"):
                # Reserve all of it now: if the disk were full later, a write would end the process.
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:
                file.truncate(n_bytes)
        except OSError as error:
            raise RetrError(
                f"no space for the maps of {shape[0]:,} images in {tempfile.gettempdir()} "
                f"({error.strerror}); free some space, or name a larger folder in TMPDIR"
            ) from None
        return np.memmap(file, np.float16, "r+", shape=shape)


def _read(path: str, framing: Framing) -> Images:
    return frame(read_image(path, framing), framing)
