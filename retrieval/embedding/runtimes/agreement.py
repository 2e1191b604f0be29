"""The promise of each precision: how far embeddings may be from those in float32.

Retrieval needs labels to be measured, and a user's images have none. So the promise is checked by
what rounding adds to embeddings: noise, as a share of the embeddings' own variance.
`python -m benchmarks.studies.precision` measures the loss of mAP and P@10 at these limits.
"""

from dataclasses import dataclass

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Metric, Vectors
from retrieval.embedding.runtimes.contract import Precision

MAX_EXACT_ERROR = 2e-4
"""Limit of an embedding's squared error over its squared length; a cosine of .9999."""

MAX_NOISE = {Precision.BALANCED: 0.0005, Precision.FAST: 0.005}
"""Limit of the mean squared error over the variance of the embeddings.

Rounding is not random: the errors of one network are alike. EfficientNet-Lite0 in bfloat16 lost
.0010 of mAP and P@10 on 6,000 training images of CIFAR-10 at a noise of .0006, .0005 at .0004, and
.0020 and .0013 at .0037. Random noise of .001 lost .0000 of its mAP, and .0001 of the P@10 of
siamese-quick in classes that it had not seen, which was the worst case.
"""


@dataclass(frozen=True, slots=True)
class Deviation:
    """Deviation of embeddings from a reference.

    worst: the largest squared error over the squared length of the reference. noise: the mean
    squared error over the variance of the reference.
    """

    worst: float
    noise: float

    def keeps(self, precision: Precision | str) -> bool:
        """Return whether the promise of this precision is kept."""
        precision = choice(Precision, precision)
        if precision is Precision.EXACT:
            return self.worst <= MAX_EXACT_ERROR
        return self.noise <= MAX_NOISE[precision]


def deviation(reference: Vectors, vectors: Vectors, metric: Metric | str) -> Deviation:
    """Return the deviation of vectors (n, dim) from the reference (n, dim), n ≥ 1.

    For the cosine, both are scaled to unit length first. A result that is not finite deviates
    without limit.
    """
    metric = choice(Metric, metric)
    if not np.isfinite(vectors).all():
        return Deviation(np.inf, np.inf)
    first, second = (each.astype(np.float64) for each in (reference, vectors))
    if metric is Metric.COSINE:
        first, second = _unit(first), _unit(second)
    errors = ((first - second) ** 2).sum(axis=1)
    lengths = (first**2).sum(axis=1)
    variance = ((first - first.mean(axis=0)) ** 2).sum(axis=1).mean()
    return Deviation(_ratio(errors, lengths).max(), float(_ratio(errors.mean(), variance)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def _ratio(error: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return error / size. It is 0 without an error; else infinite if the size is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / size)
