"""Confidence intervals of means over queries, and tests of the difference of two means.

The values of a query are its measures; queries are taken for a sample of those that people ask.
"""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Rows = NDArray[np.int64]

RESAMPLES = 1000
PERMUTATIONS = 10_000
_AT_ONCE = 250  # permutations; 20 MB of signs for 10,000 queries


def bootstrap(values: Values, seed: int = 0) -> Values:
    """(2, m): the ends of the 95% confidence intervals of the means of values (q, m).

    The percentiles 2.5 and 97.5 of the means of 1,000 samples of q queries each, drawn with
    replacement by seed: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3. The
    same queries are drawn for all m.
    """
    generator = np.random.default_rng(seed)
    count = len(values)
    means = np.empty((RESAMPLES, values.shape[1]))
    for row in range(RESAMPLES):
        drawn = generator.integers(count, size=count)
        means[row] = np.bincount(drawn, minlength=count) @ values / count
    ends: Values = np.percentile(means, [2.5, 97.5], axis=0)
    return ends


def interval_over_pairs(values: Values, first: Rows, second: Rows) -> Values:
    """(2, m): the ends of the 95% confidence intervals of the means of values (n, m) of pairs.

    first, second: (n,), the rows of the images of each pair. Pairs that share an image are not
    independent: the variance of a mean is the sum of the products of the residuals of all pairs of
    pairs that share one, over n²: Aronow, Samii, Assenova, Cluster-Robust Variance Estimation for
    Dyadic Data, Political Analysis 23(4), 2015. It is at least what it were without sharing.
    """
    means = values.mean(axis=0)
    residuals = values - means
    own = np.square(residuals).sum(axis=0)
    _, row = np.unique(np.concatenate((first, second)), return_inverse=True)
    shared = [
        np.square(np.bincount(row, np.concatenate((column, column)))).sum()
        for column in residuals.T
    ]
    # A pair stands with itself twice, once for each of its images.
    variance = np.maximum(np.array(shared) - own, own) / len(values) ** 2
    reach = 1.96 * np.sqrt(variance)
    ends: Values = np.stack((means - reach, means + reach))
    return ends


def permutation_test(differences: Values, seed: int = 0) -> float:
    """Return the probability p of a mean difference as large as that of differences (q,), by
    chance.

    Two-sided and paired: if both systems were alike, each query's difference might as well have
    the other sign. p is the share of 10,000 draws of signs, and of the signs as they are, whose
    mean is as far from 0: Smucker, Allan, Carterette, A comparison of statistical significance
    tests for information retrieval evaluation (CIKM 2007).
    """
    generator = np.random.default_rng(seed)
    total = differences.sum()
    # Equal but for the order in which they were added up.
    as_far = np.abs(total) - 1e-9 * np.abs(differences).sum()
    count = 1
    for _ in range(PERMUTATIONS // _AT_ONCE):
        size = _AT_ONCE * len(differences)
        bits = np.unpackbits(np.frombuffer(generator.bytes(-(-size // 8)), np.uint8), count=size)
        kept = bits.reshape(_AT_ONCE, len(differences)).astype(np.float64) @ differences
        count += int((np.abs(2 * kept - total) >= as_far).sum())
    return count / (PERMUTATIONS + 1)
