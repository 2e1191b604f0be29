"""Confidence intervals of means over queries, and tests of the difference of two means.

Values are the measures of each query. The queries are treated as a random sample.
"""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Rows = NDArray[np.int64]

RESAMPLES = 1000
PERMUTATIONS = 10_000
PERMUTATIONS_PER_BLOCK = 250  # 20 MB of signs for 10,000 queries


def bootstrap(values: Values, seed: int = 0) -> Values:
    """Return the ends (2, m) of the 95% confidence intervals of the means of values (q, m).

    The ends are the percentiles 2.5 and 97.5 of the means of 1,000 samples. Each sample has q
    queries, drawn with replacement by seed, and the same for all m. Source: Efron and Tibshirani,
    An Introduction to the Bootstrap (1993), 13.3.
    """
    generator = np.random.default_rng(seed)
    count = len(values)
    means = np.empty((RESAMPLES, values.shape[1]))
    for row in range(RESAMPLES):
        drawn = generator.integers(count, size=count)
        means[row] = np.bincount(drawn, minlength=count) @ values / count
    ends: Values = np.percentile(means, [2.5, 97.5], axis=0)
    return ends


def bootstrap_of_groups(values: Values, group: Rows, seed: int = 0) -> Values:
    """Return the ends (2, m) of the 95% confidence intervals of the means of values (q, m).

    group: (q,), numbers from 0. Queries of one group, such as the captions of an image, are not
    independent. So groups are drawn, with all their queries, and otherwise as `bootstrap` draws.
    """
    counts = np.bincount(group).astype(np.float64)
    sums = np.stack([np.bincount(group, column) for column in values.T], axis=1)
    generator = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, values.shape[1]))
    for row in range(RESAMPLES):
        times = np.bincount(generator.integers(len(counts), size=len(counts)), minlength=len(sums))
        means[row] = times @ sums / (times @ counts)
    ends: Values = np.percentile(means, [2.5, 97.5], axis=0)
    return ends


def interval_over_pairs(values: Values, first: Rows, second: Rows) -> Values:
    """Return the ends (2, m) of the 95% confidence intervals of means over pairs of images.

    values: (n, m), m measures of each pair. first, second: (n,), the rows of its two images.

    Pairs that share an image are not independent. So the variance of a mean is a sum over each two
    pairs that share an image: the products of their residuals, over n². It is never less than the
    variance of independent pairs. Source: Aronow, Samii, Assenova, Cluster-Robust Variance
    Estimation for Dyadic Data, Political Analysis 23(4), 2015.
    """
    means = values.mean(axis=0)
    residuals = values - means
    own = np.square(residuals).sum(axis=0)
    _, row = np.unique(np.concatenate((first, second)), return_inverse=True)
    shared = [
        np.square(np.bincount(row, np.concatenate((column, column)))).sum()
        for column in residuals.T
    ]
    # `shared` counts each pair with itself twice, once for each of its images.
    variance = np.maximum(np.array(shared) - own, own) / len(values) ** 2
    reach = 1.96 * np.sqrt(variance)
    ends: Values = np.stack((means - reach, means + reach))
    return ends


def permutation_test(differences: Values, seed: int = 0) -> float:
    """Return the probability p that chance alone gives so large a mean of differences (q,).

    The test is two-sided and paired: if both systems were equally good, each difference could have
    the other sign. p is the share, among the given signs and 10,000 random draws of signs, whose
    mean is at least as far from 0. Source: Smucker, Allan, Carterette, A comparison of statistical
    significance tests for information retrieval evaluation (CIKM 2007).
    """
    generator = np.random.default_rng(seed)
    total = differences.sum()
    # The tolerance covers sums of the same numbers in another order.
    as_far = np.abs(total) - 1e-9 * np.abs(differences).sum()
    count = 1
    for _ in range(PERMUTATIONS // PERMUTATIONS_PER_BLOCK):
        size = PERMUTATIONS_PER_BLOCK * len(differences)
        bits = np.unpackbits(np.frombuffer(generator.bytes(-(-size // 8)), np.uint8), count=size)
        kept = (
            bits.reshape(PERMUTATIONS_PER_BLOCK, len(differences)).astype(np.float64) @ differences
        )
        count += int((np.abs(2 * kept - total) >= as_far).sum())
    return count / (PERMUTATIONS + 1)
