"""Evaluate labelled queries against a labelled database: exactly, or through an index.

An item is relevant to a query if it has the same label. A query that is in the database itself,
by its id, is left out of its own ranking; see `Labelled.rows_in`. docs/metrics.md defines the
measures.
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
from retrieval.storage.compatible import check_same_encoder
from retrieval.storage.embeddings import Embeddings
from retrieval.values import shown, whole_number

KS = (1, 5, 10, 100)

OVERALL = ("map", "r_precision", "mrr", "knn_accuracy")
"""The measures that take a full ranking."""

BY_K = ("map_at", "precision_at", "recall_at", "ndcg_at")
"""The measures of the first k."""

_NO_LABEL = -1

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class OfClass:
    """The measures of the queries with one label."""

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
    """The means of the measures over all queries that have something relevant to find.

    unlabelled, without_relevant: how many queries were left out, for want of a label or of a
        relevant item in the database (R = 0).
    database: how many items there were to rank.

    Measures in `OVERALL` are None through an index, which gives no full ranking.
    """

    per_query: PerQuery
    unlabelled: int
    without_relevant: int
    database: int
    metric: Metric
    ks: tuple[int, ...]
    per_class: dict[str, OfClass] = field(default_factory=dict)

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
        """The 95% confidence interval of each mean, by bootstrap; none of a single query."""
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
            "per_class": {label: of.to_json() for label, of in self.per_class.items()},
            "definitions": {name: DEFINITIONS[name] for name in self.defined},
        }

    @property
    def defined(self) -> list[str]:
        """The measures that have a value here, and what `±` is."""
        overall = [name for name in OVERALL if name in self.means]
        return [*BY_K, *overall, *(["intervals"] if self.intervals else [])]

    def _by_k(self, measure: str) -> dict[int, float]:
        return {k: self.means[column(measure, k)] for k in self.ks}

    def _nested(self, of: Mapping[str, object]) -> dict[str, Json]:
        """Columns as `retr eval --json` names them; null where there is none."""
        by_k = {name: {str(k): of.get(column(name, k)) for k in self.ks} for name in BY_K}
        return cast(dict[str, Json], {name: of.get(name) for name in OVERALL} | by_k)


def column(measure: str, k: int) -> str:
    """Return the column of a measure at k: `precision_at_10`."""
    return f"{measure}_{k}"


def evaluate(
    queries: Labelled | Embeddings,
    database: Labelled | Embeddings,
    metric: Metric | str | None = None,
    ks: Sequence[int] = KS,
    depth: int = 0,
) -> Evaluation:
    """Return all measures, from the exact and full ranking of the database for each query.

    queries, database: vectors with labels, or folders of embeddings. metric: None for the one that
    the database's encoder was made for, of a folder. depth: how many rows of each ranking are kept.

    Raises BadInput where no query has anything relevant to find, a k is below 1, or the metric is
    not known; Mismatch for vectors of unlike dimensions, and for folders of two encoders.
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
    return task.summary(metric, OVERALL, values, kept)


def _opened(
    queries: Labelled | Embeddings, database: Labelled | Embeddings, metric: Metric | None
) -> tuple[Labelled, Labelled, Metric]:
    """Return both with their vectors, and the metric. Raises BadInput for other types."""
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
                f"vectors do not say how they are compared; give a metric: {', '.join(Metric)}"
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

    metric: the index's, for the record; depth: how many of its hits are kept. Raises as `evaluate`
    does, and Mismatch where the index does not have the database's rows.
    """
    metric = choice(Metric, metric)
    if len(index) != len(database):
        raise Mismatch(
            f"the index has {len(index)} rows, the database {len(database)}; build it again"
        )
    _check_ks(ks)
    # One more, as the query itself may be among them; the index has no more than its rows.
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
    Raises as `evaluate` does.
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
        """Raises what `evaluate` raises of labels and ks."""
        _check_ks(ks)
        names = database.classes()
        known = np.array([name is not None for name in queries.labels], dtype=bool)
        labels = queries.numbers(names).astype(np.int32)
        of_rows = database.numbers(names).astype(np.int32)
        own = queries.rows_in(database)

        # One more class than there are, for queries without a label or with one of their own.
        per_class = np.bincount(of_rows[of_rows != _NO_LABEL], minlength=len(names) + 1)
        relevant = per_class[labels]
        itself = (own >= 0) & (of_rows[own] == labels) if len(of_rows) else own >= 0
        relevant = np.where(labels == _NO_LABEL, 0, relevant - itself)
        asked = np.flatnonzero(relevant)
        if not len(asked):
            raise BadInput(
                f"none of {len(queries)} queries has another item of its label in the database "
                f"of {len(database)}; check that both have labels, and the same ones"
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
        """Return the measures of `BY_K` in their order, each at all k."""
        return [
            *metrics.average_precision_at(ranks, relevant, self.ks),
            *metrics.precision_at(ranks, self.ks),
            *metrics.recall_at(ranks, relevant, self.ks),
            *metrics.ndcg_at(ranks, relevant, self.ks),
        ]

    def summary(
        self, metric: Metric | str, overall: Sequence[str], measured: list[list[float]], kept: Rows
    ) -> Evaluation:
        """Return the values of all queries asked, and the means over those of each class."""
        metric = choice(Metric, metric)
        values = np.array(measured)
        ks = self.ks.tolist()
        columns = [*overall, *(column(measure, k) for measure in BY_K for k in ks)]
        per_class = {}
        for label in np.unique(self.labels):
            of_class = values[self.labels == label]
            means = dict(zip(columns, of_class.mean(axis=0).tolist(), strict=True))
            per_class[self.names[label]] = OfClass(
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
        raise BadInput(f"k must be at least 1, got {list(ks)}; name one or more such k")
