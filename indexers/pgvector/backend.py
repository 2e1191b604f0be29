"""The options of the backend `pgvector`, which builds and opens tables of PostgreSQL."""

import atexit
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from indexers.options import EFFORTS, check_range
from indexers.pgvector.address import EXAMPLE, URL, PostgresAddress, library
from indexers.pgvector.facts import (
    MAX_NAME_BYTES,
    REMEDY,
    TableFacts,
    read_table_facts,
    stored_columns,
)
from indexers.pgvector.filling import OPERATORS, fill
from indexers.pgvector.index import MAX_EF, PgvectorIndex, read_keys
from indexers.pgvector.table import DROP, PostgresTable
from retrieval.choices import choice
from retrieval.contracts import Blocks, Index, Items, Json, Metric, Vectors
from retrieval.errors import BadData, BadInput, Mismatch, UnknownName
from retrieval.hits import InMemory
from retrieval.values import resolve_options

INDEX_TYPES = ("HNSW", "EXACT")
MAX_DIM = {"HNSW": 2_000, "EXACT": 16_000}  # HNSW's limit, and that of the type `vector`


@dataclass(frozen=True)
class Pgvector:
    """`pgvector`: a table of PostgreSQL, searched with pgvector's index and filtered by SQL.

    index_type: HNSW; or EXACT, to compare all rows.
    m, ef_construction: options of HNSW; see the backend hnsw.
    ef: number of candidates that HNSW keeps during a search. Larger values raise recall and take
    more time.
    url: address of the database; None for DATABASE_URL. The password comes from DATABASE_URL or
    PGPASSWORD only.
    schema: the schema of the table; it must exist.
    table: name of the table; None for a name that depends on its content.

    The backend requires psycopg: `pip install 'retr[pgvector]'`.
    """

    metric: Metric = Metric.COSINE
    index_type: str = "HNSW"
    m: int = 16
    ef_construction: int = 64
    ef: int = 128
    url: str | None = None
    schema: str = "public"
    table: str | None = None
    search_options: ClassVar[frozenset[str]] = frozenset({"ef", "url"})

    def __post_init__(self) -> None:
        if self.index_type not in INDEX_TYPES:
            raise UnknownName("index_type of backend pgvector", self.index_type, INDEX_TYPES)
        resolve_options(self)
        if self.metric not in OPERATORS:
            raise BadInput(
                f"the backend pgvector has no {self.metric} distance; use the backend exact or ivf"
            )
        check_range("m", self.m, 2, 100)
        check_range("ef_construction", self.ef_construction, max(4, 2 * self.m), 1_000)
        check_range("ef", self.ef, 1, MAX_EF)
        for option, name in (("schema", self.schema), ("table", self.table)):
            if name is not None:
                _check_name(option, name)
        if self.url:
            PostgresAddress.of(self.url)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["Pgvector"]:
        """Return an empty list: trials over samples cannot predict the speed of a server."""
        metric = choice(Metric, metric)
        return []

    def ladders(self) -> list[list["Pgvector"]]:
        """Return a ladder of `ef`."""
        if self.index_type == "EXACT":
            return [[self]]
        return [[replace(self, ef=ef) for ef in EFFORTS]]

    def apply(self, index: Index) -> None:
        """Set `ef`."""
        assert isinstance(index, PgvectorIndex)
        index.options = self

    def build(self, vectors: Vectors) -> PgvectorIndex:
        """Build an index of vectors (n, dim), n ≥ 1, which are not changed. Raises BadInput."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> PgvectorIndex:
        """Build an index from blocks; see `Streaming`. The table is dropped at exit."""
        holds = self._holding(blocks, "", [], {})
        name = f"retr_tmp_{uuid.uuid4().hex}"
        table = PostgresTable(self._address(), True, self.schema, name)
        with table.connected():  # check the connection first: `drop` connects again at exit
            atexit.register(table.drop)
        fill(table, holds, blocks, None)
        return PgvectorIndex(table, holds, self)

    def store(self, items: Items) -> PgvectorIndex:
        """Build an index with all columns, continuing a killed build; see `Storing`."""
        columns = items.columns
        stored = stored_columns(columns)
        holds = self._holding(items, items.encoder, [*items.source], stored)
        texts = items.table
        for name in stored:
            assert columns is not None
            texts = texts.append_column(name, columns[name])
        table = PostgresTable(self._address(), True, self.schema, self.table or holds.name())
        return PgvectorIndex(table, holds, self, resumed_at=fill(table, holds, items, texts))

    def load(self, folder: Path) -> PgvectorIndex:
        """Load the index saved in the folder, with these search options.

        Raises BadData if it is missing or damaged, BadInput if the server does not answer or has no
        such table, Mismatch if the table has changed.
        """
        url, schema, name, holds = read_table_facts(folder)
        keys = read_keys(folder, holds)
        address = PostgresAddress.of(self.url or url)
        table = PostgresTable(address, False, schema, name)
        found = table.facts()
        if found is None:
            raise BadInput(
                f"{address.name} has no table {schema}.{name}; {REMEDY}, or name the database "
                "that has it with --set url="
            )
        there, complete = found
        what = there.difference(holds)
        if what is None and (there.source, there.edition < holds.edition) != (holds.source, False):
            what = f"has {there.rows:,} rows of other embeddings"
        if what is not None:
            raise Mismatch(f"{table.place} {what}; {DROP}")
        if not complete:
            raise BadData(f"{table.place} is unfinished; run the build again")
        is_behind = there.edition > holds.edition
        if not is_behind:
            table.check_count(holds)
        return PgvectorIndex(table, holds, self, keys, is_behind=is_behind)

    def _address(self) -> PostgresAddress:
        library()
        if self.url:
            return PostgresAddress.of(self.url)
        address = PostgresAddress.of_environment()
        if address is None:
            raise BadInput(f"the backend pgvector requires a database; set {URL} to {EXAMPLE}")
        return address

    def _holding(
        self, blocks: Blocks, encoder: str, source: list[str], columns: dict[str, str]
    ) -> TableFacts:
        most = MAX_DIM[self.index_type]
        if blocks.dim > most:
            raise BadInput(
                f"pgvector takes up to {most:,} dimensions with index_type={self.index_type}, not "
                f"{blocks.dim:,}; use index_type=EXACT (up to {MAX_DIM['EXACT']:,}), or another "
                "backend"
            )
        build: dict[str, Json] = {}
        if self.index_type == "HNSW":
            build = {"m": self.m, "ef_construction": self.ef_construction}
        return TableFacts(
            encoder,
            source,
            blocks.rows,
            blocks.dim,
            str(self.metric),
            self.index_type,
            build,
            columns,
            blocks.rows,
        )


def _check_name(option: str, name: str) -> None:
    """Raise BadInput if PostgreSQL would not keep the name as it is."""
    if not 0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES or "\0" in name:
        raise BadInput(
            f"option {option} is not a name of PostgreSQL; give 1 to {MAX_NAME_BYTES} bytes"
        )
