"""Tables of ids, labels and paths as Parquet files."""

import hashlib
from pathlib import Path
from unicodedata import is_normalized

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import BadData
from retrieval.storage.files import (
    write_whole,
)
from retrieval.storage.places import Place


def with_nfc_labels(table: pa.Table) -> pa.Table:
    """Return the table with its column `label` in Unicode NFC, as new sets have it already."""
    for chunk in table["label"].chunks:
        # One check of all text: `pyarrow.compute` takes its time to import.
        content = chunk.buffers()[2]
        text = "" if content is None else content.to_pybytes().decode("utf-8", "replace")
        if not text.isascii() and not is_normalized("NFC", text):
            break
    else:
        return table
    import pyarrow.compute as pc

    place = table.schema.get_field_index("label")
    labels = pc.utf8_normalize(table["label"], "NFC")
    return table.set_column(place, table.schema.field(place), labels)


MIN_THREADED_BYTES = 2**24
"""Smaller files are read by one thread: Arrow's threads may abort a process that exits."""


def read_table(content: bytes) -> pa.Table:
    """Return the table of a Parquet file's bytes. Raises OSError or ValueError if they are none.

    `pyarrow.parquet.read_table` would import what reads sets of files, and pandas where it is
    installed, which a search from the command line would wait for.
    """
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        return file.read(use_threads=len(content) > MIN_THREADED_BYTES)


def read_checked(path: Place, sha256: str, remedy: str) -> pa.Table:
    """Return the table in a Parquet file that has this sha256.

    Raises BadData, which ends with the remedy, for a file that is missing, damaged or not a file.
    """
    try:
        if isinstance(path, Path) and path.exists() and not path.is_file():
            raise BadData(f"{path} is not a file; {remedy}")  # a pipe or a device has no end
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BadData(f"{path} is damaged: checksum mismatch; {remedy}")
        return read_table(content)
    except FileNotFoundError:
        raise BadData(f"{path} is missing; {remedy}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); {remedy}") from None


def write_table(path: Path, table: pa.Table, compression: str = "snappy") -> None:
    """Write the table as Parquet, whole or not at all."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            pq.write_table(table, file, compression=compression)

    write_whole(path, write)


def check_unique(ids: pa.ChunkedArray, where: str) -> None:
    """Raise BadData, which names an id, if ids are not unique."""
    if len(ids.unique()) == len(ids):
        return
    counts = ids.value_counts()
    twice = next(entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1)
    raise BadData(f"duplicate id '{twice}' in {where}; leave out the set or row that repeats it")
