"""Evaluation: wrong input is refused, and values of each query are kept."""

import numpy as np
import pytest

from retrieval.contracts import Metric
from retrieval.errors import BadInput, Mismatch
from retrieval.quality.evaluation import evaluate, evaluate_index
from retrieval.quality.labelled import Labelled
from tests.items import Canned, clusters, line_eval, on_a_line


@pytest.mark.parametrize("ks", [(), (0,), (5, -1)])
def test_k_below_one_is_refused(ks: tuple[int, ...]) -> None:
    items = on_a_line([0, 1], "aa")
    with pytest.raises(BadInput, match="at least 1"):
        line_eval(items, items, ks)
    with pytest.raises(BadInput, match="at least 1"):
        evaluate_index(items, items, Canned([[0], [1]], 2), Metric.EUCLIDEAN, ks)


def test_nothing_to_find_for_any_query_is_refused() -> None:
    with pytest.raises(BadInput, match=r"none of 2 queries .* 1 database items"):
        line_eval(on_a_line([0, 1], "a?", prefix="q"), on_a_line([1], "b"))
    with pytest.raises(BadInput, match="none of 1 queries"):
        line_eval(on_a_line([0], "a", prefix="q"), on_a_line([], ""))


def test_dimensions_that_differ_are_refused() -> None:
    database = Labelled(np.zeros((1, 2), np.float32), ["d"], ["a"])
    with pytest.raises(Mismatch, match=r"dimension 1, and the database 2"):
        line_eval(on_a_line([0], "a", prefix="q"), database)


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(BadInput, match="database: vector 1 "):
        line_eval(on_a_line([0], "a", prefix="q"), on_a_line([1, float("nan")], "ab"))


def test_an_index_of_another_size_is_refused() -> None:
    items = on_a_line([0, 1], "aa")
    with pytest.raises(Mismatch, match="3 rows, and the database 2"):
        evaluate_index(items, items, Canned([[0], [1]], 3), Metric.EUCLIDEAN)


def test_unequal_lengths_and_repeated_ids_are_refused() -> None:
    with pytest.raises(Mismatch, match="2 vectors have 1 ids and 2 labels"):
        on_a_line([0, 1], "ab", ids=["x"])
    with pytest.raises(BadInput, match="duplicate id 'x'"):
        on_a_line([0, 1], "ab", ids=["x", "x"])


def test_rows_split_off_are_no_longer_in_the_database_and_keep_what_is_theirs() -> None:
    items = clusters(50, "d", 3)
    queries, database = items.split_off(10, seed=1)
    assert (len(queries), len(database)) == (10, 40)
    assert sorted([*queries.ids, *database.ids]) == sorted(items.ids)
    for part in (queries, database):
        for vector, name, label in zip(part.vectors, part.ids, part.labels, strict=True):
            row = list(items.ids).index(name)
            assert np.array_equal(vector, items.vectors[row])
            assert label == items.labels[row]
    assert list(items.split_off(10, seed=1)[0].ids) == list(queries.ids)
    assert list(items.split_off(10, seed=2)[0].ids) != list(queries.ids)
    assert len(items.split_off(1000, seed=1)[0]) == 10
    with pytest.raises(BadInput, match="4 rows are too few"):
        clusters(4, "d", 3).split_off(1, seed=0)


def test_intervals_are_those_of_the_queries() -> None:
    items = clusters(60, "abc", 2)
    found = evaluate(items, items, Metric.EUCLIDEAN, (1, 5))
    share = found.precision_at[1]
    # A share has the variance p (1 - p) / n.
    wanted = 1.96 * (share * (1 - share) / found.queries) ** 0.5
    assert found.margin("precision_at", 1) == pytest.approx(wanted, rel=0.15)
    low, high = found.intervals["map"]
    assert low < found.means["map"] < high
    document = found.to_json()
    assert document["intervals"]["map"] == [low, high]  # type: ignore[index, call-overload]
    assert list(document["definitions"])[-1] == "intervals"  # type: ignore[arg-type]


def test_values_of_each_query_and_the_rows_that_are_kept() -> None:
    database = on_a_line([1, 2, 5, 7], "abab")
    found = evaluate(
        on_a_line([0, 3, 10], "a?b", prefix="q"), database, Metric.EUCLIDEAN, (1, 2), depth=5
    )
    of = found.per_query
    assert (of.ids, of.labels) == (["q0", "q2"], ["a", "b"])
    assert of.rows.tolist() == [[0, 1, 2, 3, -1], [3, 2, 1, 0, -1]]
    values = dict(zip(of.columns, of.values.T.tolist(), strict=True))
    assert values["map"] == pytest.approx([5 / 6, 5 / 6])
    assert values["precision_at_2"] == [1 / 2, 1 / 2]
    assert values["mrr"] == [1, 1]
    hits = evaluate_index(
        on_a_line([0], "a", prefix="q"),
        database,
        Canned([[2, 0, 1]], 4),
        Metric.EUCLIDEAN,
        (1,),
        depth=2,
    )
    assert hits.per_query.rows.tolist() == [[2, 0]]
