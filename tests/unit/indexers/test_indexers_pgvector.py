"""The backend pgvector: what is stored, filters as SQL, resuming, what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexers.exact import Exact
from indexers.pgvector import Pgvector, filling
from indexers.pgvector import index as pgvector_index
from indexers.pgvector.facts import FACTS, TableFacts, stored_columns
from indexers.pgvector.index import PgvectorIndex
from retrieval.contracts import Metric, Querying, Storing, Upserting
from retrieval.errors import BadData, BadInput, Busy, Mismatch, UnknownName
from retrieval.index.build import build_index
from retrieval.index.folder import INDEX, open_index
from retrieval.index.searching import Searcher
from retrieval.inspection import verify
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.where.selection import select_rows
from tests.made import OTHER, embeddings
from tests.pgvector_rows import ATTACK, DIM, ODD, TableItems, items, vectors
from tests.postgres import TestServer

pytestmark = pytest.mark.usefixtures("database")


def test_the_contracts() -> None:
    index = Pgvector().build(vectors(5))
    assert isinstance(Pgvector(), Storing)
    assert isinstance(index, Querying) and isinstance(index, Upserting)


def test_ids_labels_and_vectors_are_stored_as_they_are(
    tmp_path: Path, postgres: TestServer, database: str
) -> None:
    labels: list[str | None] = [[*ODD, None][i % 10] for i in range(90)]
    data = vectors(90)
    folder = tmp_path / "index"
    made = embeddings(tmp_path / "a", data, labels=labels)
    build_index([made], "pgvector", folder, options={"table": "photos"})
    stored = "SELECT row, id, label, path, vector::text FROM photos ORDER BY row"
    found = postgres.run(stored, database)
    assert [each[:4] for each in found] == [(i, f"a{i}", labels[i], None) for i in range(90)]
    np.testing.assert_allclose([json.loads(each[4]) for each in found], data, rtol=1e-6)
    searcher = Searcher.open(folder)
    true = Exact(Metric.EUCLIDEAN, "cpu").build(data)
    for label in ODD[:-2]:
        mask = np.array([each == label for each in labels])
        hits = searcher.hits(vectors(3, 2), 4, f"label={label}")
        assert hits.rows.tolist() == true.search(vectors(3, 2), 4, mask).rows.tolist(), label


@pytest.mark.parametrize("index_type", ["HNSW", "EXACT"])
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT])
def test_answers_are_those_of_exact(index_type: str, metric: Metric) -> None:
    data = vectors(400)
    data[200:230] = data[:30]
    data[250] = 0
    index = Pgvector(metric, index_type, ef=400).build(data)
    true = Exact(metric, "cpu").build(data)
    queries = vectors(9, 2)
    for mask in (None, np.arange(400) % 7 == 0, np.arange(400) % 7 != 0, np.arange(400) == 5):
        for k in (1, 10, 399, 450):
            found, expected = index.search(queries, k, mask), true.search(queries, k, mask)
            np.testing.assert_allclose(found.distances, expected.distances, atol=1e-5)
            near = np.isclose(found.distances, expected.distances, atol=1e-5)
            assert (found.rows == expected.rows)[near].mean() > 0.95  # but for equal distances


def test_a_walk_of_the_graph_is_what_hnsw_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recall depends on `ef`, so the graph is walked, and is high by default."""
    data = np.random.default_rng(0).standard_normal((4000, 32), dtype=np.float32)
    queries = np.random.default_rng(1).standard_normal((100, 32), dtype=np.float32)
    index = Pgvector(Metric.EUCLIDEAN, m=4, ef_construction=10).build(data)
    true = Exact(Metric.EUCLIDEAN, "cpu").build(data).search(queries, 10).rows
    recalls = []
    for ef in (10, 128, 1000):
        Pgvector(Metric.EUCLIDEAN, m=4, ef_construction=10, ef=ef).apply(index)
        recalls.append(np.mean(index.search(queries, 10).rows[:, :, None] == true[:, None]) * 10)
    assert recalls[0] < recalls[1] - 0.1 < recalls[2] - 0.1
    monkeypatch.setattr(pgvector_index, "QUERIES_PER_REQUEST", 7)
    again = index.search(queries, 10).rows
    assert np.mean(again[:, :, None] == true[:, None]) * 10 == pytest.approx(recalls[2])


@pytest.mark.parametrize(
    "text", [ATTACK, '"; DROP TABLE victim; --', "$$); DROP TABLE victim; -- %s %% %(a)s"]
)
def test_nothing_of_the_input_becomes_sql(
    text: str, tmp_path: Path, postgres: TestServer, database: str
) -> None:
    postgres.run("CREATE TABLE victim (a int)", database)
    quoted = text.replace('"', '""')
    postgres.run(f'CREATE SCHEMA "{quoted}"', database)
    columns = pa.table({text: pa.array([text] * 20, pa.string())})
    made = items(20, columns, [text] * 20)
    texts = made.table.set_column(0, "id", pa.array([f"{text}{i}" for i in range(20)]))
    made = TableItems(texts.set_column(2, "path", pa.array([text] * 20)), columns, made.data)
    index = Pgvector(schema=text, table=text).store(made)
    index.save(tmp_path)
    index = Pgvector(schema=text, table=text).load(tmp_path)
    selected = select_rows(texts, f"label={text}")
    assert selected.condition is not None
    hits = index.search_condition(vectors(1), 3, selected.mask, selected.condition)
    assert (hits.rows >= 0).all()
    found = postgres.run(f'SELECT id, label, path, "{quoted}" FROM "{quoted}"."{quoted}"', database)
    assert sorted(found) == sorted((f"{text}{i}", text, text, text) for i in range(20))
    index.upsert(texts, np.arange(20), np.empty((0, DIM), np.float32)).save(tmp_path)
    assert postgres.run("SELECT count(*) FROM victim", database) == [(0,)]


def test_a_killed_build_continues_after_the_last_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: TestServer, database: str
) -> None:
    folder = tmp_path / "index"
    made = embeddings(tmp_path / "a", vectors(200), shard_rows=40)
    copy_rows, loaded = filling.copy_rows, []

    def copied(table: Any, holds: Any, keys: Any, *others: Any) -> None:
        if len(loaded) == 3:
            raise KeyboardInterrupt
        copy_rows(table, holds, keys, *others)
        loaded.append(keys.tolist())

    monkeypatch.setattr(filling, "copy_rows", copied)
    with pytest.raises(KeyboardInterrupt):
        build_index([made], "pgvector", folder)
    assert not (folder / INDEX).exists()
    ((name, comment),) = postgres.run(
        "SELECT relname, obj_description(oid, 'pg_class') FROM pg_class "
        "WHERE relname ~ '^retr_.{16}$'",
        database,
    )
    assert comment.startswith("retr-pgvector 1 unfinished {")
    assert postgres.run(f"SELECT count(*) FROM {name}", database) == [(120,)]
    before, loaded = loaded, []
    facts = build_index([made], "pgvector", folder)
    assert facts.details["resumed_at"] == 120
    assert [row for rows in (*before, *loaded) for row in rows] == [*range(200)]
    assert verify(folder).problems == ()
    true = Exact(Metric.EUCLIDEAN, "cpu").build(vectors(200)).search(vectors(4, 2), 20)
    assert np.array_equal(open_index(folder).index.search(vectors(4, 2), 20).rows, true.rows)
    loaded = []
    build_index([made], "pgvector", tmp_path / "again")
    assert loaded == []  # the table was complete


def test_an_index_that_could_not_be_built_is_not_visible(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    some: Embeddings,
    postgres: TestServer,
    database: str,
) -> None:
    """The index and the mark of a complete table appear together, or not at all."""
    describe = filling.PostgresTable.describe

    def fail(table: Any, holds: TableFacts, complete: bool) -> None:
        describe(table, holds, complete)
        if complete:
            raise KeyboardInterrupt

    monkeypatch.setattr(filling.PostgresTable, "describe", fail)
    with pytest.raises(KeyboardInterrupt):
        build_index([some], "pgvector", tmp_path / "index", options={"table": "photos"})
    count = "SELECT count(*) FROM pg_indexes WHERE tablename = 'photos'"
    comment = "SELECT obj_description('photos'::regclass) ~ 'unfinished'"
    assert postgres.run(count, database) == [(1,)]  # of the primary key
    assert postgres.run(comment, database) == [(True,)]


def test_what_a_table_holds_is_checked(
    tmp_path: Path, some: Embeddings, postgres: TestServer, database: str
) -> None:
    options = {"table": "checked"}
    folder = tmp_path / "index"
    build_index([some], "pgvector", folder, options=options)

    def refused(match: str, *sets: Embeddings, metric: Metric | None = None, **more: Any) -> None:
        new = tmp_path / "new"
        with pytest.raises(Mismatch, match=f"table public.checked of .*{match}.*; drop it") as no:
            build_index(sets, "pgvector", new, metric, {**options, **more})
        assert "\n" not in str(no.value)
        assert not new.exists()

    refused("of encoder aaaaaaaa, not cccccccc", embeddings(tmp_path / "b", vectors(200), OTHER))
    wide = np.ones((200, DIM + 1), np.float32)
    refused("has 6 dimensions, not 7", embeddings(tmp_path / "c", wide))
    refused("200 rows of other embeddings", embeddings(tmp_path / "d", vectors(200, 3)))
    refused("is for euclidean distances, not cosine", some, metric=Metric.COSINE)
    refused("options .HNSW ef_construction=64 m=16.", some, m=8)
    postgres.run("DELETE FROM checked WHERE row = 5", database)
    with pytest.raises(BadData, match="has 199 rows, not 200; drop it, and"):
        open_index(folder)
    postgres.run("ALTER TABLE checked RENAME vector TO v", database)
    postgres.run("INSERT INTO checked SELECT 5, v FROM checked LIMIT 1", database)
    with pytest.raises(BadInput, match=r"changed or is gone .*vector.*; build the index again"):
        open_index(folder).index.search(vectors(1), 1)
    postgres.run("COMMENT ON TABLE checked IS 'mine'", database)
    with pytest.raises(Mismatch, match="was not written by this version of retr; drop it"):
        open_index(folder)
    refused("was not written by this version of retr", some)
    postgres.run("DROP TABLE checked", database)
    with pytest.raises(BadInput, match=r"has no table public.checked; build the index again, or"):
        open_index(folder)


def test_two_builds_of_a_table_exclude_each_other(tmp_path: Path, some: Embeddings) -> None:
    holder = Pgvector(table="one").store(items(3)).table
    with holder.locked(), pytest.raises(Busy, match=r"another process builds the table public.one"):
        build_index([some], "pgvector", tmp_path / "index", options={"table": "one"})
    with pytest.raises(Mismatch):  # it is free again
        build_index([some], "pgvector", tmp_path / "index", options={"table": "one"})


def test_a_failed_build_of_bad_vectors_leaves_no_table(postgres: TestServer, database: str) -> None:
    bad = vectors(40)
    bad[30, 1] = np.nan
    with pytest.raises(BadInput, match="row 30 is not finite"):
        Pgvector().build(bad)
    with pytest.raises(BadInput, match="a value of label has a NUL character"):
        Pgvector().store(items(3, None, ["a", "b\0", None]))
    count = "SELECT count(*) FROM pg_class WHERE relname ~ '^retr_'"
    assert postgres.run(count, database) == [(0,)]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"index_type": "hnsw"}, "unknown index_type .*HNSW"),
        ({"m": 1}, "option m is 1"),
        ({"m": 40}, "option ef_construction is 64; give from 80 to 1000"),
        ({"ef": 1001}, "option ef is 1001; give from 1 to 1000"),
        ({"schema": ""}, "option schema is not a name"),
        ({"table": "ü" * 32}, "option table is not a name .* 1 to 63 bytes"),
        ({"metric": Metric.MANHATTAN}, "has no manhattan distance; use the backend exact or ivf"),
    ],
)
def test_options_of_pgvector(options: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        Pgvector(**options)


def test_limits_of_dimensions() -> None:
    wide = np.random.default_rng(0).standard_normal((3, 2001), dtype=np.float32)
    with pytest.raises(BadInput, match="up to 2,000 dimensions with index_type=HNSW, not 2,001"):
        Pgvector().build(wide)
    assert Pgvector(index_type="EXACT").build(wide).search(wide, 1).rows.ravel().tolist() == [
        0,
        1,
        2,
    ]


def test_damaged_facts(tmp_path: Path, some: Embeddings) -> None:
    build_index([some], "pgvector", tmp_path / "i")
    document = json.loads((tmp_path / "i" / FACTS).read_text())
    for key, wrong in (("rows", 0), ("end", 5), ("dim", "6"), ("metric", None)):
        changed = {**document, "holds": {**document["holds"], key: wrong}}
        (tmp_path / FACTS).write_text(json.dumps(changed))
        with pytest.raises(BadData, match=key):
            Pgvector().load(tmp_path)
    assert TableFacts.of_comment("") is None
    assert TableFacts.of_comment("retr-pgvector 1 complete {") is None
    assert TableFacts.of_comment("retr-pgvector 9 complete {}") is None
    assert stored_columns(None) == {}
    with pytest.raises(UnknownName):
        Searcher.open(tmp_path / "i").hits(vectors(1), 1, "label=dog")
    assert isinstance(open_index(tmp_path / "i").index, PgvectorIndex)


def test_threads_share_an_index() -> None:
    index = Pgvector(Metric.EUCLIDEAN).build(vectors(300))
    expected = index.search(vectors(16, 2), 5)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda query: index.search(query[None], 5).rows, vectors(16, 2)))
    assert np.array_equal(np.concatenate(found), expected.rows)
