"""Addresses of PostgreSQL, without passwords, and the decision who gets a password."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from retrieval.errors import BadInput

URL, PASSWORD = "DATABASE_URL", "PGPASSWORD"
"""Environment variables."""

PUBLIC_PARTS = ("host", "port", "dbname", "user", "sslmode", "sslrootcert")
"""Parts of an address that are no secret, and may be written into an index folder."""

DEFAULTS = {"host": "", "port": "5432"}
CONNECT_TIMEOUT_SECONDS = 10
EXAMPLE = "postgresql://USER@HOST:5432/DATABASE"


@dataclass(frozen=True)
class PostgresAddress:
    """A database on a server. parts: those of PUBLIC_PARTS."""

    parts: dict[str, str]

    @classmethod
    def of(cls, url: str) -> "PostgresAddress":
        """Read an address. Raises BadInput if it is invalid or has a password."""
        found = _parsed(url, "url")
        further = sorted(set(found) - set(PUBLIC_PARTS))
        if further:
            raise BadInput(
                f"the address of PostgreSQL has {further[0]}; leave out all but host, port, "
                f"database, user and sslmode, and set {URL} with the rest"
            )
        return cls(found)

    @classmethod
    def of_environment(cls) -> "PostgresAddress | None":
        """Return the address in DATABASE_URL; None if it is not set. Raises BadInput."""
        found = _environment()
        return cls({key: found[key] for key in PUBLIC_PARTS if key in found}) if found else None

    @property
    def text(self) -> str:
        """The connection string, without a password."""
        from psycopg.conninfo import make_conninfo

        return make_conninfo("", **self.parts)

    @property
    def name(self) -> str:
        """The name of the database in messages."""
        host = self.parts.get("host") or os.environ.get("PGHOST") or "localhost"
        port = self.parts.get("port") or os.environ.get("PGPORT") or DEFAULTS["port"]
        return f"PostgreSQL at {host}:{port}/{self.parts.get('dbname', '')}"

    def is_same(self, other: "PostgresAddress | None") -> bool:
        """Return whether both name one database; users may differ."""
        return other is not None and self._place == other._place

    @property
    def _place(self) -> tuple[str | None, ...]:
        known = {**DEFAULTS, **self.parts}
        return known["host"], known["port"], known.get("dbname")

    def settings(self, trusted: bool) -> dict[str, Any]:
        """Return the parameters of a connection.

        A database that DATABASE_URL names gets all that is in there. Another one that the user
        named gets PGPASSWORD, or the password file. One that only an index folder names may be
        anybody's: it gets no password.
        """
        if self.is_same(PostgresAddress.of_environment()):
            return _environment()
        if trusted:
            return dict(self.parts)
        return {**self.parts, "password": "", "passfile": os.devnull, "gssencmode": "disable"}


def library() -> Any:
    """Import psycopg. Raises BadInput if it or pgvector's package is not installed."""
    if find_spec("psycopg") is None or find_spec("pgvector") is None:
        raise BadInput("the backend pgvector requires psycopg; pip install 'retr[pgvector]'")
    try:
        import psycopg
    except ImportError:  # without libpq
        raise BadInput("psycopg lacks libpq; pip install 'retr[pgvector]'") from None
    return psycopg


def without_secrets(text: str) -> str:
    """Return the text in one line, without passwords of the environment."""
    line = " ".join(text.split())
    try:
        secrets = {_environment().get("password"), os.environ.get(PASSWORD)}
    except BadInput:
        secrets = {os.environ.get(PASSWORD)}
    for secret in filter(None, secrets):
        line = line.replace(secret, "…")
    return line


def _environment() -> dict[str, str]:
    """Return the parameters in DATABASE_URL; none if it is not set."""
    return _parsed(os.environ.get(URL, ""), URL)


def _parsed(text: str, where: str) -> dict[str, str]:
    psycopg = library()
    from psycopg.conninfo import conninfo_to_dict

    # SQLAlchemy's form names a driver: postgresql+psycopg://…
    scheme, mark, rest = text.partition("://")
    text = f"{scheme.partition('+')[0]}{mark}{rest}"
    try:
        found = conninfo_to_dict(text)
    except psycopg.ProgrammingError:  # its message may quote the password
        raise BadInput(f"invalid address of PostgreSQL in {where}; give it as {EXAMPLE}") from None
    return {key: str(value) for key, value in found.items() if value is not None}
