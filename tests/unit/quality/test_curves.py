"""Precision over recall, confusions and extremes, against rankings worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from retrieval.contracts import Metric
from retrieval.quality.curves import (
    RECALL_LEVELS,
    confusion,
    extremes,
    precision_at_levels,
    precision_recall,
)
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled


def on_a_line(places: list[float], labels: str, prefix: str = "d") -> Labelled:
    """Return items at places on a line. Their labels are letters, `?` for unknown."""
    return Labelled(
        np.array(places, dtype=np.float32)[:, None],
        [f"{prefix}{i}" for i in range(len(places))],
        [None if letter == "?" else letter for letter in labels],
    )


def test_interpolated_precision_by_hand() -> None:
    # Relevant at ranks 1, 3 and 6: precision 1, 2/3, 1/2 at recall 1/3, 2/3, 1.
    found = precision_at_levels(np.array([1, 3, 6]))
    assert found[0] == found[33] == 1
    assert found[34] == found[66] == pytest.approx(2 / 3)
    assert found[67] == found[100] == 0.5


def test_a_later_higher_precision_counts_for_lower_recalls() -> None:
    # Precision 1/3, then 2/4: the higher one is reached at every recall up to 1.
    assert (precision_at_levels(np.array([3, 4])) == 0.5).all()


def test_as_scikit_learn_has_it() -> None:
    rng = np.random.default_rng(0)
    relevant = rng.random(200) < 0.2
    scores = -np.arange(200.0)
    precision, recall, _ = precision_recall_curve(relevant, scores)
    expected = [precision[:-1][recall[:-1] >= level - 1e-9].max() for level in RECALL_LEVELS]
    found = precision_at_levels(np.flatnonzero(relevant) + 1)
    np.testing.assert_allclose(found, expected)


def test_means_over_queries_and_labels() -> None:
    database = on_a_line([0, 1, 2, 10, 11], "aabb?")
    queries = on_a_line([0.1, 10.1, 5], "ab?", "q")
    curves = precision_recall(queries, database, Metric.EUCLIDEAN)
    assert [*curves.by_label] == ["a", "b"], "a query without a label counts for none"
    assert (curves.by_label["a"] == 1).all()
    # From 10.1: b (10), no label (11), b (2): precision 1, then 2/3.
    assert curves.by_label["b"][50] == 1 and curves.by_label["b"][51] == pytest.approx(2 / 3)
    assert curves.overall[51] == pytest.approx(5 / 6)


def test_a_query_in_the_database_is_left_out_of_its_own_ranking() -> None:
    both = on_a_line([0, 1, 3], "aba")
    curves = precision_recall(both, both, Metric.EUCLIDEAN)
    assert (curves.by_label["a"] == 0.5).all() and [*curves.by_label] == ["a"]


def test_confusions() -> None:
    database = on_a_line([0, 1, 2, 10, 11], "aabb?")
    result = evaluate(
        on_a_line([0.1, 10.1], "ab", "q"), database, Metric.EUCLIDEAN, ks=(1,), depth=3
    )
    names, shares = confusion(result, database)
    assert names == ["a", "b"]
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3], [0, 1]])


def test_extremes() -> None:
    database = on_a_line([0, 1, 2, 10], "abab")
    queries = on_a_line([0, 1.6, 10], "abb", "q")
    result = evaluate(queries, database, Metric.EUCLIDEAN, ks=(1,))
    of = dict(zip(result.per_query.ids, result.per_query.values[:, 0], strict=True))
    best, worst = extremes(result, 1)
    assert of[result.per_query.ids[best[0]]] == max(of.values())
    assert of[result.per_query.ids[worst[0]]] == min(of.values())
    best, worst = extremes(result, 9)
    assert sorted([*best, *worst]) == [0, 1, 2], "no query is both"
