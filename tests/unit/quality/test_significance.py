"""Intervals and probabilities against scipy, and against what is known of them."""

import numpy as np
import pytest
from scipy import stats

from retrieval.quality.significance import bootstrap, interval_over_pairs, permutation_test


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


def test_the_interval_over_pairs_counts_images() -> None:
    # Each pair once, on its own images: the pairs count as queries.
    values = np.random.default_rng(0).random((500, 1))
    low, high = interval_over_pairs(values, np.arange(500), np.arange(500, 1000))[:, 0]
    assert (high - low) / 2 == pytest.approx(1.96 * stats.sem(values[:, 0]), rel=0.01)
    # Ten copies of each pair add no information.
    again = np.repeat(values, 10, axis=0)
    rows = np.repeat(np.arange(500), 10)
    wide = interval_over_pairs(again, rows, rows + 500)[:, 0]
    assert high - low < wide[1] - wide[0] < 1.5 * (high - low)  # both images are shared


def test_the_interval_over_pairs_holds_the_mean_of_all_images() -> None:
    """Each image is easy or hard, so that its pairs are right or wrong together."""
    generator = np.random.default_rng(0)
    first, second = np.triu_indices(40, 1)
    held = naive = 0
    for _ in range(300):
        ease = generator.normal(size=40)
        values = (ease[first] + ease[second] + generator.normal(size=len(first)))[:, None]
        low, high = interval_over_pairs(values, first, second)[:, 0]
        held += low <= 0 <= high
        naive += abs(values.mean()) <= 1.96 * stats.sem(values[:, 0])
    assert 0.9 < held / 300 < 0.98
    assert naive / 300 < 0.5


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
