"""Columns of images in a folder from `metadata.csv` and `metadata.jsonl` beside them.

The files are those of Hugging Face's ImageFolder: the column `file_name` is the path of an image,
relative to the folder of the file, and all others describe it. A column `label` is the image's
label.
"""

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import BadSource
from retrieval.images.source import digest
from retrieval.storage.names import storable
from retrieval.storage.places import Place
from retrieval.storage.sets.columns import FurtherColumns, plain_columns, unified

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"

Facts = Mapping[str, object]
"""Metadata files, by their path below the root, each with a fact that changes when it does."""


def fingerprint_of(files: Facts) -> str | None:
    """Return the fingerprint of the metadata files; None without any."""
    return digest(files.items()) if files else None


def read_metadata(root: Place, files: Facts, paths: Iterable[str]) -> FurtherColumns | None:
    """Return the columns of the metadata files; None without any.

    root: the folder that paths are relative to. paths: those of the images.

    Raises BadSource for a file that cannot be read, and for an image that is named twice.
    """
    if not files:
        return None
    tables, notes = [], []
    for path in files:
        table = _read(root / path)
        if FILE_NAME not in table.column_names:
            notes.append(f"{root / path} has no column {FILE_NAME}, and was not used")
            continue
        ids = [_id(posixpath.dirname(path), each) for each in table[FILE_NAME].to_pylist()]
        columns, others = _columns(root / path, table.drop_columns(FILE_NAME))
        if others:
            notes.append(
                f"{root / path}: columns that hold several values were not used: "
                f"{', '.join(others)}"
            )
        tables.append(pa.table({"id": pa.array(ids, pa.string()), **columns}))
    fingerprint = fingerprint_of(files)
    assert fingerprint is not None
    if not tables:
        return FurtherColumns(pa.table({"id": pa.array([], pa.string())}), fingerprint, (*notes,))
    table, missing = _of_images(unified(tables), paths)
    if missing:
        notes.append(
            f"metadata in {root} describes {missing:,} file{'' if missing == 1 else 's'} that "
            f"{'is' if missing == 1 else 'are'} not among the images"
        )
    counts = table["id"].value_counts()
    if twice := next((each["values"] for each in counts if each["counts"].as_py() > 1), None):
        raise BadSource(f"metadata in {root} describes {twice} twice; leave one of the rows out")
    return FurtherColumns(table, fingerprint, (*notes,))


def _columns(file: Place, table: pa.Table) -> tuple[dict[str, pa.ChunkedArray], list[str]]:
    try:
        return plain_columns(table)
    except pa.ArrowException as error:
        raise _unreadable(file, error) from None


def _of_images(table: pa.Table, paths: Iterable[str]) -> tuple[pa.Table, int]:
    """Return the rows of images that there are, with their ids, and the number of other rows.

    Unicode forms of a name are equal, since systems change them.
    """
    ids = pa.array((storable(path) for path in paths), pa.string())
    known = pc.utf8_normalize(ids, "NFC")
    at = pc.index_in(pc.utf8_normalize(table["id"], "NFC"), value_set=known)
    found = at.is_valid()
    table = table.filter(found)
    matched = pa.chunked_array([ids.take(at.filter(found).combine_chunks())])
    return table.set_column(0, "id", matched), at.null_count


def _id(folder: str, name: object) -> str:
    """Return the id of an image by its name in a metadata file of this folder."""
    path = posixpath.normpath(posixpath.join(folder, str(name)))
    return storable(path)


def _read(file: Place) -> pa.Table:
    try:
        stream = pa.BufferReader(file.read_bytes())
        return _parsed_csv(stream) if file.suffix.lower() == ".csv" else _parsed_lines(stream)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Place, error: Exception) -> BadSource:
    reason = str(error).partition("\n")[0]
    return BadSource(f"cannot read {file} ({reason}); correct it or take it away")


def _parsed_csv(stream: Any) -> pa.Table:
    from pyarrow import csv

    options = csv.ConvertOptions(
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        column_types={FILE_NAME: pa.string(), "label": pa.string()},
    )
    parsing = csv.ParseOptions(newlines_in_values=True)
    return csv.read_csv(stream, parse_options=parsing, convert_options=options)


def _parsed_lines(stream: Any) -> pa.Table:
    from pyarrow import json

    if not stream.size():
        return pa.table({})
    return json.read_json(stream)
