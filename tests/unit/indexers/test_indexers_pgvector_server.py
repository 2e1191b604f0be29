"""The server of pgvector: addresses, passwords, rights, errors and updates."""

import json
import logging
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexers.exact import Exact
from indexers.pgvector import Pgvector, address, filling
from indexers.pgvector import table as pgvector_table
from indexers.pgvector.address import PostgresAddress
from indexers.pgvector.facts import FACTS
from indexers.pgvector.index import PgvectorIndex
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData, BadInput, RetrError, Unreachable
from retrieval.index.build import build_index
from retrieval.index.folder import open_index
from retrieval.index.update import add_rows, delete_rows
from retrieval.storage.sets.embeddings import Embeddings
from tests.made import embeddings
from tests.pgvector_rows import items, vectors
from tests.postgres import PASSWORD, ROLE, TestServer, start

pytestmark = pytest.mark.usefixtures("database")

GRANTS = (
    f"GRANT CONNECT ON DATABASE {{0}} TO {ROLE}",
    f"CREATE SCHEMA retr AUTHORIZATION {ROLE}",
)
"""The rights of docs/pgvector.md for building."""


def refused(call: Any, match: str, kind: type[RetrError] = BadInput) -> str:
    with pytest.raises(kind, match=match) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "; " in text and PASSWORD not in text, text
    return text


def build(some: Embeddings, folder: Path, **options: Any) -> None:
    build_index([some], "pgvector", folder, options=options)


def test_without_an_address(some: Embeddings, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("DATABASE_URL")
    refused(lambda: build(some, tmp_path / "i"), "requires a database; set DATABASE_URL to postgr")
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://me:s3cret-Word@host/db", "has password; leave out all but host"),
        ("host=h password=s3cret-Word", "has password; leave out"),
        ("host=h options=-cx=y", "has options; leave out"),
        ("host=h hostaddr=10.0.0.1", "has hostaddr; leave out"),
        ("host=h passfile=/etc/x", "has passfile; leave out"),
        ("host='h s3cret-Word", "invalid address of PostgreSQL in url; give it as postgresql://"),
        ("mysql://h/s3cret-Word", "invalid address"),
    ],
)
def test_addresses_of_postgres(url: str, why: str) -> None:
    refused(lambda: Pgvector(url=url), why)


def test_parts_of_an_address() -> None:
    found = PostgresAddress.of("postgresql+psycopg://me@host:5433/photos?sslmode=require")
    assert found.name == "PostgreSQL at host:5433/photos"
    assert found.is_same(PostgresAddress.of("host=host port=5433 dbname=photos user=other"))
    assert not found.is_same(PostgresAddress.of("host=host dbname=photos user=me"))
    assert PostgresAddress.of(found.text) == found


def test_a_database_that_is_down(some: Embeddings, tmp_path: Path, monkeypatch: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/photos")
    text = refused(lambda: build(some, tmp_path / "i"), "does not answer .*; start it", Unreachable)
    assert f"PostgreSQL at 127.0.0.1:{port}/photos" in text
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(pgvector_table, "CONNECT_TIMEOUT_SECONDS", 2)  # libpq's least
        port = silent.getsockname()[1]
        monkeypatch.setenv("DATABASE_URL", f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/photos")
        began = time.monotonic()
        refused(lambda: build(some, tmp_path / "i"), "does not answer .*timeout", Unreachable)
        assert time.monotonic() - began < 30
    assert not (tmp_path / "i").exists()


def test_a_server_that_is_stopped_and_started(tmp_path: Path, monkeypatch: Any) -> None:
    own = start()
    monkeypatch.setenv("DATABASE_URL", own.url("retr_template"))
    index = Pgvector(table="photos").store(items(30))
    hits = index.search(vectors(2), 3)
    own.server.stop()
    refused(lambda: index.search(vectors(2), 3), "does not answer|raised an error")
    refused(lambda: index.search(vectors(2), 3), "does not answer", Unreachable)
    own.server.start()
    assert np.array_equal(index.search(vectors(2), 3).rows, hits.rows)
    own.server.stop()
    shutil.rmtree(own.folder.parent)


def test_wrong_password_user_database_and_extension(
    some: Embeddings, tmp_path: Path, monkeypatch: Any, postgres: TestServer, database: str
) -> None:
    url, folder = postgres.url(database, ROLE), tmp_path / "i"
    for setting, why in (
        (f"{url} password=wrong", "refuses the user or the password .*; correct them in DATABASE"),
        (url, "refuses the user or the password .*PGPASSWORD"),
        (f"host={postgres.folder} dbname=nothing user=postgres", "cannot be opened .*not exist"),
        (f"host={postgres.folder} dbname={database} user=nobody", "cannot be opened .*not exist"),
        (postgres.url("postgres"), "lacks the extension pgvector; run CREATE EXTENSION vector"),
    ):
        monkeypatch.setenv("DATABASE_URL", setting)
        refused(lambda: build(some, folder), why)
        assert not folder.exists()


def test_versions_and_schemas_of_the_extension(
    monkeypatch: Any, postgres: TestServer, database: str
) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(pgvector_table, "MIN_VERSION", (99, 1))
        why = r"has pgvector 0\.\d+\.\d+, and retr needs 99.1; run ALTER EXTENSION vector UPDATE"
        refused(lambda: Pgvector().build(vectors(3)), why)
    with monkeypatch.context() as changed:
        changed.setattr(pgvector_table, "ITERATIVE_SCANS", (99, 0))  # as before pgvector 0.8
        data = vectors(3000)
        index = Pgvector(Metric.EUCLIDEAN, ef=10).build(data)
        mask = np.arange(3000) % 30 == 0
        true = Exact(Metric.EUCLIDEAN, "cpu").build(data).search(vectors(4, 2), 20, mask)
        assert np.array_equal(index.search(vectors(4, 2), 20, mask).rows, true.rows)
    postgres.run("CREATE SCHEMA extensions", database)
    postgres.run("ALTER EXTENSION vector SET SCHEMA extensions", database)
    refused(lambda: Pgvector().build(vectors(3)), "hides pgvector's types .*; add the schema")
    postgres.run(f"ALTER DATABASE {database} SET search_path = public, extensions")
    assert len(Pgvector().build(vectors(3))) == 3


def test_least_privilege_is_enough(
    some: Embeddings, tmp_path: Path, monkeypatch: Any, postgres: TestServer, database: str
) -> None:
    """A role that owns one schema builds and updates; one with USAGE and SELECT searches."""
    monkeypatch.setenv("DATABASE_URL", f"{postgres.url(database, ROLE)} password={PASSWORD}")
    folder = tmp_path / "i"
    refused(lambda: build(some, folder), "denies permission .*schema public.*; docs/pgvector.md")
    refused(lambda: build(some, folder, schema="retr"), "has no schema retr; create it, or set")
    for grant in GRANTS:
        postgres.run(grant.format(database), database)
    build(some, folder, schema="retr", table="photos")
    delete_rows(folder, "id=a3")
    assert len(open_index(folder).index) == 199
    monkeypatch.setenv("DATABASE_URL", postgres.url(database))
    other = tmp_path / "other"
    build(some, other, table="owned")
    monkeypatch.setenv("DATABASE_URL", f"{postgres.url(database, ROLE)} password={PASSWORD}")
    refused(lambda: open_index(other), "denies permission .*table owned.*; docs/pgvector.md")
    postgres.run(f"GRANT SELECT ON owned TO {ROLE}", database)
    assert len(open_index(other).index.search(vectors(2), 3).rows) == 2
    refused(lambda: delete_rows(other, "id=a3"), "denies permission")
    assert len(open_index(other).index) == 200


def test_a_read_only_database(
    some: Embeddings, tmp_path: Path, postgres: TestServer, database: str
) -> None:
    build(some, tmp_path / "before")
    postgres.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    folder = tmp_path / "i"
    refused(lambda: build(some, folder, m=8), "is read-only .*; name the primary server in DATAB")
    assert not folder.exists()
    assert len(open_index(tmp_path / "before").index.search(vectors(2), 3).rows) == 2


@pytest.mark.parametrize("step", ["copy_rows", "_complete"])
def test_a_full_disk_leaves_no_index(
    step: str, some: Embeddings, tmp_path: Path, monkeypatch: Any
) -> None:
    from psycopg import errors

    def full(table: Any, *others: Any) -> None:
        with table.connected():
            raise errors.DiskFull("could not extend file\nHINT: check free space")

    with monkeypatch.context() as changed:
        changed.setattr(filling, step, full)
        text = refused(lambda: build(some, tmp_path / "i"), "is out of disk space", RetrError)
    assert "HINT" not in text
    assert not (tmp_path / "i").exists()
    build(some, tmp_path / "i")
    assert len(open_index(tmp_path / "i").index) == 200


def test_a_statement_timeout(
    some: Embeddings, tmp_path: Path, monkeypatch: Any, postgres: TestServer, database: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{postgres.url(database)} options='-c statement_timeout=1'")
    data = np.random.default_rng(0).standard_normal((4000, 128), dtype=np.float32)
    refused(lambda: Pgvector().build(data), "canceled the query .*; raise the server's statement_t")


def test_passwords_are_in_no_file_message_or_log(
    some: Embeddings,
    tmp_path: Path,
    monkeypatch: Any,
    caplog: pytest.LogCaptureFixture,
    postgres: TestServer,
    database: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    for grant in GRANTS:
        postgres.run(grant.format(database), database)
    url = postgres.url(database, ROLE)
    monkeypatch.setenv("DATABASE_URL", f"{url} password={PASSWORD}")
    build(some, tmp_path / "i", schema="retr")
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    build(some, tmp_path / "j", schema="retr", url=url)
    written = [file.read_bytes() for each in "ij" for file in (tmp_path / each).iterdir()]
    assert len(written) > 6 and not any(PASSWORD.encode() in each for each in written)
    assert PASSWORD not in caplog.text
    comments = "SELECT string_agg(description, '') FROM pg_description WHERE description ~ '^retr'"
    assert PASSWORD not in postgres.run(comments, database)[0][0]


@pytest.mark.parametrize("option", [True, False])
def test_a_database_that_an_index_folder_names_gets_no_password(
    option: bool,
    some: Embeddings,
    tmp_path: Path,
    monkeypatch: Any,
    postgres: TestServer,
    database: str,
) -> None:
    """Be it named in pgvector.json, or among the options in index.json."""
    for grant in GRANTS:
        postgres.run(grant.format(database), database)
    url = postgres.url(database, ROLE)
    monkeypatch.setenv("DATABASE_URL", f"{url} password={PASSWORD}")
    build(some, tmp_path / "i", schema="retr", **({"url": url} if option else {}))
    assert len(open_index(tmp_path / "i").index) == 200
    elsewhere = f"postgresql://me:{PASSWORD}@other.example/photos"
    monkeypatch.setenv("DATABASE_URL", elsewhere)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    why = "which the index folder names, requires a password; set DATABASE_URL to that database"
    refused(lambda: open_index(tmp_path / "i"), why)
    monkeypatch.setenv("DATABASE_URL", url)
    assert len(open_index(tmp_path / "i").index) == 200
    settings = PostgresAddress.of(url).settings(False)
    monkeypatch.setenv("DATABASE_URL", elsewhere)
    assert (
        PASSWORD not in str(PostgresAddress.of(url).settings(False)) and "passfile" not in settings
    )


def near(index: Any, data: Vectors) -> None:
    true = Exact(Metric.EUCLIDEAN, "cpu").build(data)
    mask = np.arange(len(data)) % 3 == 0
    for among in (None, mask):
        expected = true.search(vectors(5, 9), 8, among)
        assert np.array_equal(index.search(vectors(5, 9), 8, among).rows, expected.rows)


def test_rows_are_added_and_deleted_in_the_table(
    some: Embeddings, tmp_path: Path, postgres: TestServer, database: str
) -> None:
    folder = tmp_path / "i"
    build(some, folder, table="photos")
    delete_rows(folder, "id=a3,a199")
    more = vectors(50, 5)
    add_rows(folder, [embeddings(tmp_path / "b", more, labels=["new"] * 50)])
    data = np.concatenate([np.delete(vectors(200), [3, 199], axis=0), more])
    opened = open_index(folder)
    near(opened.index, data)
    stored = dict(postgres.run("SELECT id, label FROM photos", database))
    assert stored == dict(zip(*(opened.rows[n].to_pylist() for n in ("id", "label")), strict=True))
    keys = [row for (row,) in postgres.run("SELECT row FROM photos ORDER BY row", database)]
    assert keys == [*(i for i in range(199) if i != 3), *range(200, 250)]
    delete_rows(folder, "label=even")
    near(
        open_index(folder).index,
        data[[label != "even" for label in opened.rows["label"].to_pylist()]],
    )


def test_an_update_changes_labels_and_columns(
    tmp_path: Path, postgres: TestServer, database: str
) -> None:
    first = pa.table({"size": pa.array([1, 2, 3]), "kept": pa.array(["x", None, "z"])})
    before = items(3, first, ["a", "b", None])
    index = Pgvector(table="photos").store(before)
    columns = {
        "id": before.table["id"].take([2, 0]),
        "label": pa.array(["c", "a"]),
        "path": pa.array([None, "p"], pa.string()),
        "size": pa.array(["big", None]),  # now text
        "new": pa.array([True, None]),
    }
    changed = index.upsert(pa.table(columns), np.array([2, 0]), np.empty((0, 6), np.float32))
    query = "SELECT * FROM photos ORDER BY row"
    changed.save(tmp_path)
    postgres.run("ALTER TABLE photos DROP COLUMN vector", database)
    assert postgres.run(query, database) == [
        (0, "id0", "a", "p", None, None),
        (2, "id2", "c", None, "big", True),
    ]
    assert changed.holds.columns == {"size": "text", "new": "bool"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_update_that_fails_leaves_the_old_index(
    when: str,
    some: Embeddings,
    tmp_path: Path,
    monkeypatch: Any,
    postgres: TestServer,
    database: str,
) -> None:
    """Before the commit, nothing has changed. After it, the folder finds the rows that are left."""
    folder = tmp_path / "i"
    build(some, folder, table="photos")
    old = open_index(folder)
    more = embeddings(tmp_path / "b", vectors(50, 5))

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        if when == "before":
            changed.setattr(filling.PostgresTable, "describe", fail)
        else:
            changed.setattr("retrieval.index.build.publish", fail)
        with pytest.raises(KeyboardInterrupt):
            add_rows(folder, [more])
        with pytest.raises(KeyboardInterrupt):
            delete_rows(folder, "id=a3")
    rows = 200 if when == "before" else 199
    assert postgres.run("SELECT count(*) FROM photos", database) == [(rows,)]
    again = open_index(folder)
    assert len(again.index) == len(old.index) == 200
    mask = np.arange(200) != 3
    true = Exact(Metric.EUCLIDEAN, "cpu").build(vectors(200)).search(vectors(5, 9), 8, mask)
    assert np.array_equal(again.index.search(vectors(5, 9), 8, mask).rows, true.rows)
    if when == "after":
        refused(lambda: add_rows(folder, [more]), "has 249 rows, not 250; drop it", BadData)
    else:
        add_rows(folder, [more])
        near(open_index(folder).index, np.concatenate([vectors(200), vectors(50, 5)]))
    delete_rows(folder, "id=a3")  # the same update again is complete
    data = np.delete(vectors(200), 3, axis=0)
    if when == "before":
        data = np.concatenate([data, vectors(50, 5)])
    near(open_index(folder).index, data)


def test_an_update_that_loses_its_connection_is_not_published(
    some: Embeddings, tmp_path: Path, monkeypatch: Any, postgres: TestServer, database: str
) -> None:
    folder = tmp_path / "i"
    build(some, folder)
    upsert = PgvectorIndex.upsert

    def lost(*given: Any) -> PgvectorIndex:
        index = upsert(*given)
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='retr'"
        assert (True,) in postgres.run(end, database)
        with pytest.raises(BadInput):
            index.search(vectors(1), 1)
        return index

    with monkeypatch.context() as changed:
        changed.setattr(PgvectorIndex, "upsert", lost)
        refused(lambda: delete_rows(folder, "id=a3"), "is as before: the connection was lost")
    near(open_index(folder).index, vectors(200))


def test_absent_psycopg_is_named(monkeypatch: Any, some: Embeddings, tmp_path: Path) -> None:
    there = address.find_spec
    lacks = lambda name, *more: None if name == "psycopg" else there(name, *more)  # noqa: E731
    monkeypatch.setattr(address, "find_spec", lacks)
    refused(
        lambda: build(some, tmp_path / "i"), r"requires psycopg; pip install 'retr\[pgvector\]'"
    )


def test_the_address_of_a_folder_is_read_from_its_file(some: Embeddings, tmp_path: Path) -> None:
    build(some, tmp_path / "i")
    document = json.loads((tmp_path / "i" / FACTS).read_text())
    document["url"] = "host=h password=x"
    (tmp_path / FACTS).write_text(json.dumps(document))
    refused(lambda: Pgvector().load(tmp_path), "the address of PostgreSQL has password")
