"""Evaluation against small rankings worked out by hand, and its behaviour at the edges."""

import json
import tracemalloc

import numpy as np
import pytest

from retrieval.contracts import Metric
from retrieval.quality import ranking
from retrieval.quality.evaluation import evaluate, evaluate_index
from retrieval.quality.labelled import Labelled
from retrieval.quality.metrics import DEFINITIONS
from tests.items import Canned, clusters, f32, line_eval, on_a_line, table


def test_two_queries_worked_by_hand() -> None:
    #                            rank from 0: 1  2  3  4    from 10: 4  3  2  1
    database = on_a_line([1, 2, 5, 7], "abab")
    result = line_eval(on_a_line([0, 10], "ab", prefix="q"), database)
    # From 0, for a: relevant at ranks 1 and 3. From 10, for b: ranks 1 (7) and 3 (2).
    assert result.map == pytest.approx((1 + 2 / 3) / 2)
    assert result.precision_at == pytest.approx({1: 1, 2: 1 / 2, 3: 2 / 3})
    assert result.recall_at == pytest.approx({1: 1 / 2, 2: 1 / 2, 3: 1})
    assert result.map_at == pytest.approx({1: 1, 2: 1 / 2, 3: (1 + 2 / 3) / 2})
    assert result.r_precision == pytest.approx(1 / 2)
    assert (result.queries, result.database) == (2, 4)
    assert (result.unlabelled, result.without_relevant) == (0, 0)


def test_means_are_over_queries_and_per_class_over_those_of_the_class() -> None:
    database = on_a_line([1, 2, 3], "aab")
    result = line_eval(on_a_line([0, 0, 0], "aab", prefix="q"), database)
    assert result.map == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert {label: (of.queries, of.map) for label, of in result.per_class.items()} == {
        "a": (2, 1),
        "b": (1, pytest.approx(1 / 3)),
    }
    assert result.per_class["b"].precision_at == pytest.approx({1: 0, 2: 0, 3: 1 / 3})


def test_equal_distances_rank_by_row() -> None:
    query = on_a_line([0], "a", prefix="q")
    assert line_eval(query, on_a_line([1, -1, 1], "abb")).map == 1
    assert line_eval(query, on_a_line([1, -1, 1], "bab")).map == 1 / 2
    assert line_eval(query, on_a_line([1, -1, 1], "bba")).map == pytest.approx(1 / 3)


def test_a_query_in_the_database_is_left_out_in_the_middle_of_its_ranking() -> None:
    # By dot product with 1, the query is third of five: 9, 5, (1), 1, 0.
    database = on_a_line([5, 9, 1, 1, 0], "babab", ids=["u", "v", "me", "w", "x"])
    query = on_a_line([1], "a", ids=["w"])
    result = evaluate(query, database, Metric.INNER_PRODUCT, (1, 3))
    # Without w: 9 a, 5 b, 1 b, 0 b. Left out by rank 1, it would have been a P@1 of 0.
    assert result.precision_at == pytest.approx({1: 1, 3: 1 / 3})
    assert result.recall_at == {1: 1, 3: 1}
    assert result.map == 1


def test_only_the_query_itself_is_left_out_and_not_its_duplicates() -> None:
    database = on_a_line([4, 4, 4, 6], "baba", ids=["other", "twin", "stray", "far"])
    result = line_eval(on_a_line([4], "a", ids=["twin"]), database)
    # other b, stray b, far a: the query is not first among its equals.
    assert result.precision_at == pytest.approx({1: 0, 2: 0, 3: 1 / 3})
    assert result.map == pytest.approx(1 / 3)


def test_leave_one_out() -> None:
    items = on_a_line([0, 1, 3, 7], "aabb")
    result = line_eval(items, items)
    # From 0: 1a 3b 7b; from 1: 0a; from 3: 1a 0a 7b; from 7: 3b.
    assert result.map == pytest.approx((1 + 1 + 1 / 3 + 1) / 4)
    assert result.precision_at[1] == 3 / 4


def test_a_query_with_another_label_than_its_own_row_keeps_all_relevant_items() -> None:
    database = on_a_line([0, 1, 2], "baa", ids=["me", "x", "y"])
    result = line_eval(on_a_line([0], "a", ids=["me"]), database)
    assert result.map == 1
    assert result.recall_at == {1: 1 / 2, 2: 1, 3: 1}


def test_queries_with_nothing_to_find_are_left_out_and_counted() -> None:
    database = on_a_line([0, 1, 2], "aab", ids=["u", "v", "w"])
    queries = on_a_line([0, 0, 2, 5, 1], "ac??b", ids=["p", "q", "r", "s", "w"])
    result = line_eval(queries, database)
    # p is asked; q has a label that nobody has, w is the only b; r and s have no label.
    assert (result.queries, result.without_relevant, result.unlabelled) == (1, 2, 2)
    assert result.map == 1
    assert list(result.per_class) == ["a"]


def test_items_without_a_label_take_their_place_and_are_relevant_to_none() -> None:
    result = line_eval(on_a_line([0], "a", prefix="q"), on_a_line([1, 2, 3], "?a?"))
    assert result.map == 1 / 2
    assert result.recall_at == {1: 0, 2: 1, 3: 1}


def test_knn_accuracy_is_a_vote_of_ten() -> None:
    query = on_a_line([0], "a", prefix="q")
    four_of_ten = on_a_line(list(range(1, 13)), "bbbcccaaaaaa")
    assert line_eval(query, four_of_ten).knn_accuracy == 1
    three_of_ten = on_a_line(list(range(1, 13)), "bbbccccaaaaa")
    assert line_eval(query, three_of_ten).knn_accuracy == 0
    tied = on_a_line(list(range(1, 11)), "babababbaa")
    assert line_eval(query, tied).knn_accuracy == 0
    assert line_eval(on_a_line([0], "b", prefix="q"), tied).knn_accuracy == 1


@pytest.mark.parametrize(
    ("metric", "nearest"),
    [
        (Metric.COSINE, "aligned"),  # 0, the others more
        (Metric.EUCLIDEAN, "close"),  # √0.98; level √1.69, aligned √8
        (Metric.INNER_PRODUCT, "long"),  # -50; aligned -6, the others -2 and -3.3
        (Metric.MANHATTAN, "level"),  # 1.3; close 1.4, aligned 4
    ],
)
def test_each_metric_has_its_own_nearest(metric: Metric, nearest: str) -> None:
    names = ["aligned", "close", "long", "level"]
    vectors = f32([3, 3], [1.7, 0.3], [100, -50], [1, 2.3])
    labels = ["x" if name == nearest else "y" for name in names]
    query = Labelled(f32([1, 1]), ["q"], ["x"])
    assert evaluate(query, Labelled(vectors, names, labels), metric, (1,)).map == 1


def test_the_zero_vector_is_at_cosine_distance_one() -> None:
    database = Labelled(f32([0, 0], [-1, 0.1], [1, 3]), ["0", "1", "2"], ["x", "y", "y"])
    result = evaluate(Labelled(f32([1, 0]), ["q"], ["x"]), database, Metric.COSINE, (1,))
    assert result.map == 1 / 2
    # From the zero vector all are at 1, and rank by row.
    result = evaluate(Labelled(f32([0, 0]), ["q"], ["y"]), database, Metric.COSINE, (1,))
    assert result.map == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize("metric", Metric)
def test_the_result_does_not_depend_on_the_size_of_blocks(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, database = clusters(37, "q", 1), clusters(300, "d", 2)
    whole = evaluate(queries, database, metric)
    for rows in (1, 2, 5, 36):
        monkeypatch.setattr(ranking, "BLOCK_BYTES", rows * 8 * 300)
        assert table(evaluate(queries, database, metric)) == table(whole)


def test_memory_is_bounded_by_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, database = clusters(500, "q", 1), clusters(8000, "d", 2)
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 2**20)
    tracemalloc.start()
    evaluate(queries, database, Metric.EUCLIDEAN)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All distances at once would take 32 MB.
    assert peak < 10 * 2**20


def test_euclidean_rankings_far_from_the_origin_are_those_near_it() -> None:
    queries, database = clusters(20, "q", 1), clusters(200, "d", 2)

    # Eighths survive the journey in float32.
    def moved(items: Labelled, by: int) -> Labelled:
        vectors = np.rint(items.vectors * 8) / 8 + by
        return Labelled(vectors.astype(np.float32), items.ids, items.labels)

    here, there = (
        evaluate(moved(queries, by), moved(database, by), Metric.EUCLIDEAN) for by in (0, 2**20)
    )
    assert table(here) == table(there)


def test_vectors_of_one_direction_are_equally_near_by_cosine() -> None:
    # In floating point, many of these cosines are not 1 but next to it.
    vectors = np.outer(np.arange(1, 201), [35, 13, 1, -24]).astype(np.float32)
    rows = ranking.nearest(vectors[6:7], vectors, Metric.COSINE, 200).rows
    assert rows.tolist() == [list(range(200))]


def test_the_vectors_are_left_as_they_are() -> None:
    queries, database = clusters(5, "q", 1), clusters(50, "d", 2)
    for of in (queries, database):
        of.vectors.flags.writeable = False
    before = queries.vectors.copy(), database.vectors.copy()
    for metric in Metric:
        evaluate(queries, database, metric)
    assert np.array_equal(before[0], queries.vectors)
    assert np.array_equal(before[1], database.vectors)


def test_through_an_index_the_hits_are_what_it_finds() -> None:
    database = on_a_line([1, 2, 3, 4], "abab")
    queries = on_a_line([0, 9], "ab", prefix="q")
    found = evaluate_index(
        queries, database, Canned([[1, 2], [3, 0, 2, 1]], 4), Metric.EUCLIDEAN, (1, 3)
    )
    # First query: b, a, nothing. Second: b, a, a; R is 2 for both.
    assert found.precision_at == pytest.approx({1: 1 / 2, 3: (1 / 3 + 1 / 3) / 2})
    assert found.recall_at == pytest.approx({1: (0 + 1 / 2) / 2, 3: 1 / 2})
    assert found.map_at == pytest.approx({1: 1 / 2, 3: (1 / 4 + 1 / 2) / 2})
    assert (found.map, found.r_precision, found.knn_accuracy) == (None, None, None)
    assert found.per_class["a"].map is None


def test_through_an_index_a_query_is_left_out_wherever_it_is_found_or_not() -> None:
    database = on_a_line([1, 2, 3, 4], "aaab")
    own = on_a_line([1, 2], "aa", ids=["d0", "d1"])
    index = Canned([[1, 0, 3], [2, 3, 0]], 4)
    found = evaluate_index(own, database, index, Metric.EUCLIDEAN, (1, 2))
    # First: a (itself out) b. Second: it did not find itself: a b, cut at 2.
    assert found.precision_at == {1: 1, 2: 1 / 2}
    assert found.recall_at == {1: 1 / 2, 2: 1 / 2}


def test_an_index_that_finds_the_true_neighbors_gives_the_exact_numbers() -> None:
    items = clusters(150, "d", 5)
    true = ranking.nearest(items.vectors, items.vectors, Metric.EUCLIDEAN, 150).rows.tolist()
    exact = evaluate(items, items, Metric.EUCLIDEAN)
    through = evaluate_index(items, items, Canned(true, 150), Metric.EUCLIDEAN)
    assert through.map_at == exact.map_at
    assert through.precision_at == exact.precision_at
    assert through.recall_at == exact.recall_at


def test_nearest_gives_distances_as_the_metrics_define_them_and_pads() -> None:
    queries, database = f32([3, 4], [0, 0]), f32([0, 0], [3, 4], [6, 8], [-4, 3])
    nearest = {metric: ranking.nearest(queries, database, metric, 5) for metric in Metric}
    assert nearest[Metric.EUCLIDEAN].rows.tolist() == [[1, 0, 2, 3, -1], [0, 1, 3, 2, -1]]
    assert nearest[Metric.COSINE].rows.tolist() == [[1, 2, 0, 3, -1], [0, 1, 2, 3, -1]]
    inf = float("inf")
    distances = {metric: hits.distances.tolist() for metric, hits in nearest.items()}
    assert distances == {
        Metric.EUCLIDEAN: [[0, 5, 5, pytest.approx(50**0.5), inf], [0, 5, 5, 10, inf]],
        Metric.COSINE: [[0, 0, 1, 1, inf], [1, 1, 1, 1, inf]],
        Metric.INNER_PRODUCT: [[-50, -25, 0, 0, inf], [0, 0, 0, 0, inf]],
        Metric.MANHATTAN: [[0, 7, 7, 8, inf], [0, 7, 7, 14, inf]],
    }


def test_to_json_is_the_document_of_retr_eval() -> None:
    result = line_eval(on_a_line([0, 0], "a?", prefix="q"), on_a_line([1, 2], "ba"), (1, 10))
    document = json.loads(json.dumps(result.to_json()))
    assert document.pop("definitions") == {
        name: DEFINITIONS[name]
        for name in (
            "map_at", "precision_at", "recall_at", "ndcg_at", "map", "r_precision", "mrr",
            "knn_accuracy",
        )
    }  # fmt: skip
    assert document == {
        "queries": 1,
        "left_out": {"unlabelled": 1, "without_relevant": 0},
        "database": 2,
        "metric": "euclidean",
        "map": 0.5,
        "map_at": {"1": 0.0, "10": 0.5},
        "precision_at": {"1": 0.0, "10": 0.1},
        "recall_at": {"1": 0.0, "10": 1.0},
        "ndcg_at": {"1": 0.0, "10": pytest.approx(1 / np.log2(3))},
        "r_precision": 0.0,
        "mrr": 0.5,
        "knn_accuracy": 0.0,
        "intervals": {
            "map": None,
            "map_at": {"1": None, "10": None},
            "precision_at": {"1": None, "10": None},
            "recall_at": {"1": None, "10": None},
            "ndcg_at": {"1": None, "10": None},
            "r_precision": None,
            "mrr": None,
            "knn_accuracy": None,
        },
        "per_class": {
            "a": {"queries": 1, "map": 0.5, "precision_at": {"1": 0.0, "10": 0.1}},
        },
    }


def test_what_is_not_measured_through_an_index_is_not_defined_there() -> None:
    queries, database = on_a_line([0], "a", prefix="q"), on_a_line([1], "a")
    found = evaluate_index(queries, database, Canned([[0]], 1), Metric.EUCLIDEAN, (1,))
    document = found.to_json()
    there = ["map_at", "precision_at", "recall_at", "ndcg_at"]
    assert list(document["definitions"]) == there  # type: ignore[arg-type]
    assert (document["map"], document["mrr"]) == (None, None)
