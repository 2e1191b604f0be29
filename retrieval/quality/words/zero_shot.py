"""Classes by their names: the class of an image is that whose words are nearest (zero-shot).

docs/words.md defines the probabilities and their calibration.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Json, Metric, Prompts, Vectors
from retrieval.errors import BadInput
from retrieval.quality.labelled import Labelled
from retrieval.quality.metrics import DEFINITIONS
from retrieval.quality.ranking import nearest
from retrieval.quality.significance import bootstrap
from retrieval.quality.words.texts import units

Values = NDArray[np.float64]
Classes = NDArray[np.int64]

NOTHING = ("none", "none of these", "nothing", "other", "something else")
"""Names of the class of images that show none of the others."""

SOMETHING = "something"  # the name that stands for images of anything, in templates
BINS = 15
MIN_FITTED = 50
"""Images with labels that a fit of the temperature needs."""
TEMPERATURES = (0.01, 100.0)
FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class NamedClasses:
    """Classes with their vectors, to assign images to.

    names: (c,). vectors: (c, dim), of unit length. nothing: the class of images that show none of
    the others, or -1. prompts: of the encoder.
    """

    names: tuple[str, ...]
    vectors: Vectors
    prompts: Prompts
    nothing: int = -1

    def logits(self, images: Vectors) -> Values:
        """Return the logits (n, c) of images (n, dim) of unit length.

        A logit is the encoder's scale times the cosine, plus its bias if it has one. With a bias,
        a logit of 0 says that text and image belong together with a probability of one half. That
        is the logit of the class of nothing.
        """
        logits = np.asarray(self.prompts.scale * (images @ self.vectors.T), np.float64)
        if self.prompts.bias is not None:
            logits += self.prompts.bias
            if self.nothing >= 0:
                logits[:, self.nothing] = 0.0
        return logits


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of images whose nearest class is their label, with its 95% confidence interval."""

    value: float
    interval: tuple[float, float]
    images: int
    classes: int
    per_class: dict[str, float]

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr eval --json` prints."""
        return {
            "accuracy": self.value,
            "interval": [*self.interval],
            "images": self.images,
            "classes": self.classes,
            "per_class": dict(self.per_class),
            "definition": DEFINITIONS["zero_shot"],
        }


def accuracy(texts: Labelled, images: Labelled, metric: Metric | str) -> Accuracy | None:
    """Return the zero-shot accuracy of labelled images, by texts with the names of their classes.

    Return None if no image has the label of a text.
    """
    metric = choice(Metric, metric)
    names = [*dict.fromkeys(str(label) for label in texts.labels)]
    of_text, of_image = texts.numbers(names), images.numbers(names)
    vectors = units(texts.vectors, metric)
    classes = np.stack([vectors[of_text == place].mean(0) for place in range(len(names))])
    known = np.flatnonzero(of_image >= 0)
    if not len(known):
        return None
    nearest_class = nearest(images.vectors[known], classes, metric, 1).rows[:, 0]
    right = (nearest_class == of_image[known]).astype(np.float64)
    low, high = bootstrap(right[:, None])[:, 0].tolist()
    there = np.unique(of_image[known]).tolist()
    per_class = {names[place]: float(right[of_image[known] == place].mean()) for place in there}
    return Accuracy(float(right.mean()), (low, high), len(known), len(names), per_class)


def probabilities(logits: Values, temperature: float = 1.0) -> Values:
    """Return the softmax (n, c) of logits / temperature."""
    scaled = logits / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    powers = np.exp(scaled)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def assigned(logits: Values) -> Classes:
    """Return the class (n,) with the largest logit; among equals the first."""
    return np.asarray(np.argmax(logits, axis=1), np.int64)


@dataclass(frozen=True, slots=True)
class Temperature:
    """The number that logits are divided by, and how well the probabilities then fit.

    Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599. images: with a label,
    that it was fitted to; 0 if it was not fitted. The expected calibration errors, before and
    after, are of images that the fit for them did not see; None if it was not fitted.
    """

    value: float = 1.0
    images: int = 0
    error_before: float | None = None
    error_after: float | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr label --json` prints."""
        return {
            "temperature": self.value,
            "images": self.images,
            "error_before": self.error_before,
            "error_after": self.error_after,
        }


def fitted_temperature(logits: Values, classes: Classes, seed: int = 0) -> Temperature:
    """Return the temperature that makes the classes (n,) of images with logits (n, c) likeliest.

    The errors are from five folds: each fold's probabilities have the temperature of the others.
    Raises BadInput for fewer than 50 images.
    """
    if len(classes) < MIN_FITTED:
        raise BadInput(
            f"{len(classes)} images with labels are too few to calibrate; give at least "
            f"{MIN_FITTED}"
        )
    fold = np.random.default_rng(seed).permutation(len(classes)) % FOLDS
    after = np.empty_like(logits)
    for each in range(FOLDS):
        held_out = fold == each
        value = _likeliest(logits[~held_out], classes[~held_out])
        after[held_out] = probabilities(logits[held_out], value)
    return Temperature(
        _likeliest(logits, classes),
        len(classes),
        calibration_error(probabilities(logits), classes),
        calibration_error(after, classes),
    )


def _likeliest(logits: Values, classes: Classes) -> float:
    """Return the temperature with the least mean negative log-likelihood."""
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    rows = np.arange(len(classes))

    def loss(log_temperature: float) -> float:
        found = probabilities(logits, float(np.exp(log_temperature)))[rows, classes]
        return -float(np.log(np.maximum(found, 1e-300)).mean())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def calibration_error(found: Values, classes: Classes) -> float:
    """Return the expected calibration error of probabilities (n, c) for classes (n,).

    The images are put into 15 bins of equal width by their largest probability. The error is the
    mean over images of |accuracy - mean probability| of their bin: Naeini et al., Obtaining Well
    Calibrated Probabilities Using Bayesian Binning (AAAI 2015).
    """
    largest = found.max(axis=1)
    right = assigned(found) == classes
    bins = np.minimum((largest * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    gaps = np.abs(
        np.bincount(bins, right, minlength=BINS) - np.bincount(bins, largest, minlength=BINS)
    )
    return float(gaps[counts > 0].sum() / len(classes))


def place_of_nothing(names: Sequence[str]) -> int:
    """Return the position of the class of nothing; -1 without one. Raises BadInput for two."""
    found = [place for place, name in enumerate(names) if name.casefold() in NOTHING]
    if len(found) > 1:
        raise BadInput(
            f"'{names[found[0]]}' and '{names[found[1]]}' both stand for none of the others; "
            "leave one out"
        )
    return found[0] if found else -1
