"""Write embeddings shard by shard, and continue after an interruption."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.contracts import Vectors
from retrieval.errors import BadData, BadInput
from retrieval.storage.files import (
    check_free,
    made_folder,
    sha256_of,
    write_whole,
)
from retrieval.storage.manifest import MANIFEST, Facts, Manifest, Shard, Skipped
from retrieval.storage.names import restored, storable
from retrieval.storage.places import Place
from retrieval.storage.shards import shard_name, write_shard
from retrieval.storage.tables import read_table

SKIPPED = "skipped.parquet"
SKIPPED_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string()), ("shard", pa.int32())])
_SkippedRow = tuple[str, str, int | None]  # the shard's number is null for a folder


def _is_whole(path: Place, shard: Shard) -> bool:
    """Return whether the shard is intact; in a store only its size is checked."""
    try:
        if isinstance(path, Path):
            return path.is_file() and sha256_of(path) == shard.sha256
        return path.stat().st_size == shard.bytes
    except FileNotFoundError:
        return False


class ShardWriter:
    """Writes embeddings shard by shard into a folder.

    If the folder has complete shards of the same run, it continues after the last of them. The
    caller holds `files.locked(folder)` meanwhile.
    """

    def __init__(
        self,
        folder: Place,
        facts: Facts,
        passed_over: Mapping[str, int] | None = None,
        folders: Sequence[Skipped] = (),
    ) -> None:
        """passed_over: files that look like images and are not read, by suffix. folders: those
        that could not be listed.

        Raises BadInput if the folder holds anything but an earlier state of this run.
        """
        self.folder = folder
        self.facts = facts
        self._folders: list[_SkippedRow] = [(each.path, each.reason, None) for each in folders]
        self._skipped: list[_SkippedRow] = []
        self.manifest = self._resumed()
        if not self.manifest.complete:
            self.manifest = replace(
                self.manifest, passed_over=dict(passed_over or {}), skipped_folders=len(folders)
            )

    def _resumed(self) -> Manifest:
        check_embeddings_folder(self.folder)
        made_folder(self.folder)
        if not (self.folder / MANIFEST).exists():
            return Manifest(self.facts)
        found = Manifest.read(self.folder)
        if found.facts != self.facts:
            raise BadInput(
                f"{self.folder} holds other embeddings: {_difference(found.facts, self.facts)}; "
                "name another folder with --out"
            )
        whole = []
        for shard in found.shards:
            if not _is_whole(self.folder / shard.file, shard):
                break
            whole.append(shard)
        # Written before the manifest, it may tell of a shard that the manifest does not know.
        rows = _read_skipped(self.folder)
        self._skipped = [row for row in rows if row[2] is not None and row[2] < len(whole)]
        return replace(
            found,
            shards=tuple(whole),
            complete=found.complete and len(whole) == len(found.shards),
        )

    @property
    def skipped(self) -> list[Skipped]:
        """The images that could not be read so far, those of earlier runs included."""
        return [Skipped(path, reason) for path, reason, _ in self._skipped]

    @property
    def position(self) -> int:
        """Return the number of the source's images that the shards cover."""
        return min(len(self.manifest.shards) * self.facts.shard_images, self.facts.source.images)

    def write(
        self,
        ids: Sequence[str],
        labels: Sequence[str | None],
        paths: Sequence[str | None],
        vectors: Vectors,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        """Add the next shard and its skipped images; see `write_shard` for arguments and errors."""
        file = self.folder / shard_name(len(self.manifest.shards))
        self.record(write_shard(file, self.facts, ids, labels, paths, vectors, skipped), skipped)

    def record(self, shard: Shard, skipped: Sequence[Skipped] = ()) -> None:
        """Say in the manifest that this is the next shard; its file is in the folder already."""
        if skipped:
            number = len(self.manifest.shards)
            self._skipped += [(s.path, s.reason, number) for s in skipped]
            self._write_skipped()
        self.manifest = replace(self.manifest, shards=(*self.manifest.shards, shard))
        self.manifest.write(self.folder)

    def finish(self) -> Manifest:
        """Say in the manifest that the set is complete."""
        if self._folders:
            self._write_skipped()
        elif not self._skipped:
            (self.folder / SKIPPED).unlink(missing_ok=True)
            self.manifest = replace(self.manifest, skipped_sha256=None)
        self.manifest = replace(self.manifest, complete=True)
        self.manifest.write(self.folder)
        return self.manifest

    def _write_skipped(self) -> None:
        sha256 = _write_skipped(self.folder, [*self._folders, *self._skipped])
        self.manifest = replace(self.manifest, skipped_sha256=sha256)


def check_embeddings_folder(folder: Place) -> None:
    """Raise BadInput if the folder holds files that no run of `retr encode` has left there."""
    before_first_manifest = {SKIPPED, shard_name(0)}
    check_free(folder, MANIFEST, lambda name: name in before_first_manifest)


def _difference(found: Facts, wanted: Facts) -> str:
    """Return the first fact in which two runs differ, for an error message."""
    if found.encoder != wanted.encoder:
        if found.encoder.name != wanted.encoder.name:
            return f"of encoder {found.encoder.name}, not {wanted.encoder.name}"
        return f"of another version of encoder {found.encoder.name}"
    if found.source != wanted.source:
        if found.source.name != wanted.source.name:
            return f"of {found.source.name}, not {wanted.source.name}"
        return f"of {found.source.name} as it was before it changed"
    if found.dtype != wanted.dtype:
        return f"as {found.dtype}, not {wanted.dtype}"
    return f"in shards of {found.shard_images} images, not {wanted.shard_images}"


def _write_skipped(folder: Place, rows: Sequence[_SkippedRow]) -> str:
    """Write the rows of `SKIPPED`; the sha256 of the file."""
    columns = zip(*((storable(path), *others) for path, *others in rows), strict=True)
    table = pa.table([*columns], schema=SKIPPED_SCHEMA)
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    content = stream.getvalue()
    write_whole(folder / SKIPPED, lambda partial: partial.write_bytes(content))
    return hashlib.sha256(content).hexdigest()


def _read_skipped(folder: Place) -> list[_SkippedRow]:
    path = folder / SKIPPED
    if not path.is_file():
        return []
    try:
        table = read_table(path.read_bytes()).cast(SKIPPED_SCHEMA)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); delete the folder and encode again") from None
    return [(restored(row["path"]), row["reason"], row["shard"]) for row in table.to_pylist()]
