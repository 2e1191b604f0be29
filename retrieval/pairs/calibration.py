"""Calibrate distances: a threshold up to which two images are alike, and the probability of it.

Both are fitted to validation pairs. The encoder must not have been trained on their images: alike
training images have smaller distances than alike new images.
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
from retrieval.storage.sets.manifest import EncoderFacts

FORMAT = "retr-calibration"
VERSION = 2  # 1 had no checksum
REMEDY = "calibrate again"
CALIBRATIONS = "calibration-*.json"
"""Names of calibrations in an encoder's folder; see `file_name`."""
CALIBRATION_ERROR_BINS = 15
"""Number of bins of the expected calibration error, as in Guo et al., arXiv:1706.04599."""

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
        """Return the maximum-likelihood curve for pairs at these distances (n,)."""
        from sklearn.linear_model import LogisticRegression  # slow to import

        # Two parameters need no penalty. The solver converges at any scale of the distances.
        scale = float(distances.std()) or 1.0
        model = LogisticRegression(C=np.inf).fit(distances[:, None] / scale, alike)
        return cls(float(model.intercept_[0]), float(model.coef_[0, 0]) / scale)

    def probability(self, distances: Distances) -> Distances:
        """Return the probability (n,) of pairs at these distances (n,)."""
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
        """Return the decreasing curve of least squared error for pairs at these distances (n,)."""
        from sklearn.isotonic import IsotonicRegression

        model = IsotonicRegression(increasing=False).fit(distances, alike)
        return cls(tuple(model.X_thresholds_.tolist()), tuple(model.y_thresholds_.tolist()))

    def probability(self, distances: Distances) -> Distances:
        """Return the probabilities (n,) of pairs at these distances (n,).

        Beyond the first and the last point, the probability is that of the point.
        """
        return np.interp(distances, self.distances, self.probabilities)


@dataclass(frozen=True, slots=True)
class GivenProbability:
    """The probability 1 - distance, for a scorer whose distance is 1 - its probability."""

    def probability(self, distances: Distances) -> Distances:
        """Return the probability (n,) of pairs at these distances (n,)."""
        return 1 - np.asarray(distances)


CURVES: Mapping[Method, type[Logistic | Isotonic]] = {
    Method.LOGISTIC: Logistic,
    Method.ISOTONIC: Isotonic,
}


@dataclass(frozen=True, slots=True)
class FittedTo:
    """Facts about the pairs that a calibration was fitted to.

    pairs, images: their numbers. source: name of the source of the images.
    """

    pairs: int
    images: int
    classes: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """Threshold up to which pairs count as alike, and the probability that they are alike.

    method: method of fitting; None if a scorer's own probability is kept.
    metric: None for the distance 1 - p of a scorer with a probability p.
    encoder: fingerprint of the encoder or the scorer.
    ece: expected calibration error on other pairs; None if it was not measured.
    """

    method: Method | None
    curve: Logistic | Isotonic | GivenProbability
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
        """Return the calibration fitted to pairs.

        distances: (n,), of the pairs. alike: (n,), True for pairs of one class. Raises BadInput
        unless some pairs are alike and some are not.
        """
        metric = None if metric is None else choice(Metric, metric)
        method = None if method is None else choice(Method, method)
        check_kinds(alike)
        curve = GivenProbability() if method is None else CURVES[method].fitted(distances, alike)
        return cls(method, curve, best_threshold(distances, alike), metric, encoder, fitted_to)

    def write(self, path: Path) -> None:
        """Write the calibration as JSON, whole or not at all."""
        made_folder(path.parent)
        write_sealed(path, FORMAT, VERSION, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the calibration in the file. Raises BadData if it is damaged."""
        found = read_document(path, cls, FORMAT, VERSION, REMEDY)
        wanted = GivenProbability if found.method is None else CURVES[found.method]
        if not isinstance(found.curve, wanted):
            raise BadData(f"{path}: the curve does not match method {found.method}; {REMEDY}")
        if isinstance(found.curve, Isotonic):
            found.curve.check(path)
        return found


def file_name(metric: Metric | str | None) -> str:
    """Return the name of a calibration's file. metric: None for a scorer."""
    metric = None if metric is None else choice(Metric, metric)
    return f"calibration-{metric or 'scorer'}.json"


def place_to_keep(encoder: EncoderFacts, metric: Metric | str | None, kept: Path) -> Path:
    """Return the path to write the encoder's calibration to.

    It is in the encoder's folder, if `retr train` made one. Else it is in `kept`, a folder for
    calibrations of this encoder.
    """
    metric = None if metric is None else choice(Metric, metric)
    found = provenance_of(encoder) if ":" in encoder.name else None
    folder = kept if found is None else found.folder
    return folder / file_name(metric)


def find_calibration(
    encoder: EncoderFacts, metric: Metric | str | None, kept: Path
) -> Calibration | None:
    """Return the calibration in the folder `kept`, else the encoder's own, else None.

    metric: None for a scorer. Calibrations for another metric or encoder are ignored.
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
    """Return the threshold with the highest accuracy, the lowest among equals.

    It is midway between two of the distances (n,). Raises BadInput unless some pairs are alike and
    some are not.
    """
    check_kinds(alike)
    found, which, counts = np.unique(distances, return_inverse=True, return_counts=True)
    of_alike = np.bincount(which, alike, minlength=len(found))
    # With the threshold found[i], pairs are right that are alike up to it, or not alike beyond it.
    right = np.cumsum(of_alike) + (len(alike) - alike.sum()) - np.cumsum(counts - of_alike)
    best = int(np.argmax(right))
    return float((found[best] + found[min(best + 1, len(found) - 1)]) / 2)


def expected_calibration_error(
    probabilities: Distances, alike: Alike, bins: int = CALIBRATION_ERROR_BINS
) -> float:
    """Return the mean gap between probability and share of alike pairs, over bins of equal width.

    Bins are weighted by their number of pairs. Source: Guo et al., On Calibration of Modern Neural
    Networks, arXiv:1706.04599, equation 5, for the probability of one of two classes.
    """
    which = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    said = np.bincount(which, probabilities, minlength=bins)
    met = np.bincount(which, alike, minlength=bins)
    return float(np.abs(said - met).sum() / len(alike))


def check_kinds(alike: Alike) -> None:
    """Raise BadInput unless some pairs are alike and some are not."""
    if not alike.any() or alike.all():
        raise BadInput(
            f"{int(alike.sum())} of {len(alike)} pairs show the same class; give pairs of the same "
            "class and pairs of different classes"
        )
