"""Fill a Milvus collection, and check its content."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from indexers.milvus.database import LONG_REQUEST, Database, Lite, library
from indexers.milvus.holding import CollectionFacts
from retrieval.contracts import Blocks, Metric, Rows, Vectors
from retrieval.errors import BadData, BadInput, Mismatch, RetrError
from retrieval.hits import checked_blocks

METRICS = {Metric.COSINE: "COSINE", Metric.EUCLIDEAN: "L2", Metric.INNER_PRODUCT: "IP"}

KEY, VECTOR, TEXTS = "row", "vector", ("id", "label", "path")
"""Fields of a collection."""

MAX_TEXT_BYTES = 65_535  # maximum of a VARCHAR


@dataclass(frozen=True, eq=False)
class CollectionFiller:
    """A collection to fill.

    blocks: the distinct vectors (n, dim), where n is `holds.stored`.
    keys: (n,), the primary key of each vector, which is the first row with this vector.
    table: id, label and path of all rows; None for vectors without them.
    """

    database: Database
    holds: CollectionFacts
    blocks: Blocks
    keys: Rows
    table: pa.Table | None
    consistency: str

    def fill(self) -> int:
        """Insert all rows, then build Milvus's index. Return the number of rows found there before.

        A collection that has Milvus's index is complete, and is left unchanged.
        """
        database, holds = self.database, self.holds
        name, there, complete = database.collection, 0, False
        with database.connected() as client:
            if client.has_collection(name, timeout=database.timeout):
                check_same(database, holds)
                complete = bool(client.list_indexes(name, timeout=database.timeout))
                client.flush(name, **LONG_REQUEST)  # a server counts only flushed rows
                counted = client.get_collection_stats(name, timeout=database.timeout)
                there = int(counted["row_count"])
            else:
                self._create()
        if not complete:
            self._insert_rows(there)
            self._build_index()
        with database.connected() as client:
            client.load_collection(name, **LONG_REQUEST)
        try:
            check_count(database, holds)
        except BadData:
            if not complete:  # no index uses the collection yet
                drop(database)
            raise
        return there

    def _create(self) -> None:
        pymilvus = library()
        kinds = pymilvus.DataType
        text = self.holds.text()
        schema = pymilvus.MilvusClient.create_schema(auto_id=False, description=text)
        schema.add_field(KEY, kinds.INT64, is_primary=True)
        schema.add_field(VECTOR, kinds.FLOAT_VECTOR, dim=self.holds.dim)
        if self.table is not None:
            for column in TEXTS:
                _check_texts(self.table, column)
                schema.add_field(
                    column, kinds.VARCHAR, max_length=MAX_TEXT_BYTES, nullable=column != "id"
                )
        self.database.client.create_collection(
            self.database.collection,
            schema=schema,
            consistency_level=self.consistency,
            properties={"retr": text},
            timeout=self.database.timeout,
        )

    def _insert_rows(self, there: int) -> None:
        """Insert all rows after the first `there`."""
        for first, block in self._checked_blocks():
            for start in range(0, len(block), self.holds.batch_rows):
                batch = block[start : start + self.holds.batch_rows]
                place = first + start
                if place + len(batch) > there:
                    keys = self.keys[place : place + len(batch)]
                    # A killed build may have written a part of this batch.
                    insert(self.database, keys, batch, self.table, again=place < there)

    def _checked_blocks(self) -> Iterator[tuple[int, Vectors]]:
        """Yield prepared blocks, each with its first row. Drop the collection if one is invalid."""
        try:
            yield from checked_blocks(self.blocks, self.holds.metric)
        except RetrError:
            drop(self.database)
            raise

    def _build_index(self) -> None:
        database, holds = self.database, self.holds
        with database.connected() as client:
            client.flush(database.collection, **LONG_REQUEST)
            index = client.prepare_index_params()
            index.add_index(
                VECTOR,
                index_type=holds.index_type,
                metric_type=METRICS[Metric(holds.metric)],
                # Milvus Lite ignores these parameters unless they are nested.
                params={"params": holds.build} if holds.build else {},
            )
            # Milvus Lite builds the index only when it loads the collection: do not wait for it.
            client.create_index(database.collection, index, **LONG_REQUEST, sync=not database.lite)


def insert(
    database: Database, keys: Rows, vectors: Vectors, table: pa.Table | None, again: bool
) -> None:
    """Insert the vectors with the primary keys `keys`. again: some may be there; overwrite them."""
    texts: dict[str, list[str | None]] = {}
    if table is not None:
        texts = table.select([*TEXTS]).take(keys).to_pydict()
    rows: list[dict[str, Any]] = [
        {KEY: key, VECTOR: vector} for key, vector in zip(keys.tolist(), vectors, strict=True)
    ]
    for column, values in texts.items():
        for row, value in zip(rows, values, strict=True):
            row[column] = value
    with database.connected() as client:
        write = client.upsert if again else client.insert
        write(database.collection, rows, timeout=database.timeout)


def _check_texts(table: pa.Table, column: str) -> None:
    longest = pc.max(pc.binary_length(table[column])).as_py() or 0
    if longest > MAX_TEXT_BYTES:
        raise BadInput(
            f"a {column} has {longest:,} bytes, and Milvus stores at most {MAX_TEXT_BYTES:,}; use "
            "another backend, or shorten it"
        )


def check_same(database: Database, holds: CollectionFacts) -> None:
    """Raise Mismatch unless the collection holds the same rows with the same Milvus index."""
    name, where = database.collection, database.name
    with database.connected() as client:
        described = client.describe_collection(name, timeout=database.timeout)
    said = described.get("properties", {}).get("retr") or described.get("description") or ""
    found = CollectionFacts.of(str(said))
    another = "drop it, or name another with --set collection="
    if found is None:
        raise Mismatch(
            f"the collection {name} of {where} was not written by this version of retr; {another}"
        )
    if found == holds:
        return
    if found.encoder != holds.encoder:
        what = f"is of encoder {found.encoder[:8]}, not {holds.encoder[:8]}"
    elif found.dim != holds.dim:
        what = f"has {found.dim} dimensions, not {holds.dim}"
    elif found.metric != holds.metric:
        what = f"is for {found.metric} distances, not {holds.metric}"
    elif (found.source, found.rows) != (holds.source, holds.rows):
        what = f"has {found.rows:,} rows of other embeddings"
    elif found.stored != holds.stored:
        what = f"has {found.stored:,} vectors, not {holds.stored:,} distinct ones"
    else:
        options = " ".join(f"{name}={value}" for name, value in found.build.items())
        what = f"has an index with other options ({' '.join((found.index_type, options)).strip()})"
    raise Mismatch(f"the collection {name} of {where} {what}; {another}")


def check_count(database: Database, holds: CollectionFacts) -> None:
    """Raise BadData if the collection has another number of rows than it should."""
    with database.connected() as client:
        (found,) = client.query(
            database.collection,
            filter="",
            output_fields=["count(*)"],
            consistency_level="Strong",
            timeout=database.timeout,
        )
    if found["count(*)"] != holds.stored:
        drop = "" if isinstance(database, Lite) else "drop it, and "
        raise BadData(
            f"the collection {database.collection} of {database.name} has "
            f"{found['count(*)']:,} rows, not {holds.stored:,}; {drop}build the index again"
        )


def drop(database: Database) -> None:
    """Drop the collection, unless the server does not answer."""
    try:
        with database.connected() as client:
            client.drop_collection(database.collection, timeout=database.timeout)
    except BadInput:
        return  # the collection stays; it has no index yet, which marks it as incomplete


def unfinished(collection: str, folder: Path, holds: CollectionFacts) -> Lite:
    """Return the database of a killed build of the same rows; a new one if there is none."""
    if folder.exists():
        left = Lite(collection, folder)
        try:
            with left.connected() as client:
                if client.has_collection(collection):
                    check_same(left, holds)
            return left
        except BadInput:  # the collection holds other rows, or is damaged
            left.stop()
            shutil.rmtree(folder)
    return Lite(collection, folder)
