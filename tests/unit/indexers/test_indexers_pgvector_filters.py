"""Filters of pgvector as SQL, compared with their evaluation by retr."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexers.exact import Exact
from indexers.pgvector import Pgvector
from indexers.pgvector.conditions import sql_of
from retrieval.contracts import Metric
from retrieval.errors import BadInput
from retrieval.index.row_tables import RowColumns, RowTables
from retrieval.where.selection import select_rows
from tests.pgvector_rows import ATTACK, ODD, items, vectors

pytestmark = pytest.mark.usefixtures("database")


DAY = datetime(2024, 5, 1, 12)


def odd_columns(rows: int) -> pa.Table:
    """Return columns of all types, with nulls, odd values and hostile names."""
    draw = random.Random(0)

    def some(values: list[Any]) -> list[Any]:
        return [draw.choice([*values, None]) for _ in range(rows)]

    days = [DAY + timedelta(hours=10 * i) for i in range(20)]
    zoned = [each.replace(tzinfo=UTC) for each in days]
    return pa.table(
        {
            "width": pa.array(some([0, 1, -5, 1000, 2**53 + 1, 2**63 - 1]), pa.int64()),
            "iso": pa.array(some([1.5, -0.0, 3.0, 1e300, 0.1]), pa.float64()),
            "camera": pa.array(some(["Pixel 8", "pixel 8", "Ü", "U\u0308", *ODD]), pa.string()),
            "flash": pa.array(some([True, False]), pa.bool_()),
            "taken": pa.array(some(days), pa.timestamp("ms")),
            "seen": pa.array(some(zoned), pa.timestamp("ms", "UTC")),
            'x"y': pa.array(some([1, 2]), pa.int64()),
            "100%s": pa.array(some([1, 2]), pa.int64()),
            ATTACK: pa.array(some([1, 2]), pa.int64()),
            "row": pa.array(some([1, 2]), pa.int64()),
            "CTID": pa.array(some([1, 2]), pa.int64()),
            "n" * 64: pa.array(some([1, 2]), pa.int64()),
        }
    )  # fmt: skip


ATOMS = [
    "width > 0", "width >= 1000", "width < 1.5", "width != 1", "width = 0,1",
    "width between -5 and 1",
    "width is null", "width = 9007199254740993", "width > 9223372036854775806", "width < 1e300",
    "iso = 0", "iso > 0.1", "iso <= 3", "iso != 1.5", "iso < 9007199254740993",
    "camera = 'pixel 8'", "camera != 'Pixel 8'", "camera = Ü", "camera like 'P%'",
    "camera like '%l\n%'", "camera like '_wo%'", "camera like '%'", "camera like '100\\%'",
    "camera ilike 'PIX%'", "camera < 'b'", "camera >= 'Ü'", "camera is null",
    'camera = \'say "cat"\'',
    "flash = true", "flash != true", "flash = false", "taken = 2024-05-03", "taken > 2024-05-03",
    "taken <= 2024-05-03", "taken < 2024-05-03T14:00", "taken >= 2024-05", "taken != 2024-05-03",
    "taken between 2024-05-02 and 2024-05-04", "seen = 2024-05-03", "seen <= 2024-05-03",
    "seen > 2024-05-03", "label = cat", "label != cat", "label is null", "id = id3", "id > id5",
    "width > x", '"x""y" = 1', '"100%s" = 2', "row = 1", "width = iso",
]  # fmt: skip


def conditions(number: int) -> list[str]:
    draw = random.Random(1)

    def one(depth: int) -> str:
        if depth == 0 or draw.random() < 0.3:
            return draw.choice(ATOMS)
        word = draw.choice(["and", "or", "not"])
        if word == "not":
            return f"not ({one(depth - 1)})"
        return f"({one(depth - 1)}) {word} ({one(depth - 1)})"

    return [*ATOMS, *(one(3) for _ in range(number))]


def test_filters_as_sql_are_those_evaluated_here(tmp_path: Path) -> None:
    columns = odd_columns(300)
    labels = [["cat", "dog", None, *ODD][i % 12] for i in range(300)]
    made = items(300, columns, labels)
    index = Pgvector(Metric.EUCLIDEAN, "EXACT").store(made)
    assert set(columns.column_names) - set(index.holds.columns) == {"row", "CTID", "n" * 64}
    RowTables(made.table, columns).write(tmp_path)
    further = RowColumns.of(tmp_path, 300, True)
    kinds = dict(zip(index.holds.texts, index.holds.kinds, strict=True))
    from psycopg import sql

    query = sql.SQL("SELECT row FROM {} WHERE ").format(index.table.identifier)
    translated = tried = 0
    true = Exact(Metric.EUCLIDEAN, "cpu").build(made.data)
    for text in conditions(300):
        try:
            selected = select_rows(made.table, text, further)
        except BadInput:
            continue  # not a filter of these columns
        tried += 1
        assert selected.condition is not None
        found = sql_of(selected.condition, kinds)
        if found is not None:
            translated += 1
            with index.table.connected() as connection:
                rows = connection.execute(query + found.sql, found.values).fetchall()
            assert sorted(row for (row,) in rows) == np.flatnonzero(selected.mask).tolist(), text
        hits = index.search_condition(vectors(2, 2), 5, selected.mask, selected.condition)
        expected = true.search(vectors(2, 2), 5, selected.mask)
        assert hits.rows.tolist() == expected.rows.tolist(), text
    assert tried > 250 and translated > 0.5 * tried
