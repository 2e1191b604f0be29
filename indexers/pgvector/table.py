"""A table of PostgreSQL: its connection, its errors, and the facts in its comment."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from threading import RLock
from typing import Any

from indexers.pgvector.address import (
    CONNECT_TIMEOUT_SECONDS,
    PASSWORD,
    URL,
    PostgresAddress,
    library,
    without_secrets,
)
from indexers.pgvector.facts import REMEDY, TableFacts
from retrieval.errors import BadData, BadInput, Busy, Mismatch, RetrError, Unreachable

MIN_VERSION = (0, 5)  # the first with HNSW
ITERATIVE_SCANS = (0, 8)  # first version of pgvector whose filtered scans go on until k rows match
RIGHTS = "docs/pgvector.md lists the rights that retr needs"
DROP = "drop it, or name another with --set table="


class PostgresTable:
    """A table, which may not exist yet, and the connection to its database.

    trusted: whether the user named the database, and not only an index folder.
    """

    def __init__(self, address: PostgresAddress, trusted: bool, schema: str, name: str) -> None:
        self.address = address
        self.trusted = trusted
        self.schema = schema
        self.name = name
        self.iterative = False
        self._lock = RLock()
        self._open: list[Any] = []
        self.close = weakref.finalize(self, _close, self._open)
        """Close the connection, which ends an unfinished transaction."""

    @property
    def place(self) -> str:
        """Schema, table and database in messages."""
        return f"the table {self.schema}.{self.name} of {self.address.name}"

    @property
    def identifier(self) -> Any:
        """The quoted name of the table, for SQL."""
        library()
        from psycopg import sql

        return sql.Identifier(self.schema, self.name)

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Yield the connection to one thread at a time, and raise its errors in one line.

        A connection that was lost is opened again by the next call.
        """
        psycopg = library()
        with self._lock:
            try:
                if self._open and self._open[0].closed:
                    self._open.clear()
                if not self._open:
                    self._open.append(self._connect())
                yield self._open[0]
            except psycopg.Error as problem:
                raise self._error_of(problem) from None

    def _connect(self) -> Any:
        psycopg = library()
        from pgvector.psycopg import register_vector

        settings = self.address.settings(self.trusted)
        settings.setdefault("connect_timeout", CONNECT_TIMEOUT_SECONDS)
        settings |= {"application_name": "retr", "client_encoding": "UTF8"}
        connection = psycopg.connect(**settings, autocommit=True)
        try:
            if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
                raise BadInput(
                    f"{self.address.name} stores text in {encoding}; use a database in UTF8"
                )
            found = connection.execute(
                "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
            ).fetchone()
            if found is None:
                raise BadInput(
                    f"{self.address.name} lacks the extension pgvector; run CREATE EXTENSION "
                    "vector there, as a superuser"
                )
            version = tuple(int(part) for part in found[0].split(".")[:2])
            if version < MIN_VERSION:
                raise BadInput(
                    f"{self.address.name} has pgvector {found[0]}, and retr needs "
                    f"{'.'.join(map(str, MIN_VERSION))}; run ALTER EXTENSION vector UPDATE there"
                )
            try:
                register_vector(connection)
            except psycopg.ProgrammingError:
                raise BadInput(
                    f"{self.address.name} hides pgvector's types from this role; add the schema "
                    "of the extension to its search_path"
                ) from None
            self.iterative = version >= ITERATIVE_SCANS
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from building this table. Raises Busy."""
        digest = sha256(f"{self.schema}.{self.name}".encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        with self.connected() as connection:
            if not connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone()[0]:
                raise Busy(f"another process builds {self.place}; wait for it")
        try:
            yield
        finally:
            with suppress(RetrError), self.connected() as connection:
                connection.execute("SELECT pg_advisory_unlock(%s)", [key])

    def facts(self) -> tuple[TableFacts, bool] | None:
        """Return (facts, is complete) of the table; None if it does not exist.

        Raises Mismatch if this version of retr did not write it.
        """
        with self.connected() as connection:
            found = connection.execute(
                "SELECT obj_description(c.oid, 'pg_class') FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = %s AND c.relname = %s",
                [self.schema, self.name],
            ).fetchone()
        if found is None:
            return None
        read = TableFacts.of_comment(found[0] or "")
        if read is None:
            raise Mismatch(f"{self.place} was not written by this version of retr; {DROP}")
        return read

    def check_count(self, holds: TableFacts) -> None:
        """Raise BadData if the table has another number of rows than it should."""
        from psycopg import sql

        with self.connected() as connection:
            query = sql.SQL("SELECT count(*) FROM {}").format(self.identifier)
            (count,) = connection.execute(query).fetchone()
        if count != holds.rows:
            raise BadData(
                f"{self.place} has {count:,} rows, not {holds.rows:,}; drop it, and {REMEDY}"
            )

    def describe(self, holds: TableFacts, complete: bool) -> None:
        """Write the facts into the table's comment."""
        from psycopg import sql

        comment = sql.SQL("COMMENT ON TABLE {} IS {}").format(
            self.identifier, sql.Literal(holds.comment(complete))
        )
        with self.connected() as connection:
            connection.execute(comment)

    def commit(self) -> None:
        """Commit the open transaction. Raises BadInput if it ended before."""
        from psycopg.pq import TransactionStatus

        with self.connected() as connection:
            # A new connection has no transaction, and the server turns the commit of one with an
            # error into a rollback.
            if connection.info.transaction_status is not TransactionStatus.INTRANS:
                raise BadInput(
                    f"{self.place} is as before: the connection was lost during the update; run "
                    "it again"
                )
            connection.commit()

    def drop(self) -> None:
        """Drop the table, unless the server does not answer."""
        from psycopg import sql

        try:
            with self.connected() as connection:
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self.identifier))
        except RetrError:
            return  # the table stays; its comment marks it as unfinished or temporary

    def _error_of(self, problem: Any) -> RetrError:
        """Return the error of psycopg as one of retr."""
        from psycopg import errors

        where, reason = self.address.name, _reason(problem)
        match problem:
            case errors.DiskFull():
                return RetrError(f"{where} is out of disk space ({reason}); free some, run again")
            case errors.ReadOnlySqlTransaction():
                return BadInput(
                    f"{where} is read-only ({reason}); name the primary server in {URL}"
                )
            case errors.InsufficientPrivilege():
                return BadInput(f"{where} denies permission ({reason}); {RIGHTS}")
            case errors.InvalidSchemaName():
                return BadInput(
                    f"{where} has no schema {self.schema}; create it, or set another with "
                    "--set schema="
                )
            case errors.UndefinedTable() | errors.UndefinedColumn() | errors.UndefinedObject():
                return BadInput(f"{self.place} has changed or is gone ({reason}); {REMEDY}")
            case errors.QueryCanceled():
                return BadInput(
                    f"{where} canceled the query ({reason}); raise the server's statement_timeout "
                    "for this role"
                )
            case errors.LockNotAvailable():
                return Busy(f"another process changes {self.place}; wait for it")
            case errors.OperationalError():
                return self._unreachable(reason)
        return BadInput(f"{where} raised an error ({reason}); see the server's log")

    def _unreachable(self, reason: str) -> BadInput:
        """Return the error of a connection that was refused or lost."""
        where, low = self.address.name, reason.lower()
        if "password" in low or "authentication" in low or "pg_hba" in low:
            if not self.trusted and not self.address.is_same(PostgresAddress.of_environment()):
                return BadInput(
                    f"{where}, which the index folder names, requires a password; set {URL} to "
                    "that database if it may get one"
                )
            return BadInput(
                f"{where} refuses the user or the password ({reason}); correct them in {URL}, or "
                f"set {PASSWORD}"
            )
        if "does not exist" in low:
            return BadInput(f"{where} cannot be opened ({reason}); create it, or correct {URL}")
        return Unreachable(
            f"{where} does not answer ({reason}); start it, or correct the address in {URL} or "
            "--set url="
        )


def _reason(problem: Any) -> str:
    """Return the server's message in one short line, without passwords."""
    lines = [line for line in (problem.diag.message_primary or str(problem)).splitlines() if line]
    return without_secrets(lines[0] if lines else type(problem).__name__)[:200].rstrip(".; ")


def _close(opened: list[Any]) -> None:
    while opened:
        opened.pop().close()
