"""Embeddings on disk: a folder of Parquet shards and a manifest.

Shard `part-00000.parquet` holds the columns id, label, path and embedding; `manifest.json` says
which encoder made them from which source, and each shard's rows and sha256. docs/formats.md
writes the format out.

A shard is never changed. If some of its images are gone or were encoded again, its other rows are
written into a new shard. A run that was killed continues after its last complete shard, and ends
with the same files as an uninterrupted run.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.contracts import Vectors
from retrieval.errors import BadData, BadInput
from retrieval.labels import as_ids, as_labels
from retrieval.storage.files import (
    write_whole,
)
from retrieval.storage.names import restored, storable
from retrieval.storage.places import Place, place_of
from retrieval.storage.roots import at_moved_roots
from retrieval.storage.sets.manifest import (
    FILE_FIELDS,
    LATER_FIELDS,
    PHOTO_FIELDS,
    THUMBNAIL_FIELD,
    Dtype,
    Facts,
    Shard,
    Skipped,
)
from retrieval.storage.tables import read_checked, with_nfc_labels


class FileFacts(NamedTuple):
    """Facts about an image file: what tells whether it has changed, and a hash of its bytes.

    photo: values of columns of PHOTO_FIELDS, by name; a column that is missing is null.
    thumbnail: the pixels of `retrieval.images.pixels.thumbnail`; None if it is not known.
    """

    stamp: int
    content: bytes
    photo: Mapping[str, object] = {}
    thumbnail: bytes | None = None


def shard_name(number: int) -> str:
    """Return the file name of the shard."""
    return f"part-{number:05d}.parquet"


def write_shard(
    file: Place,
    facts: Facts,
    ids: Sequence[str],
    labels: Sequence[str | None],
    paths: Sequence[str | None],
    vectors: Vectors,
    skipped: Sequence[Skipped] = (),
    files: Sequence[FileFacts] = (),
) -> Shard:
    """Write a shard's file, whole or not at all; the manifest's entry for it.

    n ids, labels and paths, vectors (n, dim), and the skipped images of the shard.
    Paths are as `open` takes them, and stored as `names.storable` writes them. files: n facts about
    files, if the images are files; their paths are then stored relative to the source's root.
    Raises BadInput if a vector is not finite, also as float16.
    """
    dtype = np.float16 if facts.dtype is Dtype.FLOAT16 else np.float32
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(vectors, dtype=dtype)
    finite = np.isfinite(stored).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        remedy = "use --dtype float32" if np.isfinite(vectors[row]).all() else "correct the encoder"
        raise BadInput(f"the embedding of {ids[row]} is not finite as {facts.dtype}; {remedy}")
    columns = [
        pa.array(as_ids(ids), pa.string()),
        pa.array(as_labels(labels), pa.string()),
        pa.array(_stored_paths(ids, paths, facts), pa.string()),
        pa.FixedSizeListArray.from_arrays(
            pa.array(stored.reshape(-1)), type=facts.schema.field("embedding").type
        ),
    ]
    if facts.has_files:
        columns += [
            pa.array([each.stamp for each in files], FILE_FIELDS[0].type),
            pa.array([each.content for each in files], FILE_FIELDS[1].type),
            *(
                pa.array([each.photo.get(field.name) for each in files], field.type)
                for field in PHOTO_FIELDS
            ),
            pa.array([each.thumbnail for each in files], THUMBNAIL_FIELD.type),
        ]
    return write_shard_table(file, pa.table(columns, schema=facts.schema), len(skipped))


def write_shard_table(file: Place, table: pa.Table, skipped: int) -> Shard:
    """Write the table of a shard, whole or not at all; the manifest's entry for it."""
    content = _parquet(table)
    write_whole(file, lambda partial: partial.write_bytes(content))
    sha256 = hashlib.sha256(content).hexdigest()
    return Shard(file.name, len(table), skipped, len(content), sha256)


def _stored_paths(
    ids: Sequence[str], paths: Sequence[str | None], facts: Facts
) -> Sequence[str | None]:
    """Return the paths as text. The path of a file below its root is its id."""
    return as_ids(ids) if facts.has_files else [path and storable(path) for path in paths]


def read_shard(folder: Place, shard: Shard, facts: Facts) -> pa.Table:
    """Return the table of one shard, with whole paths. Raises the errors of `read_stored`."""
    table = read_stored(folder, shard, facts)
    if facts.source.root is not None:
        place = table.schema.get_field_index("path")
        paths = whole_paths(table["path"], facts.source.root)
        table = table.set_column(place, table.schema.field(place), paths)
    return at_moved_roots(table)


def whole_paths(paths: pa.ChunkedArray, root: str) -> pa.Array:
    """Return stored paths below the root, which is a folder or a URL, as paths to open."""
    place = place_of(restored(root))
    if isinstance(place, Path):
        head = storable(str(place)).rstrip("/")
        whole = [path and f"{head}/{path}" for path in paths.to_pylist()]
    else:
        whole = [path and storable(str(place / restored(path))) for path in paths.to_pylist()]
    return pa.array(whole, pa.string())


def read_stored(folder: Place, shard: Shard, facts: Facts) -> pa.Table:
    """Return the table of one shard as it is in the file, with paths relative to the root.

    Columns that an earlier version did not write are null. The table is checked: hash, schema,
    rows, finiteness. Raises BadData.
    """
    path = folder / shard.file
    remedy = "run the same 'retr encode' again to write it again"
    table = read_checked(path, shard.sha256, remedy)
    if facts.has_files:
        table = with_later_columns(table)
    if not table.schema.equals(facts.schema):
        raise BadData(f"{path} has other columns than its manifest says; {remedy}")
    if len(table) != shard.rows:
        raise BadData(f"{path} has {len(table):,} rows, the manifest says {shard.rows:,}; {remedy}")
    if table["embedding"].null_count or table["id"].null_count:
        raise BadData(f"{path} has rows without id or embedding; {remedy}")
    finite = np.isfinite(vectors_of(table)).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise BadData(f"{path} has NaN or infinity in row {row} ({table['id'][row]}); {remedy}")
    return with_nfc_labels(table)


def with_later_columns(table: pa.Table) -> pa.Table:
    """Return the table of a shard with LATER_FIELDS, which are null in shards of version 3."""
    for field in LATER_FIELDS:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def read_columns(file: Place, names: Sequence[str]) -> pa.Table | None:
    """Return columns of a shard, unchecked; None if it does not have them all.

    Raises BadData for a file that cannot be read.
    """
    try:
        with file.open("rb") as stream, pq.ParquetFile(stream) as parquet:
            if not {*names} <= {*parquet.schema_arrow.names}:
                return None
            return parquet.read([*names], use_threads=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadData(
            f"cannot read {file} ({error}); run the same 'retr encode' again to write it again"
        ) from None


def vectors_of(table: pa.Table) -> np.ndarray[tuple[int, int], np.dtype[Any]]:
    """Return the column `embedding` as an array (n, dim) of the type on disk.

    No copy is made of a table that was read from one shard.
    """
    column = table["embedding"]
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    array: np.ndarray[tuple[int, int], np.dtype[Any]] = (
        chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), column.type.list_size)
    )
    return array


def _parquet(table: pa.Table) -> pa.Buffer:
    stream = pa.BufferOutputStream()
    pq.write_table(
        table,
        stream,
        row_group_size=max(1, len(table)),
        use_dictionary=False,
        # Embeddings do not compress; ids and paths do.
        compression={name: "zstd" for name in table.column_names if name != "embedding"},
        write_statistics=["id", "label", "path"],
    )
    return stream.getvalue()
