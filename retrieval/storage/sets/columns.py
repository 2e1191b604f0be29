"""Columns of a set of embeddings for filters, besides id, label and path.

The shards have those of PHOTO_FIELDS, which are read with each image. All others come from tables
beside the images. They are in one file of the embeddings folder, with the ids. This file is
replaced when the tables change, and the shards stay.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval.errors import BadData
from retrieval.storage.files import write_whole
from retrieval.storage.names import storable
from retrieval.storage.places import Place
from retrieval.storage.sets.manifest import PHOTO_FIELDS
from retrieval.storage.tables import read_checked

COLUMNS_FILE = "columns-{}.parquet"
OWN_NAMES = ("id", "path", "embedding", "stamp", "content")
"""Names that columns of tables beside the images cannot have."""

PHOTO_TYPES = {field.name: field.type for field in PHOTO_FIELDS}
TIME = pa.timestamp("ms")
UTC_TIME = pa.timestamp("ms", "UTC")
TYPES = (pa.bool_(), pa.int64(), pa.float64(), pa.string(), TIME, UTC_TIME)
"""Types of the columns."""


@dataclass(frozen=True, slots=True, eq=False)
class FurtherColumns:
    """Columns from tables beside the images: an id (string, unique), and columns of TYPES.

    fingerprint: changes when the tables do. notes: sentences about what was not taken.
    """

    table: pa.Table
    fingerprint: str
    notes: tuple[str, ...] = ()


def as_column(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return the values as one of TYPES; None for structs, bytes and other types.

    Values that are not numbers (NaN) become null. Lists of plain values become text, with commas.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        return as_column(pc.cast(values, kind.value_type))
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pc.cast(values, pa.string())
    if kind in (pa.bool_(), pa.string()):
        return values
    if pa.types.is_integer(kind):
        return pc.cast(values, pa.int64() if kind != pa.uint64() else pa.float64(), safe=False)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = pc.cast(values, pa.float64())
        return pc.if_else(pc.is_finite(numbers), numbers, None)
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        zoned = pa.types.is_timestamp(kind) and kind.tz
        return pc.cast(values, UTC_TIME if zoned else TIME, safe=False)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _joined_lists(values)
    return None


def _joined_lists(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    flat = as_column(pa.chunked_array([[]], values.type.value_type))
    if flat is None:
        return None
    texts = [
        None if each is None else ", ".join(str(value) for value in each if value is not None)
        for each in values.to_pylist()
    ]
    return pa.chunked_array([pa.array(texts, pa.string())])


def unified(tables: Sequence[pa.Table], rows: Sequence[int] | None = None) -> pa.Table:
    """Return the tables one below the other. A column that one of them lacks is null there.

    rows: the number of rows of each, which a table without columns does not know. A column of
    numbers in one and of text in another becomes text.
    """
    counts = [*map(len, tables)] if rows is None else rows
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    kinds = {
        name: _common([t.schema.field(name).type for t in tables if name in t.column_names])
        for name in names
    }
    columns = {}
    for name, kind in kinds.items():
        chunks = [
            chunk
            for table, count in zip(tables, counts, strict=True)
            for chunk in _chunks(table, count, name, kind)
        ]
        columns[name] = pa.chunked_array(chunks, kind)
    return pa.table(columns)


def _chunks(table: pa.Table, rows: int, name: str, kind: pa.DataType) -> Iterable[pa.Array]:
    if name not in table.column_names:
        return [pa.nulls(rows, kind)]
    chunks: Iterable[pa.Array] = pc.cast(table[name], kind, safe=False).chunks
    return chunks


def _common(kinds: Iterable[pa.DataType]) -> pa.DataType:
    """Return the type that holds values of all these types."""
    first, *others = dict.fromkeys(kinds)
    if not others:
        return first
    numbers = {pa.int32(), pa.int64(), pa.float64()}
    if {first, *others} <= numbers:
        return pa.float64() if pa.float64() in (first, *others) else pa.int64()
    if {first, *others} <= {TIME, UTC_TIME}:
        return UTC_TIME
    return pa.string()


def aligned(further: pa.Table, ids: pa.ChunkedArray) -> pa.Table:
    """Return the columns of a table with ids, for these ids; null where the table lacks one."""
    at = pc.index_in(ids, value_set=further["id"].combine_chunks())
    return further.drop_columns("id").take(at)


def overlaid(below: pa.Table, above: pa.Table) -> pa.Table:
    """Return the columns of both tables, which have the same rows.

    Of a column in both, the value is that of `above` unless it is null there.
    """
    found = {name: below[name] for name in below.column_names}
    for name in above.column_names:
        column = above[name]
        if name in found:
            kind = _common([found[name].type, column.type])
            column = pc.coalesce(
                pc.cast(column, kind, safe=False), pc.cast(found[name], kind, safe=False)
            )
        found[name] = column
    return pa.table(found)


def write_columns(folder: Place, further: FurtherColumns) -> tuple[str, str]:
    """Write the file of further columns; its name and sha256."""
    stream = pa.BufferOutputStream()
    pq.write_table(further.table, stream, compression="zstd")
    content = stream.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    name = COLUMNS_FILE.format(sha256[:16])
    write_whole(folder / name, lambda partial: partial.write_bytes(content))
    return name, sha256


def read_further(folder: Place, name: str, sha256: str) -> pa.Table:
    """Return the table of further columns, with the id. Raises BadData for a damaged file."""
    path, remedy = folder / name, "run the same 'retr encode' again"
    table = read_checked(path, sha256, remedy)
    if "id" not in table.column_names:
        raise BadData(f"{path} has no column id; {remedy}")
    return table


def plain_columns(table: pa.Table) -> tuple[dict[str, pa.ChunkedArray], list[str]]:
    """Return the columns of a table beside the images, as TYPES, and the names of all others.

    `metadata_` is put before a name that retr uses. A column of PHOTO_FIELDS has its type.

    Raises ArrowException if it cannot be converted.
    """
    columns, others = {}, []
    for name in table.column_names:
        column = as_column(table[name])
        if column is None:
            others.append(name)
        else:
            if name in PHOTO_TYPES:
                column = pc.cast(column, PHOTO_TYPES[name], safe=False)
            columns[f"metadata_{name}" if name in OWN_NAMES else storable(name)] = column
    return columns, others
