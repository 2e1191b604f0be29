"""Verification: decide by distance whether two images show the same class.

Results are given separately for classes that the encoder was trained on, for classes that it was
not trained on, and for both together. docs/metrics.md defines the measures.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import resolve_choices
from retrieval.contracts import Json, Mask, Metric
from retrieval.errors import BadInput, Mismatch
from retrieval.labels import label_set
from retrieval.pairs.calibration import (
    Alike,
    Calibration,
    FittedTo,
    Method,
    check_kinds,
    expected_calibration_error,
)
from retrieval.pairs.draw import Pairs, Scheme, draw_pairs, pair_distances
from retrieval.quality.labelled import Labelled
from retrieval.quality.provenance import Provenance, ids_within
from retrieval.quality.ranking import Distances
from retrieval.quality.significance import interval_over_pairs
from retrieval.storage.sets.manifest import SourceFacts

Interval = tuple[float, float]
DistancesOf = Callable[[Labelled, Pairs], Distances]

JOINT, TRAINED, HELD_OUT = "joint", "trained", "held_out"


@dataclass(frozen=True, slots=True)
class Procedure:
    """Settings for drawing and judging pairs.

    count: number of pairs of each group, half of them alike; None for the default of `draw_pairs`.
    method: method to fit probabilities; None for distances that are 1 - p.
    thresholds: additional thresholds for the accuracy.
    """

    metric: Metric
    count: int | None = None
    scheme: Scheme = Scheme.RANDOM
    seed: int = 0
    method: Method | None = Method.ISOTONIC
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        resolve_choices(self)


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """Quality of distances in distinguishing pairs of the same class from other pairs.

    accuracy: at the calibration's threshold. accuracy_at: at additional thresholds.
    intervals: the 95% confidence intervals of both; the calibration's threshold is under None.
    auc: the probability that a pair that is alike is nearer than one that is not; ties count half.
    eer: the rate at which false positives and false negatives are equally frequent.
    ece: the expected calibration error of the probabilities.
    roc: (points, 2), false and true positive rates, ascending from 0 to 1, without points on a line
        between two others.
    classes: names of the classes.
    per_class: the accuracy over the pairs of two classes, by their positions in `classes`, the
        lower first. Two classes without pairs are left out.
    """

    pairs: int
    accuracy: float
    accuracy_at: Mapping[float, float]
    intervals: Mapping[float | None, Interval]
    auc: float
    eer: float
    ece: float
    roc: Distances
    classes: Sequence[str]
    per_class: Mapping[tuple[int, int], float]

    @property
    def margin(self) -> float:
        """Half of the width of the accuracy's interval, for `±`."""
        low, high = self.intervals[None]
        return (high - low) / 2

    def matrix(self) -> Distances:
        """Return `per_class` as a matrix (classes, classes); NaN for two classes without pairs."""
        matrix = np.full((len(self.classes), len(self.classes)), np.nan)
        for (a, b), accuracy in self.per_class.items():
            matrix[a, b] = matrix[b, a] = accuracy
        return matrix

    def roc_points(self, most: int = 1_000) -> list[dict[str, float]]:
        """Return at most `most` points of the ROC, at even steps."""
        chosen = np.unique(np.linspace(0, len(self.roc) - 1, most).round().astype(np.int64))
        return [{"false_positives": x, "true_positives": y} for x, y in self.roc[chosen].tolist()]

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr pairs --json` prints."""
        per_class: dict[str, dict[str, Json]] = {}
        for (a, b), accuracy in self.per_class.items():
            for one, other in ((a, b), (b, a)):
                per_class.setdefault(self.classes[one], {})[self.classes[other]] = accuracy
        return {
            "pairs": self.pairs,
            "accuracy": self.accuracy,
            "accuracy_at": {f"{at:.12g}": value for at, value in self.accuracy_at.items()},
            "auc": self.auc,
            "eer": self.eer,
            "ece": self.ece,
            "intervals": {
                "accuracy": [*self.intervals[None]],
                "accuracy_at": {f"{at:.12g}": [*self.intervals[at]] for at in self.accuracy_at},
            },
            "per_class": dict(sorted(per_class.items())),
        }


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationTest:
    """A calibration, and its quality on pairs of test images.

    groups: `joint`, for all classes; `trained` and `held_out`, for the classes that the encoder was
        trained on, and for those that it was not trained on.
    left_out: for each missing group, the reason.
    pairs, distances: of the group `joint`; rows of pairs are those of the test images.
    """

    calibration: Calibration
    groups: Mapping[str, Verification]
    left_out: Mapping[str, str]
    pairs: Pairs
    distances: Distances


def class_groups(
    there: Collection[str], encoder: Provenance | None, held_out: Collection[str] | None
) -> dict[str, set[str]]:
    """Return the classes that the encoder was trained on, and those that it was not.

    there: all classes of the images.
    held_out: classes that the encoder was not trained on, given by the user; None for all that the
        encoder's card does not name.

    The result is empty if both are unknown, or the encoder was trained without labels. Raises
    Mismatch for a held-out class that the encoder was trained on.
    """
    known = None if encoder is None or "" in encoder.classes else encoder.classes
    classes = label_set(there)
    if held_out is not None:
        new = label_set(held_out)
        for name in sorted((known or frozenset()) & new):
            raise Mismatch(
                f"class '{name}' is not held out: the encoder was trained on it; name classes "
                f"other than {', '.join(sorted(known or ()))}"
            )
        return {TRAINED: classes - new if known is None else classes & known, HELD_OUT: new}
    if known is None:
        return {}
    return {TRAINED: classes & known, HELD_OUT: classes - known}


def split(images: Labelled, known: Mask, seed: int) -> tuple[Labelled, Labelled]:
    """Return the images to test, and other, random images for validation.

    known: (n,), True for images that the encoder was trained on, which are not for validation. From
    the other images of each class, a fifth is drawn for validation: at least two if there are four,
    else none.
    """
    generator = np.random.default_rng(seed)
    labels = np.array(images.labels, dtype=object)
    validating = np.zeros(len(images), bool)
    for name in images.classes():
        new = generator.permutation(np.flatnonzero(~known & (labels == name)))
        validating[new[: max(len(new) // 5, 2 if len(new) >= 4 else 0)]] = True
    return images.take(np.flatnonzero(~validating)), images.take(np.flatnonzero(validating))


def check_apart(
    test: Labelled, validation: Labelled, of_test: SourceFacts, of_validation: SourceFacts
) -> None:
    """Raise Mismatch if both sets have an image with the same id or path.

    The ids of a source are the same in a copy of the source.
    """
    same = of_test.whole == of_validation.whole
    within = {*ids_within(test, of_test)} if same else set()
    paths = {*test.known_paths()} - {None}
    both = [
        name
        for name, row, own, path in zip(
            validation.ids,
            validation.rows_in(test).tolist(),
            ids_within(validation, of_validation),
            validation.known_paths(),
            strict=True,
        )
        if row >= 0 or own in within or path in paths
    ]
    if both:
        raise Mismatch(
            f"{len(both)} images are in both the validation and the test set, such as '{both[0]}'; "
            "give other images for one of them"
        )


def verify(
    test: Labelled,
    validation: Labelled,
    procedure: Procedure,
    encoder: str,
    groups: Mapping[str, Collection[str]] | None = None,
    distances_of: DistancesOf | None = None,
    source: str = "",
) -> CalibrationTest:
    """Calibrate on pairs of validation images, and verify pairs of test images.

    encoder: fingerprint of the encoder, for the record.
    groups: groups of classes, as `class_groups` returns them.
    distances_of: a scorer's function from images and pairs to distances (pairs,); None for the
        procedure's metric between vectors.
    source: name of the validation images' source, for the record.

    Validation pairs have the classes of `validation_classes`. Raises BadInput if none can be drawn.
    """
    groups = {name: label_set(classes) for name, classes in (groups or {}).items()}

    def by_vectors(images: Labelled, pairs: Pairs) -> Distances:
        return pair_distances(images.vectors, pairs, procedure.metric)

    measure = distances_of or by_vectors
    names = test.classes()
    chosen = validation_classes(validation, names, groups)
    try:
        drawn, _ = _drawn(validation, chosen, procedure, 0)
    except BadInput as error:
        raise BadInput(f"validation images: {error}") from None
    calibration = Calibration.fitted(
        measure(validation, drawn),
        drawn.alike,
        procedure.method,
        None if distances_of else procedure.metric,
        encoder,
        FittedTo(len(drawn), drawn.images(), tuple(chosen), source),
    )
    drawn, classes = _drawn(test, names, procedure, 1)
    distances = measure(test, drawn)
    found = {JOINT: verify_pairs(distances, drawn, classes, names, calibration, procedure)}
    left_out = {}
    for number, group in enumerate((TRAINED, HELD_OUT), start=2):
        if not groups:
            left_out[group] = "it is not known which classes the encoder was trained on"
            continue
        of_group = [name for name in names if name in groups[group]]
        if not of_group:
            left_out[group] = "there are none"
            continue
        try:
            pairs, classes = _drawn(test, of_group, procedure, number)
        except BadInput as error:
            left_out[group] = str(error)
            continue
        found[group] = verify_pairs(
            measure(test, pairs), pairs, classes, of_group, calibration, procedure
        )
    return CalibrationTest(calibration, found, left_out, drawn, distances)


def validation_classes(
    validation: Labelled, tested: Collection[str], groups: Mapping[str, Collection[str]]
) -> list[str]:
    """Return the classes that validation pairs are drawn from.

    These are the first of the following sets that has two classes: the tested classes that the
    encoder was trained on; all classes that it was trained on; all classes. Without groups, the
    encoder counts as trained on all classes.
    """
    there = {*validation.classes()}
    known = there & label_set(groups.get(TRAINED, there))
    for chosen in (known & label_set(tested), known):
        if len(chosen) > 1:
            return sorted(chosen)
    return sorted(there)


def _drawn(
    images: Labelled, names: Sequence[str], procedure: Procedure, number: int
) -> tuple[Pairs, NDArray[np.int64]]:
    """Draw pairs of these classes; return them, and the class numbers (n, 2) of their images."""
    labels = images.numbers(names)
    pairs = draw_pairs(labels, procedure.count, procedure.scheme, (procedure.seed, number))
    return pairs, np.stack((labels[pairs.first], labels[pairs.second]), axis=1)


def verify_pairs(
    distances: Distances,
    pairs: Pairs,
    classes_of: NDArray[np.int64],
    names: Sequence[str],
    calibration: Calibration,
    procedure: Procedure,
) -> Verification:
    """Return the quality of the distances (n,) for the pairs (n).

    classes_of: (n, 2), positions in `names` of the classes of both images. Raises BadInput unless
    some pairs are alike and some are not.
    """
    from sklearn.metrics import auc, roc_curve  # slow to import

    alike = pairs.alike
    check_kinds(alike)
    false_positives, true_positives, _ = roc_curve(alike, -distances)
    asked = [*dict.fromkeys(procedure.thresholds)]
    thresholds = np.array([calibration.threshold, *asked])
    right = (distances[:, None] <= thresholds) == alike[:, None]
    accuracies = right.mean(axis=0).tolist()
    low, high = interval_over_pairs(right.astype(np.float64), pairs.first, pairs.second).tolist()
    intervals: list[Interval] = [*zip(low, high, strict=True)]
    return Verification(
        pairs=len(alike),
        accuracy=accuracies[0],
        accuracy_at=dict(zip(asked, accuracies[1:], strict=True)),
        intervals=dict(zip((None, *asked), intervals, strict=True)),
        auc=float(auc(false_positives, true_positives)),
        eer=equal_error_rate(false_positives, true_positives),
        ece=expected_calibration_error(calibration.curve.probability(distances), alike),
        roc=np.stack((false_positives, true_positives), axis=1),
        classes=names,
        per_class=_per_class(right[:, 0], classes_of, len(names)),
    )


def equal_error_rate(false_positives: Distances, true_positives: Distances) -> float:
    """Return the rate at which false positives and false negatives are equally frequent.

    Between points of the ROC, rates are interpolated.
    """
    gap = (1 - true_positives) - false_positives  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])
    step = false_positives[after] - false_positives[before]
    return float(false_positives[before] + share * step)


def _per_class(
    right: Alike, classes_of: NDArray[np.int64], classes: int
) -> dict[tuple[int, int], float]:
    """Return the accuracy over the pairs of each two classes; see `Verification`."""
    keys = classes_of.min(axis=1) * classes + classes_of.max(axis=1)
    met, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
    shares = np.bincount(which, right) / counts
    return {
        divmod(key, classes): share
        for key, share in zip(met.tolist(), shares.tolist(), strict=True)
    }
