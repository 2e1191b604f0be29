"""Images that could not be read: the file of an embeddings folder that lists them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import BadData
from retrieval.storage.files import sha256_of, write_whole
from retrieval.storage.names import restored, storable
from retrieval.storage.places import Place
from retrieval.storage.sets.manifest import Manifest, Skipped
from retrieval.storage.tables import read_table

SKIPPED = "skipped.parquet"
SKIPPED_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("reason", pa.string()),
        ("shard", pa.int32()),
        ("stamp", pa.uint64()),
    ]
)
UPDATE_SKIPPED = "update-skipped.parquet"

SkippedRow = tuple[str, str, int | None, int | None]
"""Path, reason, number of the shard (None for a folder), and stamp of the file."""


def skipped_of(row: SkippedRow) -> Skipped:
    path, reason, _, stamp = row
    return Skipped(path, reason, stamp)


def skipped_row(skipped: Skipped, shard: int | None) -> SkippedRow:
    return skipped.path, skipped.reason, shard, skipped.stamp


def skipped_file(folder: Place, manifest: Manifest) -> Place:
    """Return the file of skipped images that belongs to the manifest.

    An update that was killed after its manifest leaves the file under the name of the update.
    """
    update = folder / UPDATE_SKIPPED
    is_ready = manifest.complete and update.is_file()
    return update if is_ready and sha256_of(update) == manifest.skipped_sha256 else folder / SKIPPED


def skipped_kinds(folder: Place) -> dict[str, int]:
    """Return the number of images that could not be read, by their suffix in lower case."""
    suffixes = (
        PurePosixPath(path).suffix.lower()
        for path, _, shard, _ in read_skipped(folder / SKIPPED)
        if shard is not None
    )
    return dict(Counter(suffixes))


def write_skipped(file: Place, rows: Sequence[SkippedRow]) -> str:
    """Write the rows of `SKIPPED`; the sha256 of the file."""
    columns = zip(*((storable(path), *others) for path, *others in rows), strict=True)
    table = pa.table([*columns], schema=SKIPPED_SCHEMA)
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    content = stream.getvalue()
    write_whole(file, lambda partial: partial.write_bytes(content))
    return hashlib.sha256(content).hexdigest()


def read_skipped(path: Place) -> list[SkippedRow]:
    if not path.is_file():
        return []
    try:
        table = read_table(path.read_bytes())
        if "stamp" not in table.column_names:  # of version 2
            table = table.append_column("stamp", pa.nulls(len(table), pa.uint64()))
        table = table.cast(SKIPPED_SCHEMA)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); delete the folder and encode again") from None
    return [
        (restored(row["path"]), row["reason"], row["shard"], row["stamp"])
        for row in table.to_pylist()
    ]
