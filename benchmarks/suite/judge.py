"""Quality of approximate search: recall of hits, and the mAP that they lose."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import resolve_choices
from retrieval.contracts import Hits, Metric
from retrieval.quality.evaluation import evaluate_hits
from retrieval.quality.labelled import Labelled
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import Distances, Rows, distances_of, nearest

KS = (1, 10, 100)
K = max(KS)


@dataclass(frozen=True, slots=True, eq=False)
class HitQuality:
    """Quality of hits: recall@k of each query (q,) for each k, mAP@K, and the mAP lost."""

    recall_at: dict[int, NDArray[np.float64]]
    map_at: dict[int, float] | None = None
    map_loss: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """The true neighbors of queries, which hits are compared with.

    true: (q, K), their distances, ascending. exact_map: mAP@K of exact search; None without labels.
    hits: number of hits that `of_hits` needs for a query: K + 1 if a query may be its own hit.
    """

    queries: Labelled
    database: Labelled
    metric: Metric
    true: Distances
    hits: int
    exact_map: float | None

    def __post_init__(self) -> None:
        resolve_choices(self)

    @classmethod
    def of(
        cls, queries: Labelled, database: Labelled, metric: Metric, neighbors: Rows | None = None
    ) -> "Judge":
        """Find the true neighbors.

        neighbors: (q, k), the true ones if they are known; ignored if they are too few.
        """
        hits = K if set(queries.ids).isdisjoint(database.ids) else K + 1
        if neighbors is None or neighbors.shape[1] < hits:
            found = nearest(queries.vectors, database.vectors, metric, hits)
        else:
            found = Hits(neighbors, np.empty(neighbors.shape, np.float32))
        true = distances_of(queries.vectors, database.vectors, found.rows[:, :K], metric)
        exact_map = None
        if _any_label(queries.labels) and _any_label(database.labels):
            exact_map = evaluate_hits(queries, database, found, metric, (K,)).map_at[K]
        # In double precision, ties in float32 may be out of order.
        return cls(queries, database, metric, np.sort(true, axis=1), hits, exact_map)

    def of_hits(self, rows: Rows) -> HitQuality:
        """Compare hits with the true neighbors, and their mAP with that of exact search."""
        found = distances_of(self.queries.vectors, self.database.vectors, rows[:, :K], self.metric)
        recall_at = {k: index_recall_at(found, self.true, k, self.metric) for k in KS}
        if self.exact_map is None:
            return HitQuality(recall_at)
        hits = Hits(rows, np.empty(rows.shape, np.float32))
        map_at = evaluate_hits(self.queries, self.database, hits, self.metric, (K,)).map_at
        return HitQuality(recall_at, map_at, self.exact_map - map_at[K])


def _any_label(labels: Iterable[str | None]) -> bool:
    return any(label is not None for label in labels)
