"""Curves of precision over recall, and confusions between labels, which a mean hides."""

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

LEVELS = np.linspace(0, 1, 101)
"""The recalls at which precision is taken."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Mean interpolated precision (levels,) at each of `LEVELS`, over all queries and by label."""

    overall: Values
    by_label: dict[str, Values]


def precision_recall(queries: Labelled, database: Labelled, metric: Metric | str) -> Curves:
    """Precision over recall of the full rankings, over the queries that have something to find.

    Interpolated precision at recall r is the highest precision at any recall of r or more
    (Manning, Raghavan & Schütze, Introduction to Information Retrieval, section 8.4). A query that
    is in the database is left out of its own ranking. Raises what `evaluate` raises.
    """
    metric = choice(Metric, metric)
    task = RetrievalTask.of(queries, database, (1,))

    def interpolated(i: int, rows: Rows) -> Values:
        return at_levels(ranks_of(task.database_labels.take(rows) == task.labels[i]))

    vectors = queries.vectors[task.asked]
    values = np.array(map_rankings(vectors, database.vectors, metric, interpolated, task.own))
    by_label = {
        task.names[number]: values[task.labels == number].mean(axis=0)
        for number in np.unique(task.labels).tolist()
    }
    return Curves(values.mean(axis=0), dict(sorted(by_label.items())))


def at_levels(ranks: Rows) -> Values:
    """Return the interpolated precision (levels,) of one ranking.

    ranks: of all relevant items, from 1.
    """
    precision = np.arange(1, len(ranks) + 1) / ranks
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    # The first relevant item at which recall reaches the level.
    first = np.maximum(np.ceil(LEVELS * len(ranks) - 1e-9).astype(np.int64), 1)
    return np.asarray(highest[first - 1], np.float64)


def confusion(result: Evaluation, database: Labelled) -> tuple[list[str], Values]:
    """Return labels, and the share of neighbors by (label of the query, label of the neighbor).

    result: with a depth, whose rows are counted. Lines of labels that have queries sum to 1, others
    to 0. Neighbors without a label are not counted.
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
    """Return the queries, as rows of `per_query`, of the highest and of the lowest average
    precision.
    """
    column = result.per_query.columns.index("map")
    order = np.argsort(-result.per_query.values[:, column], kind="stable").tolist()
    half = len(order) // 2  # no query is both
    return order[: min(count, half)], order[::-1][: min(count, len(order) - half)]
