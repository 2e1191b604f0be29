"""Measures of single queries, from which means and intervals are computed."""

from dataclasses import dataclass

from retrieval.quality.ranking import Rows
from retrieval.quality.significance import Values


@dataclass(frozen=True, slots=True, eq=False)
class PerQuery:
    """Measures of each query that has relevant items in the database.

    ids, labels: (q,). columns: names such as `map` or `precision_at_10`. values: (q, columns).
    rows: (q, depth), the first rows of each ranking, -1 beyond its end.
    own: (q,), the row of each query in the database, -1 if it is not in it.
    """

    ids: list[str]
    labels: list[str]
    columns: list[str]
    values: Values
    rows: Rows
    own: Rows
