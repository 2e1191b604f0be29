"""Evaluates labelled queries against a labelled database: exactly, or through an index.

An item is relevant to a query if it has the same label. A query that is in the database itself,
by its id, is left out of its own ranking. docs/metrics.md defines the measures.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.contracts import Hits, Index, Json, Metric, Vectors
from retrieval.errors import BadInput, Mismatch, UnknownName
from retrieval.quality import metrics
from retrieval.quality.metrics import DEFINITIONS, Ranks
from retrieval.quality.ranking import Rows, map_rankings
from retrieval.storage.shards import Embeddings

KS = (1, 5, 10, 100)

_NO_LABEL = -1


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Vectors (n, dim) with their unique ids (n,) and labels (n,); a label is None if unknown.

    paths: (n,), an Arrow column of where the images are, null where that is not known.

    Raises Mismatch where these are not of one length, BadInput where an id comes twice.
    """

    vectors: Vectors
    ids: Sequence[str] | NDArray[Any]
    labels: Sequence[str | None] | NDArray[Any]
    paths: pa.ChunkedArray | None = None

    def __post_init__(self) -> None:
        if not len(self.vectors) == len(self.ids) == len(self.labels):
            raise Mismatch(
                f"{len(self.vectors)} vectors have {len(self.ids)} ids and {len(self.labels)} "
                "labels; give one of each to every vector"
            )
        seen: set[str] = set()
        for name in self.ids:
            if name in seen:
                raise BadInput(f"id '{name}' comes more than once; ids must be unique")
            seen.add(name)

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def of(cls, embeddings: Embeddings) -> Self:
        """The embeddings of a folder.

        Ids are unique within a source, so that they get its name here: `1.jpg` of one folder is
        not `1.jpg` of another.
        """
        rows, vectors = embeddings.read()
        source = embeddings.facts.source.name
        ids = [f"{source}: {name}" for name in rows["id"].to_pylist()]
        return cls(vectors, ids, rows["label"].to_pylist(), rows["path"])

    def split_off(self, count: int, seed: int) -> "tuple[Labelled, Labelled]":
        """`count` rows drawn by seed, at most a fifth of all, and the rows that are left.

        Raises BadInput where there are fewer than 5 rows.
        """
        if len(self) < 5:
            raise BadInput(f"{len(self)} rows are too few to split some off; give at least 5")
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(count, len(self) // 5)
        return self.take(np.sort(order[:count])), self.take(np.sort(order[count:]))

    def check_classes(self, names: Iterable[str]) -> None:
        """Raise UnknownName for a class that has no row."""
        there = {label for label in self.labels if label is not None}
        for name in names:
            if name not in there:
                raise UnknownName("class of these images", name, there)

    def single(self) -> list[str]:
        """The classes that have one row, sorted."""
        rows = Counter(label for label in self.labels if label is not None)
        return sorted(name for name, count in rows.items() if count == 1)

    def sample(self, most: int, seed: int) -> "Labelled":
        """`most` rows drawn by seed, in their order, or all where there are fewer."""
        drawn = np.random.default_rng(seed).permutation(len(self))[:most]
        return self.take(np.sort(drawn))

    def of_classes(self, names: Collection[str]) -> "Labelled":
        """The rows of these classes alone."""
        return self.take(np.flatnonzero([label in names for label in self.labels]))

    def take(self, rows: Rows) -> "Labelled":
        """These rows, in this order."""
        return Labelled(
            self.vectors[rows],
            [self.ids[i] for i in rows],
            [self.labels[i] for i in rows],
            None if self.paths is None else self.paths.take(pa.array(rows)),
        )


@dataclass(frozen=True, slots=True)
class OfClass:
    """The measures of the queries with one label."""

    queries: int
    map: float | None
    precision_at: dict[int, float]

    def to_json(self) -> dict[str, Json]:
        """As in `retr eval --json`."""
        return {
            "queries": self.queries,
            "map": self.map,
            "precision_at": _by_k(self.precision_at),
        }


@dataclass(frozen=True, slots=True)
class Margins:
    """Half of each measure's 95% confidence interval over queries; None where there is none."""

    map: float | None
    map_at: dict[int, float | None]
    precision_at: dict[int, float | None]
    recall_at: dict[int, float | None]
    r_precision: float | None
    knn_accuracy: float | None

    def to_json(self) -> dict[str, Json]:
        """As in `retr eval --json`."""
        return _measures(self)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The means of the measures over all queries that have something relevant to find.

    queries: how many these are.
    unlabelled, without_relevant: how many queries were left out, for want of a label or of a
        relevant item in the database (R = 0).
    database: how many items there were to rank.
    map, r_precision, knn_accuracy: None through an index, which gives no full ranking.
    """

    queries: int
    unlabelled: int
    without_relevant: int
    database: int
    metric: Metric
    map: float | None
    map_at: dict[int, float]
    precision_at: dict[int, float]
    recall_at: dict[int, float]
    r_precision: float | None
    knn_accuracy: float | None
    margins: Margins
    per_class: dict[str, OfClass] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """As in `retr eval --json`."""
        return {
            "queries": self.queries,
            "left_out": {
                "unlabelled": self.unlabelled,
                "without_relevant": self.without_relevant,
            },
            "database": self.database,
            "metric": self.metric.value,
            **_measures(self),
            "margins": self.margins.to_json(),
            "per_class": {label: of.to_json() for label, of in self.per_class.items()},
            "definitions": {name: DEFINITIONS[name] for name in self.defined},
        }

    @property
    def defined(self) -> list[str]:
        """The measures that have a value here."""
        names = [
            "precision_at", "recall_at", "map", "map_at", "r_precision", "knn_accuracy", "margins",
        ]  # fmt: skip
        return [name for name in names if getattr(self, name) is not None]


def evaluate(
    queries: Labelled, database: Labelled, metric: Metric, ks: Sequence[int] = KS
) -> Evaluation:
    """All measures, from the exact and full ranking of the database for each query.

    Raises BadInput where no query has anything relevant to find, or a k is below 1; Mismatch
    for vectors of unlike dimensions.
    """
    task = _Task.of(queries, database, ks)

    def measure(i: int, rows: Rows) -> _Measures:
        of_rows = task.database_labels.take(rows)
        ranks = metrics.ranks_of(of_rows == task.labels[i])
        voters = of_rows[: metrics.NEIGHBORS_THAT_VOTE].tolist()
        winner = metrics.vote(None if label == _NO_LABEL else label for label in voters)
        relevant = len(ranks)
        return _Measures(
            *_at(ranks, relevant, ks),
            map=metrics.average_precision(ranks, relevant),
            r_precision=metrics.r_precision(ranks, relevant),
            knn_accuracy=float(winner == task.labels[i]),
        )

    vectors = queries.vectors[task.asked]
    return task.summary(metric, map_rankings(vectors, database.vectors, metric, measure, task.own))


def evaluate_index(
    queries: Labelled, database: Labelled, index: Index, metric: Metric, ks: Sequence[int] = KS
) -> Evaluation:
    """precision@k, recall@k and mAP@k of what `index`, built from `database`, finds.

    metric: the index's, for the record. Raises as `evaluate` does, and Mismatch where the index
    does not have the database's rows.
    """
    if len(index) != len(database):
        raise Mismatch(
            f"the index has {len(index)} rows, the database {len(database)}; build it again"
        )
    _check_ks(ks)
    # One more, as the query itself may be among them; the index has no more than its rows.
    hits = index.search(queries.vectors, min(max(ks) + 1, len(index)))
    return evaluate_hits(queries, database, hits, metric, ks)


def evaluate_hits(
    queries: Labelled, database: Labelled, hits: Hits, metric: Metric, ks: Sequence[int] = KS
) -> Evaluation:
    """precision@k, recall@k and mAP@k of hits (q, ≥ max(ks)), whoever found them.

    Where a query is in the database itself, it should have one hit more, which is left out.
    Raises as `evaluate` does.
    """
    task = _Task.of(queries, database, ks)

    def measure(i: int) -> _Measures:
        rows = hits.rows[task.asked[i]]
        found = rows[(rows >= 0) & (rows != task.own[i])][: max(ks)]
        ranks = metrics.ranks_of(task.database_labels[found] == task.labels[i])
        return _Measures(*_at(ranks, int(task.relevant[i]), ks))

    return task.summary(metric, [measure(i) for i in range(len(task.asked))])


@dataclass(frozen=True, slots=True)
class _Measures:
    """Of one query; those by k in the order of the ks."""

    precision_at: list[float]
    recall_at: list[float]
    map_at: list[float]
    map: float | None = None
    r_precision: float | None = None
    knn_accuracy: float | None = None


def _at(
    ranks: Ranks, relevant: int, ks: Sequence[int]
) -> tuple[list[float], list[float], list[float]]:
    """precision@k, recall@k and AP@k, for each k."""
    return (
        [metrics.precision_at(ranks, k) for k in ks],
        [metrics.recall_at(ranks, relevant, k) for k in ks],
        [metrics.average_precision_at(ranks, relevant, k) for k in ks],
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What is asked of whom; labels are numbers from here on, -1 where there is none.

    asked: (q,), the queries that have something relevant to find; all else is of these.
    own: (q,), the row of each query in the database, -1 where it is not there.
    relevant: (q,), R.
    """

    asked: Rows
    own: Rows
    relevant: NDArray[np.int64]
    labels: NDArray[np.int32]
    database_labels: NDArray[np.int32]
    names: list[str]
    unlabelled: int
    without_relevant: int
    ks: Sequence[int]

    @classmethod
    def of(cls, queries: Labelled, database: Labelled, ks: Sequence[int]) -> "_Task":
        _check_ks(ks)
        names = sorted({name for name in database.labels if name is not None})
        number = {name: i for i, name in enumerate(names)}
        rows = {name: row for row, name in enumerate(database.ids)}

        known = np.array([name is not None for name in queries.labels], dtype=bool)
        labels = np.array([number.get(name, _NO_LABEL) for name in queries.labels], dtype=np.int32)
        of_rows = np.array([number.get(name, _NO_LABEL) for name in database.labels], np.int32)
        own = np.array([rows.get(name, -1) for name in queries.ids], dtype=np.int64)

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
            names,
            unlabelled=int((~known).sum()),
            without_relevant=int((known & (relevant == 0)).sum()),
            ks=ks,
        )

    def summary(self, metric: Metric, measured: list[_Measures]) -> Evaluation:
        """The means over all queries asked, and over those of each class."""
        per_class = {}
        for label in np.unique(self.labels):
            of_class = [measured[i] for i in np.flatnonzero(self.labels == label)]
            per_class[self.names[label]] = OfClass(
                queries=len(of_class),
                map=_mean([of.map for of in of_class]),
                precision_at=self._means([of.precision_at for of in of_class]),
            )
        return Evaluation(
            queries=len(self.asked),
            unlabelled=self.unlabelled,
            without_relevant=self.without_relevant,
            database=len(self.database_labels),
            metric=metric,
            map=_mean([of.map for of in measured]),
            map_at=self._means([of.map_at for of in measured]),
            precision_at=self._means([of.precision_at for of in measured]),
            recall_at=self._means([of.recall_at for of in measured]),
            r_precision=_mean([of.r_precision for of in measured]),
            knn_accuracy=_mean([of.knn_accuracy for of in measured]),
            margins=Margins(
                map=_margin([of.map for of in measured]),
                map_at=self._margins([of.map_at for of in measured]),
                precision_at=self._margins([of.precision_at for of in measured]),
                recall_at=self._margins([of.recall_at for of in measured]),
                r_precision=_margin([of.r_precision for of in measured]),
                knn_accuracy=_margin([of.knn_accuracy for of in measured]),
            ),
            per_class=per_class,
        )

    def _margins(self, values: list[list[float]]) -> dict[int, float | None]:
        columns = zip(*values, strict=True)
        return {k: metrics.margin(of_k) for k, of_k in zip(self.ks, columns, strict=True)}

    def _means(self, values: list[list[float]]) -> dict[int, float]:
        return dict(zip(self.ks, np.mean(values, axis=0).tolist(), strict=True))


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise BadInput(f"k must be at least 1, got {list(ks)}; name one or more such k")


def _mean(values: list[float | None]) -> float | None:
    """None where the measure was not taken."""
    taken = [value for value in values if value is not None]
    return float(np.mean(taken)) if taken else None


def _measures(of: Evaluation | Margins) -> dict[str, Json]:
    """The measures as `retr eval --json` names them."""
    return {
        "map": of.map,
        "map_at": _by_k(of.map_at),
        "precision_at": _by_k(of.precision_at),
        "recall_at": _by_k(of.recall_at),
        "r_precision": of.r_precision,
        "knn_accuracy": of.knn_accuracy,
    }


def _margin(values: list[float | None]) -> float | None:
    return metrics.margin([value for value in values if value is not None])


def _by_k(values: Mapping[int, float | None]) -> dict[str, Json]:
    return {str(k): value for k, value in values.items()}
