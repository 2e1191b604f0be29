"""Create, fill and update a table of PostgreSQL."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexers.pgvector.facts import KEY, VECTOR, TableFacts
from indexers.pgvector.table import DROP, PostgresTable
from retrieval.contracts import Blocks, Metric, Rows, Vectors
from retrieval.errors import BadInput, Mismatch, RetrError
from retrieval.hits import checked_blocks

OPERATORS = {
    Metric.COSINE: ("<#>", "vector_ip_ops"),  # vectors have length 1; the index of <=> lacks zeros
    Metric.EUCLIDEAN: ("<->", "vector_l2_ops"),
    Metric.INNER_PRODUCT: ("<#>", "vector_ip_ops"),
}
"""Operator and operator class of pgvector for each metric."""

STAGED = "retr_rows"  # a temporary table of keys and texts


def fill(table: PostgresTable, holds: TableFacts, blocks: Blocks, texts: pa.Table | None) -> int:
    """Create and load the table, then build its index. Return the number of rows found there.

    Each block is committed with its keys, so that a killed build continues after the last one. The
    index and the mark of a complete table appear in one transaction.
    """
    with table.locked():
        found = table.facts()
        if found is None:
            _create(table, holds, texts)
            there = 0
        else:
            there = _rows_there(table, holds, *found)
        if found is None or not found[1]:
            _load(table, holds, blocks, texts, there)
            table.check_count(holds)
            _complete(table, holds)
        else:
            table.check_count(holds)
    return there


def _rows_there(table: PostgresTable, holds: TableFacts, found: TableFacts, complete: bool) -> int:
    """Return the number of rows to continue after. Raises Mismatch for other content."""
    from psycopg import sql

    what = found.difference(holds)
    if what is None and found != holds:
        what = f"has {found.rows:,} rows of other embeddings"
        if found.edition:
            what = f"was updated after its build, and has {found.rows:,} rows"
    if what is not None:
        raise Mismatch(f"{table.place} {what}; {DROP}")
    if complete:
        return holds.rows
    last = sql.SQL("SELECT coalesce(max({}) + 1, 0) FROM {}")
    with table.connected() as connection:
        query = last.format(sql.Identifier(KEY), table.identifier)
        return int(connection.execute(query).fetchone()[0])


def _create(table: PostgresTable, holds: TableFacts, texts: pa.Table | None) -> None:
    from psycopg import sql

    if texts is not None:
        check_texts(texts)
    columns = [
        sql.SQL("{} bigint PRIMARY KEY").format(sql.Identifier(KEY)),
        sql.SQL("{} vector({}) NOT NULL").format(sql.Identifier(VECTOR), sql.Literal(holds.dim)),
        *_definitions(holds),
    ]
    query = sql.SQL("CREATE TABLE {} ({})").format(table.identifier, sql.SQL(", ").join(columns))
    with table.connected() as connection, connection.transaction():
        connection.execute(query)
        table.describe(holds, complete=False)


def _definitions(holds: TableFacts) -> list[Any]:
    """Return the definitions of the columns besides key and vector."""
    from psycopg import sql

    return [
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind))
        for name, kind in zip(holds.texts, holds.kinds, strict=True)
    ]


def check_texts(texts: pa.Table) -> None:
    """Raise BadInput for text that PostgreSQL cannot store."""
    for name in texts.column_names:
        column = texts[name]
        if pa.types.is_string(column.type) and pc.any(pc.match_substring(column, "\0")).as_py():
            raise BadInput(
                f"a value of {name} has a NUL character, which PostgreSQL cannot store; remove it, "
                "or use another backend"
            )


def _load(
    table: PostgresTable, holds: TableFacts, blocks: Blocks, texts: pa.Table | None, there: int
) -> None:
    """Load all rows after the first `there`."""
    for first, block in _valid_blocks(table, holds, blocks):
        start = max(first, there)
        if start < first + len(block):
            keys = np.arange(start, first + len(block))
            some = None if texts is None else texts.slice(start, len(keys))
            copy_rows(table, holds, keys, block[start - first :], some)


def _valid_blocks(
    table: PostgresTable, holds: TableFacts, blocks: Blocks
) -> Iterator[tuple[int, Vectors]]:
    """Yield prepared blocks, each with its first row. Drop the table if one is invalid."""
    try:
        yield from checked_blocks(blocks, holds.metric)
    except RetrError:
        table.drop()
        raise


def copy_rows(
    table: PostgresTable, holds: TableFacts, keys: Rows, vectors: Vectors, texts: pa.Table | None
) -> None:
    """Load rows by COPY, all of them or none."""
    columns = [KEY, VECTOR, *(holds.texts if texts is not None else ())]
    rows = zip(keys.tolist(), vectors, *_values(texts, holds), strict=True)
    _copy(table, table.identifier, columns, ["int8", "vector", *holds.kinds], rows)


def _copy(
    table: PostgresTable,
    into: Any,
    columns: Sequence[str],
    kinds: Sequence[str],
    rows: Iterator[tuple[Any, ...]],
) -> None:
    from psycopg import sql

    query = sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT BINARY)").format(
        into, sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with (
        table.connected() as connection,
        connection.cursor() as cursor,
        cursor.copy(query) as copy,
    ):
        copy.set_types(kinds)
        for row in rows:
            copy.write_row(row)


def _values(texts: pa.Table | None, holds: TableFacts) -> list[list[Any]]:
    """Return the values of each of `TableFacts.texts`."""
    if texts is None:
        return []
    try:
        return [texts[name].to_pylist() for name in holds.texts]
    except (ValueError, OverflowError) as problem:
        raise BadInput(f"a time cannot be stored ({problem}); correct it, or remove it") from None


def _complete(table: PostgresTable, holds: TableFacts) -> None:
    """Build the index, and mark the table as complete, in one transaction."""
    from psycopg import sql

    with table.connected() as connection, connection.transaction():
        if holds.index_type == "HNSW":
            query = sql.SQL(
                "CREATE INDEX ON {} USING hnsw ({} {}) WITH (m = {}, ef_construction = {})"
            ).format(
                table.identifier,
                sql.Identifier(VECTOR),
                sql.SQL(OPERATORS[Metric(holds.metric)][1]),
                sql.Literal(holds.build["m"]),
                sql.Literal(holds.build["ef_construction"]),
            )
            connection.execute(query)
        table.describe(holds, complete=True)
    with table.connected() as connection:
        connection.execute(sql.SQL("ANALYZE {}").format(table.identifier))


def change(
    table: PostgresTable,
    before: TableFacts,
    after: TableFacts,
    texts: pa.Table,
    keys: Rows,
    added: Vectors,
) -> None:
    """Begin a transaction, and change the table to these rows. The caller commits.

    before: as known to the caller; the table may have had another update since, which was not
    published. texts, keys: of all rows; the added ones have the keys from `before.end` on. Rolls
    back if it fails.
    """
    check_texts(texts)
    with table.connected() as connection:
        connection.execute("BEGIN")
        try:
            _change(table, connection, before, after, texts, keys, added)
        except BaseException:
            if not connection.closed:
                connection.execute("ROLLBACK")
            raise


def _change(
    table: PostgresTable,
    connection: Any,
    before: TableFacts,
    after: TableFacts,
    texts: pa.Table,
    keys: Rows,
    added: Vectors,
) -> None:
    from psycopg import sql

    names = {"t": table.identifier, "n": sql.Identifier(STAGED), "key": sql.Identifier(KEY)}
    connection.execute(sql.SQL("LOCK TABLE {t} IN SHARE ROW EXCLUSIVE MODE NOWAIT").format(**names))
    found = table.facts()
    for name, kind in ({} if found is None else found[0].columns).items():
        if kind != after.columns.get(name):
            drop = sql.SQL("ALTER TABLE {} DROP COLUMN IF EXISTS {}")
            connection.execute(drop.format(table.identifier, sql.Identifier(name)))
    add = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {}")
    for definition in _definitions(after):
        connection.execute(add.format(table.identifier, definition))
    columns = [sql.SQL("{} bigint PRIMARY KEY").format(names["key"]), *_definitions(after)]
    stage = sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP")
    connection.execute(stage.format(names["n"], sql.SQL(", ").join(columns)))
    rows = zip(keys.tolist(), *_values(texts, after), strict=True)
    _copy(table, names["n"], [KEY, *after.texts], ["int8", *after.kinds], rows)
    gone = "DELETE FROM {t} AS t WHERE NOT EXISTS (SELECT FROM {n} AS n WHERE n.{key} = t.{key})"
    connection.execute(sql.SQL(gone).format(**names))
    # Keys from `before.end` on are of an update that was never published.
    left = sql.SQL("DELETE FROM {t} WHERE {key} >= {end}")
    connection.execute(left.format(**names, end=sql.Literal(before.end)))
    same = sql.SQL("UPDATE {t} AS t SET {set} FROM {n} AS n WHERE n.{key} = t.{key} AND {changed}")
    connection.execute(same.format(**names, **_assignments(after)))
    new = np.flatnonzero(keys >= before.end)
    copy_rows(table, after, keys[new], added, texts.take(new))
    table.check_count(after)  # an update that was never published may have deleted rows that stay
    table.describe(after, complete=True)


def _assignments(holds: TableFacts) -> dict[str, Any]:
    """Return SQL that copies the columns of a staged row n, and a condition that one differs."""
    from psycopg import sql

    names = [sql.Identifier(name) for name in holds.texts]
    each = [sql.SQL("{0} = n.{0}").format(name) for name in names]
    differs = [sql.SQL("t.{0} IS DISTINCT FROM n.{0}").format(name) for name in names]
    return {
        "set": sql.SQL(", ").join(each),
        "changed": sql.SQL("({})").format(sql.SQL(" OR ").join(differs)),
    }
