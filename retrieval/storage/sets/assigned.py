"""Labels that `retr label` gave to the images of a set, in one file of the embeddings folder.

They take the place of the labels in the shards. Of a set of files they belong to the content of a
file, so that they follow a renamed image and not a changed one; else they belong to the id.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pyarrow as pa

from retrieval.contracts import Json
from retrieval.errors import BadData
from retrieval.storage.files import locked, write_whole
from retrieval.storage.places import Place
from retrieval.storage.sets.manifest import SCHEMA_KEY, ColumnsFile, Manifest
from retrieval.storage.tables import read_checked

ASSIGNED_FILE = "labels-{}.parquet"
LABEL, PROBABILITY = "label", "label_probability"
REMEDY = "run 'retr label' again"


def assign_labels(
    folder: Place, keys: pa.ChunkedArray, labels: pa.Array, probabilities: pa.Array, about: Json
) -> Manifest:
    """Publish labels (n,) and probabilities (n,) of a set's rows; return its manifest.

    keys: (n,), what the labels belong to: `content` of the files, or else `id`.
    about: how they were found, for people.

    Raises Busy if another process writes there.
    """
    table = pa.table({"key": keys, LABEL: labels, PROBABILITY: probabilities})
    import pyarrow.parquet as pq  # slow to import, as the next: a plain search needs neither

    numbered = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    first = numbered.group_by("key", use_threads=False).aggregate([("row", "min")])["row_min"]
    table = table.take(first)  # copies of a file have one label
    facts = json.dumps(about, sort_keys=True)
    stream = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({SCHEMA_KEY: facts.encode()}), stream, compression="zstd"
    )
    content = stream.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    name = ASSIGNED_FILE.format(sha256[:16])
    with locked(folder):
        write_whole(folder / name, lambda partial: partial.write_bytes(content))
        source = hashlib.sha256(facts.encode()).hexdigest()
        return _published(folder, ColumnsFile(name, sha256, source))


def clear_labels(folder: Place) -> Manifest:
    """Take the labels away again; return the manifest. Raises Busy."""
    with locked(folder):
        return _published(folder, None)


def _published(folder: Place, assigned: ColumnsFile | None) -> Manifest:
    before = Manifest.read(folder)
    manifest = replace(before, assigned=assigned)
    manifest.write(folder)
    old = before.assigned
    if old is not None and (assigned is None or old.file != assigned.file):
        (folder / old.file).unlink(missing_ok=True)
    return manifest


def read_assigned(folder: Place, file: ColumnsFile) -> pa.Table:
    """Return the table of keys, labels and probabilities. Raises BadData for a damaged file."""
    path = folder / file.file
    table = read_checked(path, file.sha256, REMEDY)
    if table.column_names != ["key", LABEL, PROBABILITY]:
        raise BadData(f"{path} has not the columns key, {LABEL} and {PROBABILITY}; {REMEDY}")
    return table


def about_assigned(table: pa.Table) -> Mapping[str, Json]:
    """Return how the labels were found."""
    metadata = cast(dict[bytes, bytes], table.schema.metadata or {})
    found: Any = json.loads(metadata.get(SCHEMA_KEY, b"{}"))
    return found if isinstance(found, dict) else {}


def of_keys(assigned: pa.Table, keys: pa.ChunkedArray) -> pa.Table:
    """Return label and probability of each key; null where there is none."""
    import pyarrow.compute as pc

    at = pc.index_in(keys, value_set=assigned["key"].combine_chunks())
    return assigned.drop_columns("key").take(at)
