"""Fill a Milvus collection, and check that it holds what it should."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from indexers.milvus.database import WORKING, Database, Lite, library
from indexers.milvus.holding import Holding
from retrieval.contracts import Blocks, Metric, Rows, Vectors
from retrieval.errors import BadData, BadInput, Mismatch, RetrError
from retrieval.hits import checked_blocks

METRICS = {Metric.COSINE: "COSINE", Metric.EUCLIDEAN: "L2", Metric.INNER_PRODUCT: "IP"}

KEY, VECTOR, TEXTS = "row", "vector", ("id", "label", "path")
"""The fields of a collection."""

MAX_TEXT_BYTES = 65_535  # of a VARCHAR


@dataclass(frozen=True, eq=False)
class Filling:
    """A collection to be filled.

    blocks: the distinct vectors (n, dim), n being `holds.stored`.
    keys: (n,) the row that each is stored as: the first that has the vector.
    table: id, label and path of all rows; None for bare vectors.
    """

    database: Database
    holds: Holding
    blocks: Blocks
    keys: Rows
    table: pa.Table | None
    consistency: str

    def fill(self) -> int:
        """Insert all rows, then build Milvus's index; return the number of rows found there.

        A collection with Milvus's index is complete. It is neither added to nor dropped.
        """
        database, holds = self.database, self.holds
        name, there, complete = database.collection, 0, False
        with database.asked() as client:
            if client.has_collection(name, timeout=database.answering):
                check_same(database, holds)
                complete = bool(client.list_indexes(name, timeout=database.answering))
                client.flush(name, **WORKING)  # else a server does not count them
                counted = client.get_collection_stats(name, timeout=database.answering)
                there = int(counted["row_count"])
            else:
                self._create()
        if not complete:
            self._insert_rows(there)
            self._build_index()
        with database.asked() as client:
            client.load_collection(name, **WORKING)
        try:
            check_count(database, holds)
        except BadData:
            if not complete:  # and so nobody's yet
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
            timeout=self.database.answering,
        )

    def _insert_rows(self, there: int) -> None:
        """Insert all rows after the first `there`."""
        for first, block in self._checked_blocks():
            for start in range(0, len(block), self.holds.batch_rows):
                batch = block[start : start + self.holds.batch_rows]
                place = first + start
                if place + len(batch) > there:
                    keys = self.keys[place : place + len(batch)]
                    # A batch that is there in part was being written when the build was killed.
                    insert(self.database, keys, batch, self.table, again=place < there)

    def _checked_blocks(self) -> Iterator[tuple[int, Vectors]]:
        """Yield the blocks, prepared. Drop the collection where one is at fault."""
        try:
            yield from checked_blocks(self.blocks, self.holds.metric)
        except RetrError:
            drop(self.database)
            raise

    def _build_index(self) -> None:
        database, holds = self.database, self.holds
        with database.asked() as client:
            client.flush(database.collection, **WORKING)
            index = client.prepare_index_params()
            index.add_index(
                VECTOR,
                index_type=holds.index_type,
                metric_type=METRICS[Metric(holds.metric)],
                # Milvus Lite ignores these parameters unless they are nested.
                params={"params": holds.build} if holds.build else {},
            )
            # Milvus Lite builds it when it loads: there is nothing to wait for.
            client.create_index(database.collection, index, **WORKING, sync=not database.lite)


def insert(
    database: Database, keys: Rows, vectors: Vectors, table: pa.Table | None, again: bool
) -> None:
    """Insert the vectors as the rows `keys`; overwrite rows that may be there where `again`."""
    texts: dict[str, list[str | None]] = {}
    if table is not None:
        texts = table.select([*TEXTS]).take(keys).to_pydict()
    rows: list[dict[str, Any]] = [
        {KEY: key, VECTOR: vector} for key, vector in zip(keys.tolist(), vectors, strict=True)
    ]
    for column, values in texts.items():
        for row, value in zip(rows, values, strict=True):
            row[column] = value
    with database.asked() as client:
        write = client.upsert if again else client.insert
        write(database.collection, rows, timeout=database.answering)


def _check_texts(table: pa.Table, column: str) -> None:
    longest = pc.max(pc.binary_length(table[column])).as_py() or 0
    if longest > MAX_TEXT_BYTES:
        raise BadInput(
            f"a {column} has {longest:,} bytes, and Milvus holds {MAX_TEXT_BYTES:,}; take another "
            "backend, or shorten it"
        )


def check_same(database: Database, holds: Holding) -> None:
    """Raise Mismatch unless the collection holds the same rows with the same Milvus index."""
    name, where = database.collection, database.name
    with database.asked() as client:
        described = client.describe_collection(name, timeout=database.answering)
    said = described.get("properties", {}).get("retr") or described.get("description") or ""
    found = Holding.of(str(said))
    another = "drop it, or name another with --set collection="
    if found is None:
        raise Mismatch(f"the collection {name} of {where} was not made by this retr; {another}")
    if found == holds:
        return
    if found.encoder != holds.encoder:
        what = f"is of encoder {found.encoder[:8]}, not {holds.encoder[:8]}"
    elif found.dim != holds.dim:
        what = f"has {found.dim} dimensions, not {holds.dim}"
    elif found.metric != holds.metric:
        what = f"is for {found.metric} distances, not {holds.metric}"
    elif (found.source, found.rows) != (holds.source, holds.rows):
        what = f"holds {found.rows:,} rows of other embeddings"
    elif found.stored != holds.stored:
        what = f"stores {found.stored:,} vectors, not {holds.stored:,} distinct ones"
    else:
        options = " ".join(f"{name}={value}" for name, value in found.build.items())
        what = f"has an index of other options ({' '.join((found.index_type, options)).strip()})"
    raise Mismatch(f"the collection {name} of {where} {what}; {another}")


def check_count(database: Database, holds: Holding) -> None:
    """Raise BadData unless the collection has as many rows as it should."""
    with database.asked() as client:
        (found,) = client.query(
            database.collection,
            filter="",
            output_fields=["count(*)"],
            consistency_level="Strong",
            timeout=database.answering,
        )
    if found["count(*)"] != holds.stored:
        drop = "" if isinstance(database, Lite) else "drop it, and "
        raise BadData(
            f"the collection {database.collection} of {database.name} has "
            f"{found['count(*)']:,} rows, not {holds.stored:,}; {drop}build the index again"
        )


def drop(database: Database) -> None:
    """Drop the collection; leave it where the server does not answer."""
    try:
        with database.asked() as client:
            client.drop_collection(database.collection, timeout=database.answering)
    except BadInput:
        return  # it is not complete, and so not mistaken for one that is


def unfinished(collection: str, folder: Path, holds: Holding) -> Lite:
    """Return the database that a killed build of the same rows left, or a new one."""
    if folder.exists():
        left = Lite(collection, folder)
        try:
            with left.asked() as client:
                if client.has_collection(collection):
                    check_same(left, holds)
            return left
        except BadInput:  # the collection holds other rows, or is damaged
            left.stop()
            shutil.rmtree(folder)
    return Lite(collection, folder)
