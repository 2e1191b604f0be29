"""Facts about a table of PostgreSQL, stored in its comment and in pgvector.json."""

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Self, cast

import pyarrow as pa

from retrieval.contracts import Json
from retrieval.errors import BadData
from retrieval.storage.document import check_at_least, fields_of, parsed
from retrieval.storage.files import check_format, read_json, write_json

FACTS = "pgvector.json"
FORMAT, VERSION = "retr-pgvector", 1
REMEDY = "build the index again"

KEY, VECTOR, TEXTS = "row", "vector", ("id", "label", "path")
"""Columns of every table. Other columns are those for filters."""

OTHER_NAMES = {KEY, VECTOR, *TEXTS, "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}
MAX_NAME_BYTES = 63  # PostgreSQL cuts longer names
MAX_COLUMNS = 1_000  # PostgreSQL has at most 1,600 in a table
POSTGRES_TYPES = {
    pa.bool_(): "bool",
    pa.int32(): "int8",
    pa.int64(): "int8",
    pa.float64(): "float8",
    pa.string(): "text",
    pa.timestamp("ms"): "timestamp",
    pa.timestamp("ms", "UTC"): "timestamptz",
}
"""Types of PostgreSQL for the columns of retr."""


@dataclass(frozen=True)
class TableFacts:
    """The content of a table: its source, its size and its index.

    encoder, source: as in `Items`; empty for vectors without ids and labels.
    build: parameters of the index.
    columns: name and type of each further column.
    end: the first key that no row had so far.
    edition: number of updates since the build. Those keep the keys of rows that stay.
    """

    encoder: str
    source: list[str]
    rows: int
    dim: int
    metric: str
    index_type: str
    build: dict[str, Json]
    columns: dict[str, str] = field(default_factory=dict)
    end: int = 0
    edition: int = 0

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns besides key and vector."""
        return (*TEXTS, *self.columns) if self.encoder else ()

    @property
    def kinds(self) -> list[str]:
        """The types of `texts`."""
        return ["text"] * len(TEXTS) + [*self.columns.values()] if self.encoder else []

    def name(self) -> str:
        """Return a name for the table, the same for the same content."""
        return f"retr_{sha256(self.comment(True).encode()).hexdigest()[:16]}"

    def comment(self, complete: bool) -> str:
        """Return the comment of the table."""
        return f"{FORMAT} {VERSION} {'complete' if complete else 'unfinished'} {self.text()}"

    def text(self) -> str:
        """Return the facts as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of_comment(cls, comment: str) -> "tuple[TableFacts, bool] | None":
        """Return the facts of a comment, and whether it says complete; None for another comment."""
        form, version, state, text = [*comment.split(" ", 3), "", "", ""][:4]
        try:
            if form != FORMAT or int(version) > VERSION:
                return None
            return cls.read(json.loads(text), "the comment"), state == "complete"
        except (BadData, ValueError):
            return None

    @classmethod
    def read(cls, document: object, where: object) -> Self:
        """Read the facts from JSON. Raises BadData, which names `where`."""
        found = parsed(document, cls, where, REMEDY)
        check_at_least(1, {"rows": found.rows, "dim": found.dim}, where, REMEDY)
        check_at_least(found.rows, {"end": found.end}, where, REMEDY)
        return found

    def difference(self, wanted: "TableFacts") -> str | None:
        """Return how the table differs from the wanted one, for an error; None if it does not."""
        if self.encoder != wanted.encoder:
            return f"is of encoder {self.encoder[:8]}, not {wanted.encoder[:8]}"
        if self.dim != wanted.dim:
            return f"has {self.dim} dimensions, not {wanted.dim}"
        if self.metric != wanted.metric:
            return f"is for {self.metric} distances, not {wanted.metric}"
        if (self.index_type, self.build) != (wanted.index_type, wanted.build):
            options = " ".join(f"{name}={value}" for name, value in self.build.items())
            return f"has an index with other options ({f'{self.index_type} {options}'.strip()})"
        return None


@dataclass(frozen=True)
class _TableDocument:
    """pgvector.json, apart from its format."""

    url: str
    schema: str
    table: str
    holds: TableFacts


def stored_columns(columns: pa.Table | None) -> dict[str, str]:
    """Return name and type of the columns that a table of PostgreSQL can hold."""
    if columns is None:
        return {}
    found = {
        column.name: POSTGRES_TYPES[column.type]
        for column in columns.schema
        if column.type in POSTGRES_TYPES
        and column.name.lower() not in OTHER_NAMES
        and 0 < len(column.name.encode()) <= MAX_NAME_BYTES
        and "\0" not in column.name
    }
    return dict([*found.items()][:MAX_COLUMNS])


def write_table_facts(folder: Path, url: str, schema: str, table: str, holds: TableFacts) -> None:
    """Write pgvector.json."""
    document: dict[str, Json] = {
        "format": FORMAT,
        "version": VERSION,
        "url": url,
        "schema": schema,
        "table": table,
        "holds": cast(Json, asdict(holds)),
    }
    write_json(folder / FACTS, document)


def read_table_facts(folder: Path) -> tuple[str, str, str, TableFacts]:
    """Read pgvector.json: address, schema, table and facts. Raises BadData."""
    path = folder / FACTS
    document = read_json(path)
    check_format(document, FORMAT, VERSION, path)
    read = parsed(fields_of(document, _TableDocument), _TableDocument, path, REMEDY)
    return read.url, read.schema, read.table, TableFacts.read(asdict(read.holds), path)
