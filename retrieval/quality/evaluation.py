"""Evaluate labelled queries against a labelled database: exactly, or through an index.

An item is relevant to a query if both have the same label. A query whose id is in the database is
left out of its own ranking; see `Labelled.rows_in`. docs/metrics.md defines the measures.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Hits, Index, Json, Metric
from retrieval.errors import BadInput, Mismatch
from retrieval.quality import metrics
from retrieval.quality.labelled import Labelled
from retrieval.quality.metrics import DEFINITIONS, Ranks
from retrieval.quality.per_query import PerQuery
from retrieval.quality.ranking import Rows, map_rankings
from retrieval.quality.significance import bootstrap
from retrieval.storage.sets.compatible import check_same_encoder
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.values import shown, whole_number

KS = (1, 5, 10, 100)

FULL_MEASURES = ("map", "r_precision", "mrr", "knn_accuracy")
"""Measures of a full ranking."""

MEASURES_AT_K = ("map_at", "precision_at", "recall_at", "ndcg_at")
"""Measures of the first k items of a ranking."""

_NO_LABEL = -1

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ClassMeasures:
    """Measures of the queries with one label."""

    queries: int
    map: float | None
    precision_at: dict[int, float]

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr eval --json` prints."""
        return {
            "queries": self.queries,
            "map": self.map,
            "precision_at": {str(k): value for k, value in self.precision_at.items()},
        }


@dataclass(frozen=True)
class Evaluation:
    """Means of the measures over all queries that have relevant items.

    unlabelled: number of queries left out because they have no label.
    without_relevant: number of queries left out because the database has no relevant item (R = 0).
    database: number of items in the database.

    Measures in `FULL_MEASURES` are None for a search by an index, which returns no full ranking.
    """

    per_query: PerQuery
    unlabelled: int
    without_relevant: int
    database: int
    metric: Metric
    ks: tuple[int, ...]
    per_class: dict[str, ClassMeasures] = field(default_factory=dict)

    def __post_init__(self) -> None:
        resolve_choices(self)

    @property
    def queries(self) -> int:
        """Number of queries that the means are over."""
        return len(self.per_query.ids)

    @property
    def map(self) -> float | None:
        return self.means.get("map")

    @property
    def r_precision(self) -> float | None:
        return self.means.get("r_precision")

    @property
    def mrr(self) -> float | None:
        return self.means.get("mrr")

    @property
    def knn_accuracy(self) -> float | None:
        return self.means.get("knn_accuracy")

    @property
    def map_at(self) -> dict[int, float]:
        return self._by_k("map_at")

    @property
    def precision_at(self) -> dict[int, float]:
        return self._by_k("precision_at")

    @property
    def recall_at(self) -> dict[int, float]:
        return self._by_k("recall_at")

    @property
    def ndcg_at(self) -> dict[int, float]:
        return self._by_k("ndcg_at")

    @cached_property
    def means(self) -> dict[str, float]:
        """The mean of each column of `per_query`."""
        values = self.per_query.values.mean(axis=0).tolist()
        return dict(zip(self.per_query.columns, values, strict=True))

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The 95% confidence interval of each mean, by bootstrap; empty for a single query."""
        if self.queries < 2:
            return {}
        low, high = bootstrap(self.per_query.values).tolist()
        pairs = zip(low, high, strict=True)
        return dict(zip(self.per_query.columns, pairs, strict=True))

    def margin(self, measure: str, k: int | None = None) -> float | None:
        """Return half of the interval's width, for `±`; None without an interval."""
        ends = self.intervals.get(measure if k is None else column(measure, k))
        return None if ends is None else (ends[1] - ends[0]) / 2

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr eval --json` prints."""
        return {
            "queries": self.queries,
            "left_out": {
                "unlabelled": self.unlabelled,
                "without_relevant": self.without_relevant,
            },
            "database": self.database,
            "metric": self.metric.value,
            **self._nested(self.means),
            "intervals": self._nested({name: list(ends) for name, ends in self.intervals.items()}),
            "per_class": {label: each.to_json() for label, each in self.per_class.items()},
            "definitions": {name: DEFINITIONS[name] for name in self.defined},
        }

    @property
    def defined(self) -> list[str]:
        """The names in `DEFINITIONS` of the measures that have a value, and of `±`."""
        full = [name for name in FULL_MEASURES if name in self.means]
        return [*MEASURES_AT_K, *full, *(["intervals"] if self.intervals else [])]

    def _by_k(self, measure: str) -> dict[int, float]:
        return {k: self.means[column(measure, k)] for k in self.ks}

    def _nested(self, by_column: Mapping[str, object]) -> dict[str, Json]:
        """Return the values of columns as `retr eval --json` nests them; null if there is none."""
        at_k = {
            name: {str(k): by_column.get(column(name, k)) for k in self.ks}
            for name in MEASURES_AT_K
        }
        full = {name: by_column.get(name) for name in FULL_MEASURES}
        return cast(dict[str, Json], full | at_k)


def column(measure: str, k: int) -> str:
    """Return the name of the column of a measure at k, such as `precision_at_10`."""
    return f"{measure}_{k}"


def evaluate(
    queries: Labelled | Embeddings,
    database: Labelled | Embeddings,
    metric: Metric | str | None = None,
    ks: Sequence[int] = KS,
    depth: int = 0,
) -> Evaluation:
    """Return all measures, from the exact and full ranking of the database for each query.

    queries, database: vectors with labels, or folders of embeddings. metric: None for the metric of
    the encoder, if the database is a folder. depth: number of rows to keep of each ranking.

    Raises BadInput if no query has relevant items, a k is below 1, or the metric is unknown;
    Mismatch if the vectors differ in dimension, or the folders are of two encoders.
    """
    metric = None if metric is None else choice(Metric, metric)
    _check_ks(ks)
    if whole_number(depth, "depth") < 0:
        raise BadInput(f"depth is {depth}; give 0 or more")
    queries, database, metric = _opened(queries, database, metric)
    task = RetrievalTask.of(queries, database, ks)
    kept = np.full((len(task.asked), depth), -1, dtype=np.int64)

    def measure(i: int, rows: Rows) -> list[float]:
        of_rows = task.database_labels.take(rows)
        ranks = metrics.ranks_of(of_rows == task.labels[i])
        voters = of_rows[: metrics.NEIGHBORS_THAT_VOTE].tolist()
        winner = metrics.vote(None if label == _NO_LABEL else label for label in voters)
        kept[i, : len(rows[:depth])] = rows[:depth]
        relevant = len(ranks)
        return [
            metrics.average_precision(ranks, relevant),
            metrics.r_precision(ranks, relevant),
            metrics.reciprocal_rank(ranks),
            float(winner == task.labels[i]),
            *task.at_ks(ranks, relevant),
        ]

    vectors = queries.vectors[task.asked]
    values = map_rankings(vectors, database.vectors, metric, measure, task.own)
    return task.summary(metric, FULL_MEASURES, values, kept)


def _opened(
    queries: Labelled | Embeddings, database: Labelled | Embeddings, metric: Metric | None
) -> tuple[Labelled, Labelled, Metric]:
    """Return queries and database with their vectors, and the metric. Raises as `evaluate` does."""
    for given in (queries, database):
        if not isinstance(given, Labelled | Embeddings):
            raise BadInput(
                f"{shown(given)} cannot be evaluated; give Labelled vectors, or a folder opened "
                "with open_embeddings"
            )
    if isinstance(queries, Embeddings) and isinstance(database, Embeddings):
        check_same_encoder(
            queries.facts.encoder, database.facts.encoder, str(queries.folder), str(database.folder)
        )
    if metric is None:
        if isinstance(database, Labelled):
            raise BadInput(
                f"labelled vectors have no default metric; give one of {', '.join(Metric)}"
            )
        metric = database.facts.metric
    left = Labelled.of(queries) if isinstance(queries, Embeddings) else queries
    if queries is database:
        return left, left, metric
    return left, Labelled.of(database) if isinstance(database, Embeddings) else database, metric


def evaluate_index(
    queries: Labelled,
    database: Labelled,
    index: Index,
    metric: Metric | str,
    ks: Sequence[int] = KS,
    depth: int = 0,
) -> Evaluation:
    """Return the measures of the first k that `index`, built from `database`, finds.

    metric: the metric of the index, for the record. depth: number of hits to keep of each query.
    Raises the errors of `evaluate`, and Mismatch if index and database differ in rows.
    """
    metric = choice(Metric, metric)
    if len(index) != len(database):
        raise Mismatch(
            f"the index has {len(index)} rows, and the database {len(database)}; "
            "build the index again"
        )
    _check_ks(ks)
    # One hit more, since the query itself may be among them; but no more than the index has rows.
    hits = index.search(queries.vectors, min(max(*ks, depth) + 1, len(index)))
    return evaluate_hits(queries, database, hits, metric, ks, depth)


def evaluate_hits(
    queries: Labelled,
    database: Labelled,
    hits: Hits,
    metric: Metric | str,
    ks: Sequence[int] = KS,
    depth: int = 0,
) -> Evaluation:
    """Return the measures of the first k of hits (q, ≥ max(ks)), from any search.

    A query that is in the database should have one hit more, since its own row is left out.
    Raises the errors of `evaluate`.
    """
    metric = choice(Metric, metric)
    task = RetrievalTask.of(queries, database, ks)
    kept = np.full((len(task.asked), depth), -1, dtype=np.int64)

    def measure(i: int) -> list[float]:
        rows = hits.rows[task.asked[i]]
        found = rows[(rows >= 0) & (rows != task.own[i])]
        kept[i, : len(found[:depth])] = found[:depth]
        ranks = metrics.ranks_of(task.database_labels[found[: max(ks)]] == task.labels[i])
        return task.at_ks(ranks, int(task.relevant[i]))

    return task.summary(metric, (), [measure(i) for i in range(len(task.asked))], kept)


@dataclass(frozen=True, slots=True, eq=False)
class RetrievalTask:
    """Queries with their relevant items; labels are numbers, -1 for none.

    asked: (q,), the queries that have relevant items; the other fields are about these.
    own: (q,), the row of each query in the database, -1 if it is not in it.
    relevant: (q,), the number of relevant items R.
    """

    asked: Rows
    own: Rows
    relevant: NDArray[np.int64]
    labels: NDArray[np.int32]
    database_labels: NDArray[np.int32]
    ids: list[str]
    names: list[str]
    unlabelled: int
    without_relevant: int
    ks: NDArray[np.int64]

    @classmethod
    def of(cls, queries: Labelled, database: Labelled, ks: Sequence[int]) -> "RetrievalTask":
        """Find the queries that have relevant items. Raises the errors of `evaluate`."""
        _check_ks(ks)
        names = database.classes()
        known = np.array([name is not None for name in queries.labels], dtype=bool)
        labels = queries.numbers(names).astype(np.int32)
        of_rows = database.numbers(names).astype(np.int32)
        own = queries.rows_in(database)

        # An additional class, without rows, is for queries whose label the database does not have.
        per_class = np.bincount(of_rows[of_rows != _NO_LABEL], minlength=len(names) + 1)
        relevant = per_class[labels]
        itself = (own >= 0) & (of_rows[own] == labels) if len(of_rows) else own >= 0
        relevant = np.where(labels == _NO_LABEL, 0, relevant - itself)
        asked = np.flatnonzero(relevant)
        if not len(asked):
            raise BadInput(
                f"none of {len(queries)} queries shares its label with another of the "
                f"{len(database)} database items; check that both have labels, and the same ones"
            )
        return cls(
            asked,
            own[asked],
            relevant[asked],
            labels[asked],
            of_rows,
            [queries.ids[i] for i in asked.tolist()],
            names,
            unlabelled=int((~known).sum()),
            without_relevant=int((known & (relevant == 0)).sum()),
            ks=np.array(ks),
        )

    def at_ks(self, ranks: Ranks, relevant: int) -> list[float]:
        """Return the measures in `MEASURES_AT_K`, in their order, each at all k."""
        return [
            *metrics.average_precision_at(ranks, relevant, self.ks),
            *metrics.precision_at(ranks, self.ks),
            *metrics.recall_at(ranks, relevant, self.ks),
            *metrics.ndcg_at(ranks, relevant, self.ks),
        ]

    def summary(
        self, metric: Metric | str, overall: Sequence[str], measured: list[list[float]], kept: Rows
    ) -> Evaluation:
        """Return the evaluation, with means for each class.

        overall: names of the measures of full rankings. measured: (q, measures), a value for each
        of `overall`, then those of `at_ks`. kept: (q, depth), the first rows of each ranking.
        """
        metric = choice(Metric, metric)
        values = np.array(measured)
        ks = self.ks.tolist()
        columns = [*overall, *(column(measure, k) for measure in MEASURES_AT_K for k in ks)]
        per_class = {}
        for label in np.unique(self.labels):
            of_class = values[self.labels == label]
            means = dict(zip(columns, of_class.mean(axis=0).tolist(), strict=True))
            per_class[self.names[label]] = ClassMeasures(
                len(of_class), means.get("map"), {k: means[column("precision_at", k)] for k in ks}
            )
        return Evaluation(
            PerQuery(
                self.ids, [self.names[i] for i in self.labels], columns, values, kept, self.own
            ),
            self.unlabelled,
            self.without_relevant,
            len(self.database_labels),
            metric,
            tuple(ks),
            per_class,
        )


def _check_ks(ks: Sequence[int]) -> None:
    if not isinstance(ks, Iterable) or isinstance(ks, str):
        raise BadInput(f"ks are {shown(ks)}; give a list of whole numbers")
    ks = [whole_number(k, "k") for k in ks]
    if not ks or min(ks) < 1:
        raise BadInput(f"ks are {list(ks)}; give one or more, each at least 1")
