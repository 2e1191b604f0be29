"""Search a table of PostgreSQL by its index, or by comparing all rows that match."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexers.pgvector.conditions import (
    SqlCondition,
    keys_below,
    keys_condition,
    name_beside_values,
    sql_of,
)
from indexers.pgvector.facts import (
    KEY,
    REMEDY,
    VECTOR,
    TableFacts,
    stored_columns,
    write_table_facts,
)
from indexers.pgvector.filling import OPERATORS, change
from indexers.pgvector.table import PostgresTable
from retrieval.contracts import Hits, Json, Mask, Metric, Rows, Vectors
from retrieval.errors import BadData
from retrieval.hits import Found, answer, checked_additions, prepared
from retrieval.storage.tables import read_table, write_table
from retrieval.where.conditions import Condition

if TYPE_CHECKING:
    from indexers.pgvector.backend import Pgvector

KEYS = "keys.parquet"
"""The key of each row, unless row i has the key i."""

QUERIES_PER_REQUEST = 256
HITS_PER_REQUEST = 2**17
MAX_EF = 1_000  # pgvector's maximum


class PgvectorIndex:
    """Index in a table. keys: (rows,), the table's key of each row; None: its number."""

    def __init__(
        self,
        table: PostgresTable,
        holds: TableFacts,
        options: "Pgvector",
        keys: Rows | None = None,
        resumed_at: int = 0,
        is_behind: bool = False,
        changing: bool = False,
    ) -> None:
        """is_behind: whether the table had an update since that was not published.

        changing: whether an open transaction has changed the table.
        """
        self.table = table
        self.holds = holds
        self.options = options
        self.metric = options.metric
        self.dim = holds.dim
        self.keys = keys
        self.resumed_at = resumed_at
        self.is_behind = is_behind
        self._is_changing = changing
        self._row_of: Rows | None = None
        if keys is not None:
            self._row_of = np.full(holds.end, -1, np.int64)
            self._row_of[keys] = np.arange(len(keys))

    @property
    def details(self) -> Mapping[str, Json]:
        """The database and the table, and the row at which a killed build was resumed."""
        details: dict[str, Json] = {
            "database": self.table.address.name,
            "table": f"{self.table.schema}.{self.table.name}",
        }
        if self.resumed_at:
            details["resumed_at"] = self.resumed_at
        return details

    def __len__(self) -> int:
        return self.holds.rows

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows that PostgreSQL finds; see `Index` and `Hits`.

        A mask is sent as a list of keys. If a walk of the graph finds too few rows for a query, all
        rows that match are compared with it.
        """
        return answer(self._nearest, queries, k, among, dim=self.dim, rows=len(self))

    def search_condition(self, queries: Vectors, k: int, among: Mask, condition: Condition) -> Hits:
        """Search with the condition as SQL; see `Querying`."""
        kinds = dict(zip(self.holds.texts, self.holds.kinds, strict=True))
        nearest = partial(self._nearest, where=sql_of(condition, kinds))
        return answer(nearest, queries, k, among, dim=self.dim, rows=len(self))

    def upsert(self, table: pa.Table, old: Rows, added: Vectors) -> "PgvectorIndex":
        """Change the table in a transaction, which `save` commits; see `Upserting`.

        Rows that stay keep their keys.
        """
        if len(added):
            added = prepared(checked_additions(added, self.dim, self.metric), self.metric)
        end = self.holds.end
        keys = old.copy() if self.keys is None else self.keys[old]
        keys[old < 0] = np.arange(end, end + len(added))
        columns = table.drop_columns(
            [n for n in ("id", "label", "path") if n in table.schema.names]
        )
        found = self.table.facts()
        edition = self.holds.edition if found is None else found[0].edition
        after = replace(
            self.holds,
            rows=len(old),
            columns=stored_columns(columns),
            end=end + len(added),
            edition=edition + 1,
        )
        change(self.table, self.holds, after, table, keys, added)
        return PgvectorIndex(self.table, after, self.options, keys, changing=True)

    def save(self, folder: Path) -> None:
        """Commit an update, and write pgvector.json and the keys. The rows stay in the table."""
        if self.keys is None:
            (folder / KEYS).unlink(missing_ok=True)
        else:
            write_table(folder / KEYS, pa.table({KEY: pa.array(self.keys, pa.int64())}), "zstd")
        address, schema, name = self.table.address.text, self.table.schema, self.table.name
        write_table_facts(folder, address, schema, name, self.holds)
        if self._is_changing:
            self.table.commit()
            self._is_changing = False

    def _nearest(
        self, queries: Vectors, count: int, among: Mask | None, where: SqlCondition | None = None
    ) -> Found:
        queries = prepared(queries, self.metric)
        condition = None if among is None else where or self._listed(among)
        if self.is_behind:
            known = keys_below(KEY, self.holds.end)
            condition = known if condition is None else condition & known
        exact = self.options.index_type == "EXACT"
        keys, distances = self._asked(queries, count, condition, exact)
        short = np.flatnonzero(keys[:, -1] < 0)
        if len(short) and not exact:
            keys[short], distances[short] = self._asked(queries[short], count, condition, True)
        rows = keys if self._row_of is None else np.where(keys < 0, -1, self._row_of[keys])
        return rows, distances

    def _listed(self, among: Mask) -> SqlCondition:
        """Return the condition that lists the rows of the mask, or else the fewer others."""
        listed = 2 * int(np.count_nonzero(among)) <= len(among)
        rows = np.flatnonzero(among if listed else ~among)
        keys = rows if self.keys is None else self.keys[rows]
        return keys_condition(KEY, keys.tolist(), listed)

    def _asked(
        self, queries: Vectors, count: int, condition: SqlCondition | None, exact: bool
    ) -> Found:
        """Return the keys and distances that PostgreSQL finds, (queries, count); -1 if fewer."""
        keys = np.full((len(queries), count), -1, np.int64)
        distances = np.full(keys.shape, np.inf, np.float32)
        query = self._query(condition, exact)
        conditions = () if condition is None else condition.values
        at_once = max(1, min(QUERIES_PER_REQUEST, HITS_PER_REQUEST // count))
        for start in range(0, len(queries), at_once):
            values = [[*queries[start : start + at_once]], *conditions, count]
            with self.table.connected() as connection:
                with connection.pipeline(), connection.transaction():
                    self._set(connection, count, exact)
                    # A condition is planned by its values, so it is not prepared.
                    cursor = connection.execute(query, values, prepare=False, binary=True)
                found = cursor.fetchall()
            if not found:
                continue
            line, key = np.array([each[:2] for each in found]).T
            scores = np.array([each[2] for each in found])
            order = np.lexsort((key, scores, line))
            line, key, scores = line[order] - 1, key[order], scores[order]
            place = np.arange(len(line)) - np.searchsorted(line, line)
            keys[start + line, place] = key
            distances[start + line, place] = self._distances(scores)
        return keys, distances

    def _distances(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distances for the results of pgvector's operator."""
        if self.metric is Metric.COSINE:
            return np.maximum(1 + scores, 0)
        return scores

    def _query(self, condition: SqlCondition | None, exact: bool) -> Any:
        from psycopg import sql

        key, vector = sql.Identifier(KEY), sql.Identifier(VECTOR)
        table = name_beside_values(self.table.schema, self.table.name)
        distance = sql.SQL("{} {} q.v").format(vector, sql.SQL(OPERATORS[self.metric][0]))
        # With the key, equal distances have an order. A graph is walked by the distance alone.
        order = sql.SQL("{}, {}").format(distance, key) if exact else distance
        where = sql.SQL("") if condition is None else sql.SQL("WHERE {}").format(condition.sql)
        return sql.SQL(
            "SELECT q.n, h.k, h.d FROM unnest(%s::vector[]) WITH ORDINALITY AS q(v, n), LATERAL "
            "(SELECT {key} AS k, {distance} AS d FROM {table} {where} ORDER BY {order} LIMIT %s) h"
        ).format(key=key, distance=distance, table=table, where=where, order=order)

    def _set(self, connection: Any, count: int, exact: bool) -> None:
        """Set the options of this transaction's searches."""
        settings = {
            "jit": "off",  # compiling takes longer than most searches
            "enable_indexscan": "off" if exact else "on",
            "hnsw.ef_search": str(min(MAX_EF, max(count, self.options.ef))),
        }
        if self.table.iterative:
            settings["hnsw.iterative_scan"] = "relaxed_order"
        text = ", ".join(["set_config(%s, %s, true)"] * len(settings))
        connection.execute(f"SELECT {text}", [part for pair in settings.items() for part in pair])


def read_keys(folder: Path, holds: TableFacts) -> Rows | None:
    """Return the key of each row; None if row i has the key i. Raises BadData."""
    path = folder / KEYS
    if not path.is_file():
        if holds.end != holds.rows:
            raise BadData(f"{path} is missing; {REMEDY}")
        return None
    try:
        column = read_table(path.read_bytes())[KEY].combine_chunks()
        if column.type != pa.int64() or column.null_count:
            raise ValueError("the keys are not numbers")
        keys = np.frombuffer(column.buffers()[1], np.int64, len(column), 8 * column.offset)
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); {REMEDY}") from None
    if len(keys) != holds.rows or keys.min() < 0 or keys.max() >= holds.end:
        raise BadData(f"{path} does not fit its table; {REMEDY}")
    return keys
