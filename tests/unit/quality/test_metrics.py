"""The measures against rankings worked out by hand, and against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from retrieval.contracts import Metric
from retrieval.quality import metrics

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"

# Ten items; the relevant ones at ranks 1, 3, 4 and 8.
RANKS = np.array([1, 3, 4, 8])


def test_ranks_count_from_one() -> None:
    ranking = np.array([1, 0, 1, 1, 0, 0, 0, 1, 0, 0], dtype=bool)
    assert metrics.ranks_of(ranking).tolist() == [1, 3, 4, 8]


@pytest.mark.parametrize(
    ("k", "precision", "recall"),
    [
        (1, 1 / 1, 1 / 4),
        (2, 1 / 2, 1 / 4),
        (3, 2 / 3, 2 / 4),
        (4, 3 / 4, 3 / 4),
        (7, 3 / 7, 3 / 4),
        (8, 4 / 8, 4 / 4),
        (10, 4 / 10, 4 / 4),
        (100, 4 / 100, 4 / 4),  # divided by k beyond the end of the ranking, too
    ],
)
def test_precision_and_recall(k: int, precision: float, recall: float) -> None:
    assert metrics.precision_at(RANKS, k) == precision
    assert metrics.recall_at(RANKS, 4, k) == recall


def test_average_precision() -> None:
    # 1/1, 2/3, 3/4, 4/8
    assert metrics.average_precision(RANKS, 4) == pytest.approx(35 / 48)


def test_average_precision_divides_by_all_relevant_items_and_not_by_those_found() -> None:
    assert metrics.average_precision(RANKS, 8) == pytest.approx(35 / 96)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, 1),  # 1 / min(4, 1)
        (2, 1 / 2),  # 1 / 2
        (3, (1 + 2 / 3) / 3),
        (4, (1 + 2 / 3 + 3 / 4) / 4),
        (5, (1 + 2 / 3 + 3 / 4) / 4),  # R < k: over R
        (10, 35 / 48),  # nothing cut: AP
    ],
)
def test_average_precision_at_k_divides_by_the_smaller_of_relevant_and_k(
    k: int, expected: float
) -> None:
    assert metrics.average_precision_at(RANKS, 4, k) == pytest.approx(expected)


def test_the_best_ranking_has_average_precision_at_k_of_one_for_every_k() -> None:
    best = np.arange(1, 6)
    assert [metrics.average_precision_at(best, 5, k) for k in (1, 4, 5, 6, 50)] == [1] * 5


def test_r_precision_counts_up_to_the_number_of_relevant_items() -> None:
    assert metrics.r_precision(RANKS, 4) == 3 / 4
    assert metrics.r_precision(np.array([3, 4]), 2) == 0


@pytest.mark.parametrize(
    ("k", "gain", "best"),
    [
        (1, 1, 1),
        (2, 1, 1 + 1 / np.log2(3)),
        (3, 1 + 1 / 2, 1 + 1 / np.log2(3) + 1 / 2),
        (10, 1 + 1 / 2 + 1 / np.log2(5) + 1 / np.log2(9), 1.5 + 1 / np.log2(3) + 1 / np.log2(5)),
    ],
)
def test_ndcg(k: int, gain: float, best: float) -> None:
    assert metrics.ndcg_at(RANKS, 4, k) == pytest.approx(gain / best)


def test_ndcg_is_scikit_learns_where_no_scores_are_equal() -> None:
    rng = np.random.default_rng(4)
    for share in (0.02, 0.3, 0.9):
        relevant = rng.random(400) < share
        scores = rng.permutation(400)
        ranks = metrics.ranks_of(relevant[np.argsort(-scores)])
        for k in (1, 10, 400):
            ours = metrics.ndcg_at(ranks, int(relevant.sum()), k)
            assert ours == pytest.approx(ndcg_score([relevant], [scores], k=k))


def test_the_reciprocal_rank_is_that_of_the_first_relevant_item() -> None:
    assert metrics.reciprocal_rank(np.array([4, 5])) == 1 / 4


def test_many_ks_at_once_are_each_k() -> None:
    ks = np.array([1, 3, 5, 100])
    for measure in (metrics.average_precision_at, metrics.recall_at, metrics.ndcg_at):
        assert measure(RANKS, 4, ks).tolist() == [measure(RANKS, 4, k) for k in ks.tolist()]
    assert metrics.precision_at(RANKS, ks).tolist() == [1, 2 / 3, 3 / 5, 4 / 100]


def test_nothing_found() -> None:
    none = np.array([], dtype=np.int64)
    assert metrics.precision_at(none, 5) == 0
    assert metrics.recall_at(none, 3, 5) == 0
    assert metrics.average_precision(none, 3) == 0
    assert metrics.average_precision_at(none, 3, 5) == 0
    assert metrics.ndcg_at(none, 3, 5) == 0
    assert metrics.reciprocal_rank(none) == 0


def test_average_precision_is_scikit_learns_where_no_scores_are_equal() -> None:
    rng = np.random.default_rng(3)
    for share in (0.02, 0.3, 0.9):
        relevant = rng.random(400) < share
        scores = rng.permutation(400)
        ranking = relevant[np.argsort(-scores)]
        ours = metrics.average_precision(metrics.ranks_of(ranking), int(relevant.sum()))
        assert ours == pytest.approx(average_precision_score(relevant, scores))


@pytest.mark.parametrize(
    ("labels", "winner"),
    [
        (["cat", "dog", "dog"], "dog"),
        (["cat", "dog", "dog", "cat"], "cat"),  # tied: cat is nearer
        (["emu", "dog", "cat", "cat", "dog"], "dog"),  # tied: dog is nearer; emu has but one
        ([None, None, None, "cat"], "cat"),
        ([None, None], None),
        ([], None),
    ],
)
def test_vote(labels: list[str | None], winner: str | None) -> None:
    assert metrics.vote(labels) == winner


def test_index_recall_counts_hits_within_reach_of_the_kth_true_distance() -> None:
    true = np.array([[1.0, 2.0, 4.0, 8.0]])
    found = np.array([[1.0, 4.0, 4.003, 8.1]])
    # The k-th true distances 1, 2, 4 reach to 1.001, 2.002, 4.004, and 8 to 8.008.
    assert metrics.index_recall_at(found, true, 1).tolist() == [1]
    assert metrics.index_recall_at(found, true, 2).tolist() == [1 / 2]
    assert metrics.index_recall_at(found, true, 3).tolist() == [1]
    assert metrics.index_recall_at(found, true, 4).tolist() == [3 / 4]


def test_index_recall_is_of_each_query() -> None:
    true = np.array([[1.0, 2.0], [3.0, 4.0]])
    found = np.array([[1.0, 9.0], [4.0, 3.0]])
    assert metrics.index_recall_at(found, true, 2).tolist() == [1 / 2, 1]


def test_index_recall_does_not_punish_another_of_equal_items() -> None:
    true = np.array([[0.0, 5.0, 5.0]])  # and a fourth at 5
    assert metrics.index_recall_at(np.array([[0.0, 5.0, 5.0]]), true, 2).tolist() == [1]


def test_index_recall_with_negative_distances_reaches_farther_and_not_nearer() -> None:
    true = np.array([[-3000.0, -2000.0]])
    for found, recall in (([-2000.0, -1999.985], 1), ([-2000.0, -1999.975], 1 / 2)):
        of = metrics.index_recall_at(np.array([found]), true, 2, Metric.INNER_PRODUCT)
        assert of.tolist() == [recall]


def test_index_recall_tells_the_products_of_one_cluster_apart() -> None:
    """All products of a far cluster lie within a thousandth of the greatest."""
    draw = np.random.default_rng(0)
    rows = draw.standard_normal(8) + 0.01 * draw.standard_normal((1000, 8))
    products = np.sort(-rows @ rows[0])[None]
    assert (products / products[0, 0] > 0.95).all()
    found = products[:, 20:30]  # none of the ten neighbors
    assert metrics.index_recall_at(found, products, 10, Metric.INNER_PRODUCT).tolist() == [0]


def test_index_recall_takes_distances_within_the_resolution_for_equal() -> None:
    true, found = np.array([[0.0, 1e-9]]), np.array([[0.0, 5e-7]])
    assert metrics.index_recall_at(found, true, 2).tolist() == [1 / 2]
    assert metrics.index_recall_at(found, true, 2, Metric.COSINE).tolist() == [1]


def test_index_recall_where_the_database_has_fewer_than_k() -> None:
    inf = np.inf
    true = np.array([[1.0, 2.0, inf, inf]])
    assert metrics.index_recall_at(np.array([[1.0, 2.0, inf, inf]]), true, 4).tolist() == [1]
    assert metrics.index_recall_at(np.array([[2.0, inf, inf, inf]]), true, 4).tolist() == [1 / 2]


def test_index_recall_of_missing_hits() -> None:
    true, found = np.array([[1.0, 2.0]]), np.array([[1.0, np.inf]])
    assert metrics.index_recall_at(found, true, 2).tolist() == [1 / 2]


@pytest.mark.parametrize("name", metrics.DEFINITIONS)
def test_the_docs_have_each_definition_in_the_same_words(name: str) -> None:
    assert f"**{metrics.DEFINITIONS[name]}**" in DOCS.read_text(encoding="utf-8")
