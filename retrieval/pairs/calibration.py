"""Calibrate distances: the threshold for two images to be alike, and the probability.

Both are fitted to validation pairs, whose images an encoder must not have been trained on: it knows
those too well, so that alike ones stand closer together than new ones do.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit  # type: ignore[import-untyped]

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Metric
from retrieval.errors import BadData, BadInput
from retrieval.quality.provenance import provenance_of
from retrieval.quality.ranking import Distances
from retrieval.storage.document import read_document
from retrieval.storage.files import made_folder, write_sealed
from retrieval.storage.manifest import EncoderFacts

FORMAT = "retr-calibration"
VERSION = 2  # 1 had no checksum
REMEDY = "calibrate again"
CALIBRATIONS = "calibration-*.json"
"""The names of calibrations in an encoder's folder: see `file_name`."""
BINS = 15
"""Of the expected calibration error, as in Guo et al., arXiv:1706.04599."""

Alike = NDArray[np.bool_]


class Method(StrEnum):
    """Methods to fit probabilities."""

    LOGISTIC = "logistic"
    ISOTONIC = "isotonic"


@dataclass(frozen=True, slots=True)
class Logistic:
    """1 / (1 + exp(-(intercept + slope * distance))): Platt, Probabilistic Outputs, 1999."""

    intercept: float
    slope: float

    @classmethod
    def fitted(cls, distances: Distances, alike: Alike) -> Self:
        """Return the most likely curve of pairs at these distances (n,)."""
        from sklearn.linear_model import LogisticRegression  # slow to import

        # Two parameters need no penalty; scaled, the solver is sure to converge.
        scale = float(distances.std()) or 1.0
        model = LogisticRegression(C=np.inf).fit(distances[:, None] / scale, alike)
        return cls(float(model.intercept_[0]), float(model.coef_[0, 0]) / scale)

    def probability(self, distances: Distances) -> Distances:
        """(n,): of pairs at these distances (n,)."""
        return np.asarray(expit(self.intercept + self.slope * np.asarray(distances)))


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Lines between (distance, probability) points: Zadrozny and Elkan, KDD 2002."""

    distances: tuple[float, ...]
    probabilities: tuple[float, ...]

    def check(self, path: Path) -> None:
        """Raise BadData, naming the file, unless there are points and their distances ascend."""
        if not self.distances or len(self.distances) != len(self.probabilities):
            raise BadData(f"{path}: distances and probabilities differ in length; {REMEDY}")
        if any(np.diff(self.distances) <= 0):
            raise BadData(f"{path}: distances do not ascend; {REMEDY}")

    @classmethod
    def fitted(cls, distances: Distances, alike: Alike) -> Self:
        """Return the falling curve of least squared error for pairs at these distances (n,)."""
        from sklearn.isotonic import IsotonicRegression

        model = IsotonicRegression(increasing=False).fit(distances, alike)
        return cls(tuple(model.X_thresholds_.tolist()), tuple(model.y_thresholds_.tolist()))

    def probability(self, distances: Distances) -> Distances:
        """(n,): of pairs at these distances (n,); beyond the points, that of the last."""
        return np.interp(distances, self.distances, self.probabilities)


@dataclass(frozen=True, slots=True)
class Given:
    """1 - distance, for distances that a scorer made of its probabilities."""

    def probability(self, distances: Distances) -> Distances:
        """(n,): of pairs at these distances (n,)."""
        return 1 - np.asarray(distances)


CURVES: Mapping[Method, type[Logistic | Isotonic]] = {
    Method.LOGISTIC: Logistic,
    Method.ISOTONIC: Isotonic,
}


@dataclass(frozen=True, slots=True)
class FittedTo:
    """Pairs that a calibration was fitted to: their number, and their images and classes.

    source: the name of the source of the images.
    """

    pairs: int
    images: int
    classes: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """The threshold up to which pairs are called alike, and the probability that they are.

    metric: None for the distance 1 - p of a scorer that has a probability p of its own; method:
    None where that is kept. encoder: the fingerprint of the encoder or the scorer. ece: the
    expected calibration error that was met on other pairs, where some were tried.
    """

    method: Method | None
    curve: Logistic | Isotonic | Given
    threshold: float
    metric: Metric | None
    encoder: str
    fitted_to: FittedTo
    ece: float | None = None

    def __post_init__(self) -> None:
        resolve_choices(self)

    @classmethod
    def fitted(
        cls,
        distances: Distances,
        alike: Alike,
        method: Method | str | None,
        metric: Metric | str | None,
        encoder: str,
        fitted_to: FittedTo,
    ) -> Self:
        """Return the calibration of pairs at these distances (n,) that are `alike` (n,) or not.

        Raises BadInput unless some are alike and some are not.
        """
        metric = None if metric is None else choice(Metric, metric)
        method = None if method is None else choice(Method, method)
        check_kinds(alike)
        curve = Given() if method is None else CURVES[method].fitted(distances, alike)
        return cls(method, curve, best_threshold(distances, alike), metric, encoder, fitted_to)

    def write(self, path: Path) -> None:
        """Write the calibration as JSON, whole or not at all."""
        made_folder(path.parent)
        write_sealed(path, FORMAT, VERSION, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the calibration in the file. Raises BadData if it is damaged."""
        found = read_document(path, cls, FORMAT, VERSION, REMEDY)
        wanted = Given if found.method is None else CURVES[found.method]
        if not isinstance(found.curve, wanted):
            raise BadData(f"{path}: the curve is not one of method {found.method}; {REMEDY}")
        if isinstance(found.curve, Isotonic):
            found.curve.check(path)
        return found


def file_name(metric: Metric | str | None) -> str:
    """Return the name of the file of a calibration. metric: None for that of a scorer."""
    metric = None if metric is None else choice(Metric, metric)
    return f"calibration-{metric or 'scorer'}.json"


def place_to_keep(encoder: EncoderFacts, metric: Metric | str | None, kept: Path) -> Path:
    """Return the path for the encoder's calibration.

    It is in the encoder's own folder if `retr train` made one, else in `kept`, a folder for this
    encoder's calibrations.
    """
    metric = None if metric is None else choice(Metric, metric)
    found = provenance_of(encoder) if ":" in encoder.name else None
    folder = kept if found is None else found.folder
    return folder / file_name(metric)


def find_calibration(
    encoder: EncoderFacts, metric: Metric | str | None, kept: Path
) -> Calibration | None:
    """Return the calibration in the folder `kept`, else the encoder's own, else None.

    metric: None for the calibration of a scorer. Calibrations for another metric or another encoder
    are passed over.
    """
    metric = None if metric is None else choice(Metric, metric)
    own = provenance_of(encoder)
    shipped = [] if own is None else [own.folder]
    for folder in (kept, *shipped):
        path = folder / file_name(metric)
        if path.is_file():
            found = Calibration.read(path)
            if (found.metric, found.encoder) == (metric, encoder.fingerprint):
                return found
    return None


def best_threshold(distances: Distances, alike: Alike) -> float:
    """Return the threshold with the highest accuracy, midway between two distances; the lowest of
    equals.

    Raises BadInput unless some pairs are alike and some are not.
    """
    check_kinds(alike)
    found, which, counts = np.unique(distances, return_inverse=True, return_counts=True)
    of_alike = np.bincount(which, alike, minlength=len(found))
    # Right at found[i]: alike pairs up to it, and others beyond it.
    right = np.cumsum(of_alike) + (len(alike) - alike.sum()) - np.cumsum(counts - of_alike)
    best = int(np.argmax(right))
    return float((found[best] + found[min(best + 1, len(found) - 1)]) / 2)


def expected_calibration_error(probabilities: Distances, alike: Alike, bins: int = BINS) -> float:
    """Return the mean gap between probability and share of alike pairs, over bins of equal width.

    Each bin counts by its pairs. Guo et al., On Calibration of Modern Neural Networks,
    arXiv:1706.04599, equation 5, for the probability of one class of two.
    """
    which = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    said = np.bincount(which, probabilities, minlength=bins)
    met = np.bincount(which, alike, minlength=bins)
    return float(np.abs(said - met).sum() / len(alike))


def check_kinds(alike: Alike) -> None:
    """Raise BadInput unless some pairs are alike and some are not."""
    if not alike.any() or alike.all():
        raise BadInput(
            f"of {len(alike)} pairs {int(alike.sum())} show the same class; give some that do and "
            "some that do not"
        )
