"""Details that a mean hides: precision-recall curves, and confusions between labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Metric
from retrieval.quality.evaluation import Evaluation, RetrievalTask
from retrieval.quality.labelled import Labelled
from retrieval.quality.metrics import ranks_of
from retrieval.quality.ranking import Rows, map_rankings

RECALL_LEVELS = np.linspace(0, 1, 101)
"""Recalls at which the interpolated precision is computed."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Mean interpolated precision (levels,) at `RECALL_LEVELS`: of all queries, and by label."""

    overall: Values
    by_label: dict[str, Values]


def precision_recall(queries: Labelled, database: Labelled, metric: Metric | str) -> Curves:
    """Return the mean precision over recall of the full rankings.

    The mean is over the queries that have relevant items. The interpolated precision at recall r is
    the highest precision at any recall of at least r (Manning, Raghavan & Schütze, Introduction to
    Information Retrieval, section 8.4). A query that is in the database is left out of its own
    ranking. Raises the errors of `evaluate`.
    """
    metric = choice(Metric, metric)
    task = RetrievalTask.of(queries, database, (1,))

    def interpolated(i: int, rows: Rows) -> Values:
        return precision_at_levels(ranks_of(task.database_labels.take(rows) == task.labels[i]))

    vectors = queries.vectors[task.asked]
    values = np.array(map_rankings(vectors, database.vectors, metric, interpolated, task.own))
    by_label = {
        task.names[number]: values[task.labels == number].mean(axis=0)
        for number in np.unique(task.labels).tolist()
    }
    return Curves(values.mean(axis=0), dict(sorted(by_label.items())))


def precision_at_levels(ranks: Rows) -> Values:
    """Return the interpolated precision (levels,) of one ranking.

    ranks: (R,), the ranks of all relevant items, from 1, ascending.
    """
    precision = np.arange(1, len(ranks) + 1) / ranks
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    # Number of relevant items that are needed to reach each level of recall.
    first = np.maximum(np.ceil(RECALL_LEVELS * len(ranks) - 1e-9).astype(np.int64), 1)
    return np.asarray(highest[first - 1], np.float64)


def confusion(result: Evaluation, database: Labelled) -> tuple[list[str], Values]:
    """Return the labels, and the shares of neighbors by label, (labels, labels).

    Row i and column j hold the share of neighbors with label j, among the neighbors of queries with
    label i. A row sums to 1, or to 0 if no query has its label. Neighbors without a label are not
    counted.

    result: an evaluation with a depth: its kept rows are counted.
    """
    of = result.per_query
    names = sorted({*of.labels, *(label for label in database.labels if label is not None)})
    number: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    of_rows = np.array([number.get(label, -1) for label in database.labels])
    counts = np.zeros((len(names), len(names)))
    for label, rows in zip(of.labels, of.rows, strict=True):
        found = of_rows[rows[rows >= 0]]
        counts[number[label]] += np.bincount(found[found >= 0], minlength=len(names))
    return names, counts / np.maximum(counts.sum(1, keepdims=True), 1)


def extremes(result: Evaluation, count: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return the queries with the highest, and those with the lowest average precision.

    Queries are rows of `per_query`, at most `count` of each kind.
    """
    column = result.per_query.columns.index("map")
    order = np.argsort(-result.per_query.values[:, column], kind="stable").tolist()
    half = len(order) // 2  # no query is in both lists
    return order[: min(count, half)], order[::-1][: min(count, len(order) - half)]
