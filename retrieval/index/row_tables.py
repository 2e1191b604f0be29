"""Tables of an index, in row order: ids, labels and paths; columns for filters; hashes of files.

Each is a file of the index folder. A search reads the first. It reads the columns for a filter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.contracts import Mask
from retrieval.errors import BadData
from retrieval.storage.files import native_path
from retrieval.storage.places import Place
from retrieval.storage.roots import at_moved_roots
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.storage.sets.manifest import ROW_FIELDS
from retrieval.storage.tables import read_table, with_nfc_labels, write_table

ROWS = "rows.parquet"
COLUMNS = "columns.parquet"
"""Columns for filters; only if there are any."""
CONTENTS = "contents.parquet"
"""Hashes of the rows' image files, to tell changed files; only if the images are files."""
REMEDY = "index again"


@dataclass(frozen=True, slots=True, eq=False)
class RowTables:
    """The tables to write with an index. columns, contents: None if there are none."""

    rows: pa.Table
    columns: pa.Table | None = None
    contents: pa.ChunkedArray | None = None

    @classmethod
    def of(cls, rows: pa.Table, sets: Sequence[Embeddings]) -> Self:
        """Return the tables of these sets, whose rows are given."""
        contents = None
        if all(each.facts.has_files for each in sets):
            contents = pa.chunked_array([c for each in sets for c in each.contents().chunks])
        return cls(rows, _unified([each.columns() for each in sets], [*map(len, sets)]), contents)

    def below(self, rows: pa.Table, columns: "RowColumns") -> Self:
        """Return the tables with these rows of an index above them, and without hashes."""
        columns_below = pa.table({}) if self.columns is None else self.columns
        counts = [len(rows), len(self.rows)]
        unified = _unified([columns.table(), columns_below], counts)
        return type(self)(pa.concat_tables([rows, self.rows]), unified)

    @classmethod
    def some(cls, rows: pa.Table, columns: "RowColumns", mask: Mask) -> Self:
        """Return the tables of the rows of an index in the mask, without hashes."""
        kept = pa.array(mask)
        return cls(rows.filter(kept), columns.table().filter(kept) if columns.names else None)

    @property
    def all_columns(self) -> pa.Table:
        """Id, label, path and further columns as one table."""
        if self.columns is None:
            return self.rows
        names = [*self.rows.column_names, *self.columns.column_names]
        return pa.table([*self.rows.columns, *self.columns.columns], names=names)

    def write(self, folder: Path) -> None:
        """Write the files into a new folder."""
        write_table(folder / ROWS, self.rows, "zstd")
        if self.columns is not None:
            write_table(folder / COLUMNS, self.columns, "zstd")
        if self.contents is not None:
            write_table(folder / CONTENTS, pa.table({"content": self.contents}), "zstd")


class RowColumns:
    """The columns for filters of an index's rows, read when they are needed.

    The files stay mapped, so that they can be read after another index has replaced this one.
    """

    def __init__(self, files: Sequence[tuple[pa.Buffer | None, int]]) -> None:
        """files: of each segment, the file's content, None without one, and the number of rows."""
        self._files = [*files]

    @classmethod
    def of(cls, folder: Path, rows: int, is_there: bool) -> Self:
        """Open the file in the folder of an index's files, if it is there."""
        if not is_there:
            return cls([(None, rows)])
        with native_path(folder / COLUMNS) as name:
            return cls([(pa.memory_map(name).read_buffer(), rows)])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the columns of all segments."""
        return cls([file for each in parts for file in each._files])

    @cached_property
    def names(self) -> list[str]:
        """Return the names of the columns. Raises BadData for a damaged file."""
        found = [name for file, _ in self._files for name in _names(file)]
        return [*dict.fromkeys(found)]

    @cached_property
    def schema(self) -> pa.Schema:
        """Return names and types of the columns. Raises BadData for a damaged file."""
        empty = [_schema(file).empty_table() for file, _ in self._files]
        found = _unified(empty, [0] * len(empty))
        return pa.schema([]) if found is None else found.schema

    def table(self, names: Sequence[str] | None = None) -> pa.Table:
        """Return these columns of all rows; None for all. Raises BadData for a damaged file."""
        chosen = self.names if names is None else [*names]
        tables = [_read(file, rows, chosen) for file, rows in self._files]
        found = _unified(tables, [rows for _, rows in self._files])
        return pa.table({}) if found is None else found


def _names(file: pa.Buffer | None) -> list[str]:
    return [*_schema(file).names]


def _schema(file: pa.Buffer | None) -> pa.Schema:
    if file is None:
        return pa.schema([])
    with _parquet(file) as parquet:
        return parquet.schema_arrow


def _read(file: pa.Buffer | None, rows: int, names: Sequence[str]) -> pa.Table:
    if file is None:
        return pa.table({})
    here = [name for name in _names(file) if name in names]
    with _parquet(file) as parquet:
        if parquet.metadata.num_rows != rows:
            raise BadData(
                f"{COLUMNS} has {parquet.metadata.num_rows:,} rows, not {rows:,}; {REMEDY}"
            )
        return parquet.read(here, use_threads=False)


@contextmanager
def _parquet(file: pa.Buffer) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(pa.BufferReader(file)) as parquet:
            yield parquet
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadData(f"cannot read {COLUMNS} ({error}); {REMEDY}") from None


def _unified(tables: Sequence[pa.Table], rows: Sequence[int]) -> pa.Table | None:
    """Return the tables one below the other; None if they have no columns."""
    if not any(table.num_columns for table in tables):
        return None
    if len(tables) == 1:
        return tables[0]
    from retrieval.storage.sets.columns import unified  # slow to import

    return unified(tables, rows)


def read_rows(folder: Place) -> pa.Table:
    """Read the table of id, label and path in a folder of an index's files. Raises BadData."""
    path = folder / ROWS
    try:
        rows = read_table(path.read_bytes())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); {REMEDY}") from None
    if not rows.schema.equals(pa.schema(ROW_FIELDS)):
        raise BadData(f"the columns of {path} are not id, label and path; {REMEDY}")
    return at_moved_roots(with_nfc_labels(rows))


def read_contents(folder: Path, rows: int) -> pa.ChunkedArray:
    """Read the hashes of the image files of an index with this number of rows. Raises BadData."""
    path = folder / CONTENTS
    try:
        contents = read_table(path.read_bytes())["content"]
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); {REMEDY}") from None
    if len(contents) != rows:
        raise BadData(f"{path} has {len(contents):,} rows, not {rows:,}; {REMEDY}")
    return contents
