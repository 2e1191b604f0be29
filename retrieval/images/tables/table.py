"""Files of rows: Parquet, and Arrow's streams and files, read batch by batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import BadSource
from retrieval.images.source import CHUNK_ITEMS, text
from retrieval.images.tables.endings import ARROW
from retrieval.storage.files import native_path
from retrieval.storage.places import Place

_BUFFER_BYTES = 1 << 20  # without a buffer a row group is read whole
_MAGIC = b"ARROW1"  # start of Arrow's file format; streams have no magic


class Table(Protocol):
    """An open file of rows."""

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    def batches(self, start: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows from `start` on, CHUNK_ITEMS at a time; rows before it are not decoded.

        columns: names, or `COLUMN.FIELD` for a field of a struct.
        """

    def row(self, row: int, columns: list[str]) -> pa.RecordBatch | None:
        """Return the row; None if it does not exist."""

    def has_values(self, column: str) -> bool:
        """Return False if the column is known to hold nulls only."""


@contextmanager
def opened(file: Place) -> Iterator[Table]:
    """Yield the file, open.

    Raises BadSource for what goes wrong while it is, as for damaged data.
    """
    is_arrow = file.suffix.lower() in ARROW
    try:
        if is_arrow:
            if not isinstance(file, Path):
                raise BadSource(f"{file} is an Arrow file in a store; copy it here, give the copy")
            with native_path(file) as name, pa.memory_map(name) as stream:
                yield _Arrow(stream)
        else:
            with (
                file.open("rb") as stream,
                pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet,
            ):
                _check_counts(parquet.metadata)
                yield _Parquet(parquet)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names not in UTF-8
        reason = str(error).partition("\n")[0]
        kind = "Arrow" if is_arrow else "Parquet"
        raise BadSource(f"cannot read {text(file)} as {kind}: {reason}; copy it again") from error


class _Parquet:
    def __init__(self, parquet: pq.ParquetFile) -> None:
        self._file = parquet
        self.schema = parquet.schema_arrow

    @property
    def rows(self) -> int:
        return int(self._file.metadata.num_rows)

    def batches(self, start: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        group, row = self._group_of(start)
        groups = list(range(group, self._file.num_row_groups))
        for batch in self._file.iter_batches(CHUNK_ITEMS, groups, columns, use_threads=False):
            skipped = min(max(0, start - row), batch.num_rows)
            row += batch.num_rows
            if skipped < batch.num_rows:
                yield batch.slice(skipped)

    def row(self, row: int, columns: list[str]) -> pa.RecordBatch | None:
        group, first = self._group_of(row)
        if group == self._file.num_row_groups:
            return None
        table = self._file.read_row_group(group, columns=columns, use_threads=False)
        return table.slice(row - first, 1).to_batches()[0]

    def has_values(self, column: str) -> bool:
        facts = self._file.metadata
        places = [i for i in range(facts.num_columns) if facts.schema.column(i).path == column]
        chunks = [
            facts.row_group(group).column(place)
            for group in range(facts.num_row_groups)
            for place in places
        ]
        counts = [(chunk.num_values, chunk.statistics) for chunk in chunks]
        return not places or any(
            not (known and known.has_null_count and known.null_count == count)
            for count, known in counts
            if count
        )

    def _group_of(self, row: int) -> tuple[int, int]:
        """Return the row group with this row and its first row; the number of groups for none."""
        first = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if row < first + rows:
                return group, first
            first += rows
        return self._file.num_row_groups, first


class _Arrow:
    """A memory-mapped file, of which only the parts that are used are read."""

    def __init__(self, stream: pa.MemoryMappedFile) -> None:
        self._stream = stream
        self.schema = self._reader().schema
        self.rows = sum(batch.num_rows for batch in self._all())

    def batches(self, start: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        names = list(dict.fromkeys(map(self._top, columns)))
        before = 0
        for batch in self._all():
            if start < before + batch.num_rows:
                part = batch.select(names)
                part.validate(full=True)  # a damaged file may have offsets out of range
                for row in range(max(0, start - before), batch.num_rows, CHUNK_ITEMS):
                    yield part.slice(row, CHUNK_ITEMS)
            before += batch.num_rows

    def row(self, row: int, columns: list[str]) -> pa.RecordBatch | None:
        batch = next(self.batches(row, columns), None)
        return None if batch is None else batch.slice(0, 1)

    def has_values(self, column: str) -> bool:
        return any(batch.column(column).null_count < batch.num_rows for batch in self._all())

    def _top(self, name: str) -> str:
        return name if name in self.schema.names else name.rpartition(".")[0]

    def _reader(self) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
        self._stream.seek(0)
        is_file = self._stream.read(len(_MAGIC)) == _MAGIC
        self._stream.seek(0)
        return pa.ipc.open_file(self._stream) if is_file else pa.ipc.open_stream(self._stream)

    def _all(self) -> Iterator[pa.RecordBatch]:
        reader = self._reader()
        if isinstance(reader, pa.RecordBatchFileReader):
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
        else:
            yield from cast(Iterator[pa.RecordBatch], reader)


def _check_counts(facts: pq.FileMetaData) -> None:
    """Raise ValueError unless the row groups have as many rows as the file's metadata."""
    counts = [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != facts.num_rows:
        raise ValueError(f"{sum(counts):,} rows, not {facts.num_rows:,} as in the metadata")
