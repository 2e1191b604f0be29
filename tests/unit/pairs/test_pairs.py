"""Pairs drawn from labels, and how far their images are apart."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from retrieval.contracts import Metric
from retrieval.errors import BadInput
from retrieval.images import open_source
from retrieval.pairs.draw import Pairs, Scheme, draw_pairs, pair_distances

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, -1, 2, 2])


def check(pairs: Pairs, labels: np.ndarray) -> None:
    """Every pair's answer follows from the labels, half of them are alike, none is of one image."""
    a, b = labels[pairs.first], labels[pairs.second]
    assert ((a == b) == pairs.alike).all()
    assert (a >= 0).all() and (b >= 0).all()
    assert (pairs.first != pairs.second).all()
    assert pairs.alike.sum() * 2 == len(pairs)


@given(
    st.lists(st.integers(-1, 4), min_size=4, max_size=40),
    st.integers(1, 50),
    st.integers(0, 2**32),
)
def test_any_labels_give_random_pairs_that_follow_from_them(
    labels: list[int], half: int, seed: int
) -> None:
    known = [label for label in labels if label >= 0]
    drawable = len(set(known)) > 1 and len(set(known)) < len(known)
    if not drawable:
        with pytest.raises(BadInput):
            draw_pairs(np.array(labels), 2 * half, Scheme.RANDOM, seed)
        return
    pairs = draw_pairs(np.array(labels), 2 * half, Scheme.RANDOM, seed)
    assert len(pairs) == 2 * half
    check(pairs, np.array(labels))


@given(st.lists(st.integers(-1, 4), max_size=40), st.integers(0, 2**32))
def test_any_labels_give_consecutive_pairs_that_follow_from_them(
    labels: list[int], seed: int
) -> None:
    sizes = [labels.count(label) for label in range(5)]
    drawable = sum(size > 1 for size in sizes) > 1
    if not drawable:
        with pytest.raises(BadInput):
            draw_pairs(np.array(labels, np.int64), None, Scheme.CONSECUTIVE, seed)
        return
    pairs = draw_pairs(np.array(labels), None, Scheme.CONSECUTIVE, seed)
    large = [size for size in sizes if size > 1]
    assert len(pairs) == 2 * len(large) * (min(large) - 1)
    check(pairs, np.array(labels))


def test_pairs_follow_from_the_labels_of_the_data_set_itself() -> None:
    items = [*open_source("digits", "test").items()]
    names = sorted({item.label for item in items if item.label is not None})
    labels = np.array([names.index(item.label) for item in items if item.label is not None])
    for scheme in Scheme:
        pairs = draw_pairs(labels, 400, scheme, seed=3)
        for first, second, alike in zip(pairs.first, pairs.second, pairs.alike, strict=True):
            assert (items[first].label == items[second].label) == alike


def test_random_pairs_come_from_everywhere_alike() -> None:
    labels = np.repeat([0, 1, 2], [10, 10, 10])
    pairs = draw_pairs(labels, 60_000, Scheme.RANDOM, seed=0)
    other = ~pairs.alike
    met = np.zeros((30, 30), int)
    np.add.at(met, (pairs.first, pairs.second), 1)
    same = labels[:, None] == labels
    np.fill_diagonal(same, False)
    # 30,000 pairs over 270 places, and over 600: within 6 standard deviations of the mean.
    assert abs(met[same] - 30_000 / 270).max() < 6 * (30_000 / 270) ** 0.5
    assert abs(met[labels[:, None] != labels] - 50).max() < 6 * 50**0.5
    assert other.sum() == 30_000


def test_consecutive_pairs_by_hand() -> None:
    pairs = draw_pairs(LABELS, None, Scheme.CONSECUTIVE, seed=0)
    check(pairs, LABELS)
    # Class 0 is rows 0, 3, 6; class 1 rows 1, 4, 7; class 2 rows 2, 5, 9, 10. The smallest has 3.
    alike = [(int(a), int(b)) for a, b in zip(pairs.first[:6], pairs.second[:6], strict=True)]
    assert alike == [(0, 3), (3, 6), (1, 4), (4, 7), (2, 5), (5, 9)]
    assert pairs.first[6:].tolist() == [0, 3, 1, 4, 2, 5]
    rank = {0: 0, 3: 1, 1: 0, 4: 1, 2: 0, 5: 1}  # at its own place in another class
    for a, b in zip(pairs.first[6:], pairs.second[6:], strict=True):
        assert rank[int(a)] == rank[int(b)]
    some = draw_pairs(LABELS, 6, Scheme.CONSECUTIVE, seed=0)
    assert len(some) == 6
    check(some, LABELS)


def test_the_seed_decides() -> None:
    for scheme in Scheme:
        first, again, other = (draw_pairs(LABELS, 8, scheme, seed) for seed in (0, 0, 1))
        assert first.second.tolist() == again.second.tolist()
        assert first.second.tolist() != other.second.tolist()


@pytest.mark.parametrize(
    ("labels", "count", "scheme", "said"),
    [
        (
            [0, 0, 0],
            None,
            Scheme.RANDOM,
            "pairs of different classes need 2 classes",
        ),
        ([], None, Scheme.RANDOM, "2 classes, and there are 0;"),
        ([0, 1, 2], None, Scheme.RANDOM, "each class has 1; give more images"),
        ([0, 0, 1, 1], 3, Scheme.RANDOM, "the number of pairs is 3; give an even number"),
        ([0, 0, 1, 1], 0, Scheme.RANDOM, "the number of pairs is 0"),
        ([0, 0, 1, 1], 6, Scheme.CONSECUTIVE, "there are 4 consecutive pairs, as the smallest"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    labels: list[int], count: int | None, scheme: Scheme, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        draw_pairs(np.array(labels, dtype=np.int64), count, scheme, seed=0)


@pytest.mark.parametrize(
    ("metric", "of_scipy"),
    [(Metric.COSINE, "cosine"), (Metric.EUCLIDEAN, "euclidean"), (Metric.MANHATTAN, "cityblock")],
)
def test_distances_are_those_of_scipy(metric: Metric, of_scipy: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    pairs = draw_pairs(np.arange(50) % 5, 20_000, Scheme.RANDOM, seed=0)
    expected = cdist(vectors, vectors, of_scipy)[pairs.first, pairs.second]
    np.testing.assert_allclose(pair_distances(vectors, pairs, metric), expected, atol=1e-6)


def test_the_time_of_pairs_grows_as_their_number() -> None:
    vectors = np.random.default_rng(0).normal(size=(10_000, 128)).astype(np.float32)
    labels = np.arange(10_000) % 10

    def seconds(count: int) -> float:
        started = time.process_time()
        pair_distances(vectors, draw_pairs(labels, count, Scheme.RANDOM, seed=0), Metric.COSINE)
        return time.process_time() - started

    seconds(1000)
    assert seconds(1_000_000) < 40 * seconds(100_000)
