"""Intervals and probabilities against scipy, and against what is known of them."""

import numpy as np
import pytest
from scipy import stats

from retrieval.quality.significance import bootstrap, permutation_test


def test_the_interval_is_the_normal_one_for_many_queries() -> None:
    values = np.random.default_rng(0).random((3000, 2)) ** 2
    low, high = bootstrap(values)
    for column in range(2):
        mean, error = values[:, column].mean(), stats.sem(values[:, column])
        assert low[column] == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
        assert high[column] == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_the_interval_of_a_skewed_measure_is_not_symmetric() -> None:
    low, high = bootstrap(np.array([[0.0]] * 18 + [[1.0]] * 2))[:, 0]
    assert low == 0
    assert high > 0.2


def test_the_interval_follows_from_the_seed() -> None:
    values = np.random.default_rng(0).random((50, 1))
    assert bootstrap(values, seed=1).tolist() == bootstrap(values, seed=1).tolist()
    assert bootstrap(values, seed=1).tolist() != bootstrap(values, seed=2).tolist()


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_p_is_scipys(shift: float) -> None:
    differences = np.random.default_rng(1).normal(shift, 1, 12)
    exact = stats.permutation_test(
        (differences, np.zeros(12)),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        n_resamples=np.inf,  # all 2^12
        vectorized=True,
    ).pvalue
    assert permutation_test(differences) == pytest.approx(exact, abs=0.015)


def test_no_difference_at_all_has_a_p_of_one_and_a_large_one_the_least_there_is() -> None:
    assert permutation_test(np.zeros(20)) == 1
    assert permutation_test(np.full(2000, 0.1)) == 1 / 10_001


def test_p_is_uniform_where_both_are_alike() -> None:
    generator = np.random.default_rng(2)
    found = [permutation_test(generator.normal(size=40), seed=i) for i in range(200)]
    assert stats.kstest(found, "uniform").pvalue > 0.01
