"""Evaluation compared with an oracle in exact fractions, on vectors with many ties."""

import math
from collections.abc import Sequence
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.contracts import Metric
from retrieval.errors import BadInput
from retrieval.quality import metrics
from retrieval.quality.evaluation import Evaluation, evaluate
from retrieval.quality.labelled import Labelled
from tests.examples import examples

KS = (1, 2, 3, 7, 40)

Point = Sequence[int]


def exact_distance(q: Point, x: Point, metric: Metric) -> Fraction:
    """Return a number that orders vectors x by their distance from q, without rounding."""
    dot = sum(a * b for a, b in zip(q, x, strict=True))
    if metric is Metric.COSINE:
        square = sum(a * a for a in x)
        return Fraction(-dot * abs(dot), square) if square else Fraction(0)
    if metric is Metric.INNER_PRODUCT:
        return Fraction(-dot)
    if metric is Metric.EUCLIDEAN:
        return Fraction(sum((a - b) ** 2 for a, b in zip(q, x, strict=True)))
    return Fraction(sum(abs(a - b) for a, b in zip(q, x, strict=True)))


def oracle(queries: Labelled, database: Labelled, metric: Metric) -> dict[str, object] | None:
    """Return the measures as docs/metrics.md defines them; None if no query has a relevant item."""
    rows: dict[str, list[float]] = {}
    for q, name, label in zip(queries.vectors, queries.ids, queries.labels, strict=True):
        items = [
            (exact_distance([int(v) for v in q], [int(v) for v in x], metric), row, other)
            for row, (x, other) in enumerate(zip(database.vectors, database.labels, strict=True))
            if database.ids[row] != name
        ]
        rel = [0] + [
            int(other == label and label is not None)
            for _, _, other in sorted(items, key=lambda t: t[:2])
        ]
        n, total = len(rel) - 1, sum(rel)
        if not total:
            continue
        hits = [sum(rel[: i + 1]) for i in range(n + 1)]
        rows.setdefault("map", []).append(
            sum(rel[i] * hits[i] / i for i in range(1, n + 1)) / total
        )
        for k in KS:
            last = min(k, n)
            rows.setdefault(f"precision_at {k}", []).append(hits[last] / k)
            rows.setdefault(f"recall_at {k}", []).append(hits[last] / total)
            gains = [rel[i] / math.log2(1 + i) for i in range(1, last + 1)]
            best = [1 / math.log2(1 + i) for i in range(1, min(total, k) + 1)]
            rows.setdefault(f"ndcg_at {k}", []).append(sum(gains) / sum(best))
            rows.setdefault(f"map_at {k}", []).append(
                sum(rel[i] * hits[i] / i for i in range(1, last + 1)) / min(total, k)
            )
        rows.setdefault("mrr", []).append(1 / rel.index(1))
        rows.setdefault("r_precision", []).append(hits[total] / total)
        voters = [other for _, _, other in sorted(items, key=lambda t: t[:2])[:10]]
        votes = [other for other in voters if other is not None]
        winner = max(votes, key=lambda v: (votes.count(v), -votes.index(v)), default=None)
        rows.setdefault("knn_accuracy", []).append(float(winner == label))
    if not rows:
        return None
    means: dict[str, object] = {n: sum(values) / len(values) for n, values in rows.items()}
    return means | {"queries": len(rows["map"])}


def flat(result: Evaluation) -> dict[str, object]:
    by_k = {
        f"{name} {k}": value
        for name in ("precision_at", "recall_at", "map_at", "ndcg_at")
        for k, value in getattr(result, name).items()
    }
    whole = ("map", "r_precision", "mrr", "knn_accuracy", "queries")
    return by_k | {name: getattr(result, name) for name in whole}


@st.composite
def labelled_pairs(draw: st.DrawFn) -> tuple[Labelled, Labelled]:
    """Draw queries and a database of small integer vectors; some queries are in the database."""
    dim = draw(st.integers(1, 3))
    vector = st.lists(st.integers(-3, 3), min_size=dim, max_size=dim)
    item = st.tuples(vector, st.sampled_from(["a", "b", "c", None]))
    database = draw(st.lists(item, min_size=1, max_size=25))
    ids = [f"d{i}" for i in range(len(database))]
    inside = draw(st.lists(st.sampled_from(ids), unique=True, max_size=4))
    outside = draw(st.lists(item, min_size=1, max_size=4))
    queries = [database[ids.index(name)] for name in inside] + outside
    names = inside + [f"q{i}" for i in range(len(outside))]
    return labelled(queries, names), labelled(database, ids)


def labelled(items: Sequence[tuple[Point, str | None]], ids: list[str]) -> Labelled:
    return Labelled(
        np.array([vector for vector, _ in items], dtype=np.float32),
        ids,
        [label for _, label in items],
    )


@settings(max_examples=examples(100), deadline=None)  # the machine may be busy
@given(labelled_pairs(), st.sampled_from(Metric))
def test_every_measure_equals_the_oracle(pair: tuple[Labelled, Labelled], metric: Metric) -> None:
    expected = oracle(*pair, metric)
    if expected is None:
        with pytest.raises(BadInput):
            evaluate(*pair, metric, KS)
    else:
        assert flat(evaluate(*pair, metric, KS)) == pytest.approx(expected)


@settings(max_examples=examples(100), deadline=None)  # the machine may be busy
@given(labelled_pairs(), st.sampled_from(Metric), st.randoms(use_true_random=False))
def test_the_order_of_queries_does_not_matter(
    pair: tuple[Labelled, Labelled], metric: Metric, random: Random
) -> None:
    queries, database = pair
    if oracle(*pair, metric) is None:
        return
    order = list(range(len(queries)))
    random.shuffle(order)
    assert flat(evaluate(permuted(queries, order), database, metric, KS)) == pytest.approx(
        flat(evaluate(queries, database, metric, KS))
    )


@settings(max_examples=examples(100), deadline=None)  # the machine may be busy
@given(st.integers(0, 2**32 - 1), st.sampled_from(Metric))
def test_without_ties_the_order_of_the_database_does_not_matter(seed: int, metric: Metric) -> None:
    rng = np.random.default_rng(seed)
    queries, database = random_items(rng, 6, "q"), random_items(rng, 40, "d")
    shuffled = permuted(database, rng.permutation(40).tolist())
    assert flat(evaluate(queries, shuffled, metric, KS)) == pytest.approx(
        flat(evaluate(queries, database, metric, KS))
    )


@settings(max_examples=examples(100), deadline=None)  # the machine may be busy
@given(labelled_pairs(), st.sampled_from([Metric.COSINE, Metric.EUCLIDEAN, Metric.MANHATTAN]))
def test_scale_does_not_matter(pair: tuple[Labelled, Labelled], metric: Metric) -> None:
    if oracle(*pair, metric) is None:
        return
    small, smaller = (
        Labelled((of.vectors * 2.0**-20).astype(np.float32), of.ids, of.labels) for of in pair
    )
    assert flat(evaluate(small, smaller, metric, KS)) == flat(evaluate(*pair, metric, KS))


@settings(max_examples=examples(100), deadline=None)  # the machine may be busy
@given(st.lists(st.integers(1, 60), unique=True, min_size=1), st.integers(0, 20))
def test_relations_between_measures(found: list[int], missed: int) -> None:
    ranks = np.sort(np.array(found))
    relevant = len(ranks) + missed
    for k in KS:
        precision = metrics.precision_at(ranks, k)
        assert precision * k == pytest.approx(metrics.recall_at(ranks, relevant, k) * relevant)
    whole = metrics.average_precision(ranks, relevant)
    assert metrics.average_precision_at(ranks, relevant, 100) == pytest.approx(whole)
    assert metrics.r_precision(ranks, relevant) == metrics.recall_at(ranks, relevant, relevant)
    # A relevant item one rank earlier is never worse.
    earlier = np.unique(np.maximum(1, ranks - np.isin(ranks, ranks[-1:])))
    if len(earlier) == len(ranks):
        assert metrics.average_precision(earlier, relevant) >= whole


def random_items(rng: np.random.Generator, n: int, prefix: str) -> Labelled:
    return Labelled(
        rng.standard_normal((n, 5)).astype(np.float32),
        [f"{prefix}{i}" for i in range(n)],
        [("a", "b")[i % 2] for i in range(n)],
    )


def permuted(items: Labelled, order: list[int]) -> Labelled:
    return Labelled(
        items.vectors[order], [items.ids[i] for i in order], [items.labels[i] for i in order]
    )
