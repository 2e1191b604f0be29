"""Verification: telling from its distance whether a pair of images shows the same class.

Classes that the encoder was trained on, classes that it was not, and both together are three
questions, and are answered apart. docs/metrics.md defines the measures.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.calibration import (
    Alike,
    Calibration,
    Method,
    by_distance,
    check_kinds,
    expected_calibration_error,
)
from retrieval.cards import Card
from retrieval.contracts import Json, Metric
from retrieval.errors import Mismatch, UnknownName
from retrieval.evaluation import Labelled
from retrieval.pairs import Pairs, Scheme, draw_pairs, pair_distances
from retrieval.ranking import Distances
from retrieval.shards import Embeddings

DistancesOf = Callable[[Labelled, Pairs], Distances]

JOINT, TRAINED, HELD_OUT = "joint", "trained", "held_out"


@dataclass(frozen=True, slots=True)
class Protocol:
    """How pairs are drawn and judged.

    count: pairs of each group, half of them alike; None: as `draw_pairs` says.
    thresholds: where accuracy is measured besides the threshold that the validation pairs give.
    """

    metric: Metric
    count: int | None = None
    scheme: Scheme = Scheme.RANDOM
    seed: int = 0
    method: Method = Method.LOGISTIC
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """How well distances tell pairs of the same class from others.

    accuracy: at the calibration's threshold; accuracy_at: at others that were asked for.
    auc: the chance that a pair that is alike is nearer than one that is not; ties count half.
    eer: the error rate where as many alike pairs are rejected as others are accepted.
    ece: the expected calibration error of the probabilities.
    roc: (points, 2), false and true positive rates, ascending from 0 to 1.
    matrix: (classes, classes), accuracy over the pairs of each two classes; NaN where none is.
    """

    pairs: int
    accuracy: float
    accuracy_at: Mapping[float, float]
    auc: float
    eer: float
    ece: float
    roc: Distances
    classes: Sequence[str]
    matrix: Distances

    def roc_points(self, most: int = 1_000) -> list[dict[str, float]]:
        """Points of the ROC, at most so many, evenly spread over it."""
        chosen = np.unique(np.linspace(0, len(self.roc) - 1, most).round().astype(np.int64))
        return [{"false_positives": x, "true_positives": y} for x, y in self.roc[chosen].tolist()]

    def to_json(self) -> dict[str, Json]:
        """As in `retr pairs --json`."""
        return {
            "pairs": self.pairs,
            "accuracy": self.accuracy,
            "accuracy_at": {f"{at:g}": value for at, value in self.accuracy_at.items()},
            "auc": self.auc,
            "eer": self.eer,
            "ece": self.ece,
            "per_class": {
                name: {
                    other: value
                    for other, value in zip(self.classes, line.tolist(), strict=True)
                    if not np.isnan(value)
                }
                for name, line in zip(self.classes, self.matrix, strict=True)
            },
        }


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The calibration, and how well it does on pairs of new images.

    groups: `joint`, over all classes; `trained` and `held_out`, over those that the encoder was
        trained on and those that it was not, where there are two or more.
    pairs, distances: those of the group `joint`; rows are the test images'.
    """

    calibration: Calibration
    groups: Mapping[str, Verification]
    pairs: Pairs
    distances: Distances


def not_trained_on(embeddings: Embeddings, encoder: Path | None) -> Labelled:
    """The images that the encoder was not trained on, as far as its folder says.

    encoder: its folder; None for one that has none, and is taken to know none of the images.
    """
    images = Labelled.of(embeddings)
    if encoder is None:
        return images
    ids = embeddings.read()[0]["id"].to_pylist()
    seen = Card.read(encoder).trained_on(encoder, embeddings.facts.source.name, ids)
    return images.take(np.flatnonzero(~np.array(seen, bool)))


def trained_classes(
    encoder: Path | None, images: Labelled, held_out: Collection[str] | None
) -> set[str] | None:
    """The classes that the encoder was trained on; None where nobody says so.

    encoder: its folder, if it has one; held_out: the classes that the caller takes for new ones.
    Raises UnknownName for such a class that the images lack, Mismatch for one that is not new.
    """
    known = None if encoder is None else set(Card.read(encoder).classes)
    if held_out is None:
        return known
    there = {label for label in images.labels if label is not None}
    for name in held_out:
        if name not in there:
            raise UnknownName("class of these images", name, there)
        if known is not None and name in known:
            raise Mismatch(
                f"class '{name}' is not held out: the encoder was trained on it; name classes "
                f"other than {', '.join(sorted(known))}"
            )
    return there - set(held_out)


def check_apart(test: Labelled, validation: Labelled) -> None:
    """Raise Mismatch where an image is in both, or validation has none."""
    if not len(validation):
        raise Mismatch(
            "the encoder was trained on all validation images; give others, or leave them to be "
            "taken from the test images"
        )
    both = set(test.ids) & set(validation.ids)
    if both:
        raise Mismatch(
            f"{len(both)} images are for validation and for the test, the first '{min(both)}'; "
            "give other images for one of them"
        )


def verify(
    test: Labelled,
    validation: Labelled,
    protocol: Protocol,
    encoder: str,
    trained: Collection[str] | None = None,
    distances_of: DistancesOf | None = None,
) -> Outcome:
    """Calibrate on pairs of validation images, and verify pairs of test images.

    encoder: its fingerprint, for the record; trained: the classes it was trained on, None where
    that is not known; distances_of: (images, pairs) to distances (pairs,), None for the
    protocol's metric between their vectors. The validation pairs are of the classes that were
    trained on, or of all where fewer than two are there. Raises BadInput where pairs cannot be
    drawn.
    """

    def by_vectors(images: Labelled, pairs: Pairs) -> Distances:
        return pair_distances(images.vectors, pairs, protocol.metric)

    measure = distances_of or by_vectors
    names = sorted({name for name in test.labels if name is not None})
    groups = {JOINT: names}
    if trained is not None:
        groups[TRAINED] = [name for name in names if name in trained]
        groups[HELD_OUT] = [name for name in names if name not in trained]
    groups = {group: of for group, of in groups.items() if group == JOINT or len(of) > 1}

    known = groups.get(TRAINED, names)
    drawn, _ = _drawn(validation, known, protocol, 0)
    distances = measure(validation, drawn)
    calibration = Calibration.fitted(
        distances, drawn.alike, protocol.method, protocol.metric, encoder
    )
    found = {}
    of_joint = None
    for number, (group, of) in enumerate(groups.items(), start=1):
        drawn, classes = _drawn(test, of, protocol, number)
        distances = measure(test, drawn)
        found[group] = verify_pairs(
            distances, drawn.alike, classes, of, calibration, protocol.thresholds
        )
        of_joint = of_joint or (drawn, distances)
    assert of_joint is not None
    return Outcome(calibration, found, *of_joint)


def _drawn(
    images: Labelled, names: Sequence[str], protocol: Protocol, number: int
) -> tuple[Pairs, NDArray[np.int64]]:
    """Pairs of these classes, and the classes (n, 2) of their images."""
    numbers: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    labels = np.array([numbers.get(name, -1) for name in images.labels], np.int64)
    pairs = draw_pairs(labels, protocol.count, protocol.scheme, (protocol.seed, number))
    classes = np.stack((labels[pairs.first], labels[pairs.second]), axis=1)
    return pairs, classes


def verify_pairs(
    distances: Distances,
    alike: Alike,
    classes_of: NDArray[np.int64],
    names: Sequence[str],
    calibration: Calibration,
    thresholds: Sequence[float] = (),
) -> Verification:
    """What the distances (n,) say of pairs that are `alike` (n,) or not.

    classes_of: (n, 2), the numbers in `names` of both images' classes. Raises BadInput unless
    some pairs are alike and some are not.
    """
    check_kinds(alike)
    false_positives, true_positives = roc_curve(distances, alike)
    right = (distances <= calibration.threshold) == alike
    return Verification(
        pairs=len(alike),
        accuracy=float(right.mean()),
        accuracy_at={t: float(((distances <= t) == alike).mean()) for t in thresholds},
        auc=float(np.trapezoid(true_positives, false_positives)),
        eer=equal_error_rate(false_positives, true_positives),
        ece=expected_calibration_error(calibration.curve.probability(distances), alike),
        roc=np.stack((false_positives, true_positives), axis=1),
        classes=names,
        matrix=_matrix(right, classes_of, len(names)),
    )


def roc_curve(distances: Distances, alike: Alike) -> tuple[Distances, Distances]:
    """False and true positive rates, ascending from 0 to 1.

    The first point is for no pair accepted, then one follows for each distance that occurs.
    """
    _, counts, of_alike = by_distance(distances, alike)
    accepted, right = np.cumsum(counts), np.cumsum(of_alike)
    zero = np.zeros(1)
    false_positives = np.concatenate((zero, (accepted - right) / (len(alike) - alike.sum())))
    true_positives = np.concatenate((zero, right / alike.sum()))
    return false_positives, true_positives


def equal_error_rate(false_positives: Distances, true_positives: Distances) -> float:
    """The rate at which false positives and false negatives meet, on the line between points."""
    gap = (1 - true_positives) - false_positives  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])
    step = false_positives[after] - false_positives[before]
    return float(false_positives[before] + share * step)


def _matrix(right: Alike, classes_of: NDArray[np.int64], classes: int) -> Distances:
    cell = classes_of.min(axis=1) * classes + classes_of.max(axis=1)
    pairs = np.bincount(cell, minlength=classes**2).reshape(classes, classes)
    rights = np.bincount(cell, right, minlength=classes**2).reshape(classes, classes)
    with np.errstate(invalid="ignore"):
        half = rights / pairs
    return np.where(np.isnan(half), half.T, half)
