"""Write embeddings shard by shard, and continue after an interruption."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.contracts import Vectors
from retrieval.errors import BadInput
from retrieval.storage.files import (
    check_free,
    locked,
    made_folder,
    moved,
    sha256_of,
)
from retrieval.storage.names import storable
from retrieval.storage.places import Place
from retrieval.storage.sets.columns import FurtherColumns, write_columns
from retrieval.storage.sets.manifest import (
    MANIFEST,
    VERSION,
    ColumnsFile,
    Facts,
    Manifest,
    Shard,
    Skipped,
)
from retrieval.storage.sets.shards import read_stored, shard_name, write_shard, write_shard_table
from retrieval.storage.sets.skipped import (
    SKIPPED,
    UPDATE_SKIPPED,
    SkippedRow,
    read_skipped,
    skipped_file,
    skipped_of,
    skipped_row,
    write_skipped,
)

UPDATE = "update.json"
MAX_SMALL_SHARDS = 8
"""Shards beyond twice the number that the rows need, from which small ones are joined."""
_OWN_NAME = re.compile(r"part-\d+\.parquet|(columns|labels)-[0-9a-f]{16}\.parquet")


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

    If the folder has complete shards of the same run, it continues after the last of them. If the
    folder has a complete set whose files have changed since, it writes the shards of an update: the
    set stays as it was until `finish` publishes the new one. The caller holds
    `files.locked(folder)` meanwhile.
    """

    def __init__(
        self,
        folder: Place,
        facts: Facts,
        passed_over: Mapping[str, int] | None = None,
        folders: Sequence[Skipped] = (),
        check_content: bool = False,
    ) -> None:
        """passed_over: files that look like images and are not read, by suffix. folders: those
        that could not be listed. check_content: take a complete set for one to bring up to date,
        even if no file seems to have changed.

        Raises BadInput if the folder holds anything but an earlier state of this set.
        """
        self.folder = folder
        self.facts = facts
        self._folders: list[SkippedRow] = [skipped_row(each, None) for each in folders]
        self._skipped: list[SkippedRow] = []
        self._live: dict[str, NDArray[np.bool_]] = {}
        self.published: Manifest | None = None  # the complete set that is brought up to date
        self.manifest = self._resumed(check_content)
        if self.manifest.complete:
            self._clean()  # the last run may have been killed before it did
        else:
            self.manifest = replace(
                self.manifest, passed_over=dict(passed_over or {}), skipped_folders=len(folders)
            )

    def _resumed(self, check_content: bool) -> Manifest:
        check_embeddings_folder(self.folder)
        made_folder(self.folder)
        if not (self.folder / MANIFEST).exists():
            return Manifest(self.facts)
        found = Manifest.read(self.folder)
        is_old = found.version < VERSION  # its shards lack columns
        is_checked = (check_content or is_old) and found.complete and found.facts.has_files
        if _is_same_run(found.facts, self.facts) and not is_checked:
            self.facts = found.facts
            return self._continued(found, skipped_file(self.folder, found))
        if difference := _difference(found.facts, self.facts):
            raise BadInput(
                f"{self.folder} holds other embeddings: {difference}; "
                "name another folder with --out"
            )
        whole = self._continued(found, skipped_file(self.folder, found))
        if found.complete:
            self.published = replace(whole, complete=True)
            return self._continued(self._update(), self.folder / UPDATE_SKIPPED)
        # Files have changed since the run was killed. Its shards are where this one goes on.
        if not found.facts.has_files:
            whole = Manifest(self.facts)
        return replace(whole, facts=self.facts)

    def _update(self) -> Manifest:
        """Return the shards that an update wrote before it was killed."""
        if (self.folder / UPDATE).exists():
            found = Manifest.read(self.folder, UPDATE)
            if _difference(found.facts, self.facts) is None:
                return replace(found, facts=self.facts)
        return Manifest(self.facts)

    def _continued(self, found: Manifest, skipped: Place) -> Manifest:
        """Return the manifest with its first shards that are whole, and remember what they skip."""
        whole = []
        for shard in found.shards:
            if not _is_whole(self.folder / shard.file, shard):
                break
            whole.append(shard)
        # Written before the manifest, it may tell of a shard that the manifest does not know.
        known = {shard.number for shard in whole}
        self._skipped += [row for row in read_skipped(skipped) if row[2] in known]
        return replace(
            found,
            shards=tuple(whole),
            complete=found.complete and len(whole) == len(found.shards),
        )

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards that are there: of the published set, and of this run."""
        before = () if self.published is None else self.published.shards
        files = {shard.file for shard in before}
        return (*before, *(shard for shard in self.manifest.shards if shard.file not in files))

    @property
    def skipped(self) -> list[Skipped]:
        """The images that could not be read so far, those of earlier runs included."""
        return [skipped_of(row) for row in self._skipped]

    @property
    def skipped_now(self) -> list[Skipped]:
        """The images that this run could not read before it was killed."""
        numbers = {shard.number for shard in self.manifest.shards}
        return [skipped_of(row) for row in self._skipped if row[2] in numbers]

    @property
    def rows(self) -> int:
        """The number of rows that stay, and of those written."""
        return sum(self._live_rows(shard) for shard in self.shards)

    def _live_rows(self, shard: Shard) -> int:
        live = self._live.get(shard.file)
        return shard.rows if live is None else int(live.sum())

    @property
    def position(self) -> int:
        """Return the number of the source's images that the shards cover, without an update."""
        return min(len(self.manifest.shards) * self.facts.shard_images, self.facts.source.images)

    @property
    def next_number(self) -> int:
        """Return the number of the next shard."""
        return max((shard.number + 1 for shard in self.shards), default=0)

    def write(
        self,
        ids: Sequence[str],
        labels: Sequence[str | None],
        paths: Sequence[str | None],
        vectors: Vectors,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        """Add the next shard and its skipped images; see `write_shard` for arguments and errors."""
        file = self.folder / shard_name(self.next_number)
        self.record(write_shard(file, self.facts, ids, labels, paths, vectors, skipped), skipped)

    def record(self, shard: Shard, skipped: Sequence[Skipped] = ()) -> None:
        """Say in the manifest that this is the next shard; its file is in the folder already."""
        if skipped:
            self._skipped += [skipped_row(each, shard.number) for each in skipped]
            self._write_skipped()
        self.manifest = replace(self.manifest, shards=(*self.manifest.shards, shard))
        self.manifest.write(self.folder, MANIFEST if self.published is None else UPDATE)

    def keep(self, live: Mapping[str, NDArray[np.bool_]], skipped: Collection[str]) -> None:
        """Set which rows of the shards that are there stay, and which skipped paths.

        live: for each shard's file, a mask of its rows. It takes effect in `finish`.
        """
        self._live = dict(live)
        self._skipped = [row for row in self._skipped if row[0] in skipped]

    def describe(self, further: FurtherColumns | None) -> None:
        """Set the further columns, which may be none.

        For a complete set this takes effect at once, else in `finish`.
        """
        columns = None
        if further is not None:
            columns = ColumnsFile(*write_columns(self.folder, further), further.fingerprint)
        self.manifest = replace(self.manifest, columns=columns)
        if self.manifest.complete:
            self.manifest.write(self.folder)
            self._clean()

    def finish(self) -> Manifest:
        """Publish the complete set, and delete what it no longer refers to.

        Labels of `retr label` stay with the images that have them.
        """
        assigned = self.manifest if self.published is None else self.published
        is_update = self.published is not None or not all(map(np.all, self._live.values()))
        shards = self._compacted() if is_update else self.shards
        counts = Counter(row[2] for row in self._skipped)
        self.manifest = replace(
            self.manifest,
            shards=tuple(replace(shard, skipped=counts[shard.number]) for shard in shards),
        )
        if self._folders or self._skipped:
            self._write_skipped()
        else:
            self.manifest = replace(self.manifest, skipped_sha256=None)
        self.manifest = replace(
            self.manifest, complete=True, version=VERSION, assigned=assigned.assigned
        )
        self.manifest.write(self.folder)
        self.published = None
        self._clean()
        return self.manifest

    def _compacted(self) -> list[Shard]:
        """Return the shards of which all rows stay, and new ones with the other rows that stay.

        Small shards are joined, too, if they are many.
        """
        size, number = self.facts.shard_images, self.next_number
        is_crowded = len(self.shards) > MAX_SMALL_SHARDS + 2 * -(-self.rows // size)
        written, rewritten, gone = [], [], []
        for shard in self.shards:
            rows = self._live_rows(shard)
            if not rows:
                gone.append(shard.number)
            elif rows < shard.rows or (is_crowded and 2 * rows < size):
                rewritten.append(shard)
            else:
                written.append(shard)
        while rewritten:
            tables: list[pa.Table] = []
            while rewritten and sum(map(len, tables)) < size:
                shard = rewritten.pop(0)
                table = read_stored(self.folder, shard, self.facts).replace_schema_metadata()
                live = self._live.get(shard.file)
                tables.append(table if live is None else table.filter(pa.array(live)))
                self._move_skipped(shard.number, number)
            joined = pa.concat_tables(tables).combine_chunks().cast(self.facts.schema)
            written.append(write_shard_table(self.folder / shard_name(number), joined, 0))
            number += 1
        for each in gone:
            self._move_skipped(each, written[0].number)
        return written

    def _move_skipped(self, old: int, new: int) -> None:
        """Count the images that one shard skipped as skipped by another."""
        self._skipped = [
            (path, reason, new if shard == old else shard, stamp)
            for path, reason, shard, stamp in self._skipped
        ]

    def _clean(self) -> None:
        """Delete shards and files of an update that the manifest of the complete set lacks."""
        if skipped_file(self.folder, self.manifest).name == UPDATE_SKIPPED:
            moved(self.folder / UPDATE_SKIPPED, self.folder / SKIPPED)
        elif not self.manifest.skipped + self.manifest.skipped_folders:
            (self.folder / SKIPPED).unlink(missing_ok=True)
        names = {shard.file for shard in self.manifest.shards} | {*self.manifest.column_files}
        paths: list[Place] = [*self.folder.iterdir()]
        for path in paths:
            is_stale = _OWN_NAME.fullmatch(path.name) and path.name not in names
            if is_stale or path.name in (UPDATE, UPDATE_SKIPPED):
                path.unlink(missing_ok=True)

    def _write_skipped(self) -> None:
        name = SKIPPED if self.published is None else UPDATE_SKIPPED
        sha256 = write_skipped(self.folder / name, [*self._folders, *self._skipped])
        self.manifest = replace(self.manifest, skipped_sha256=sha256)


def check_embeddings_folder(folder: Place) -> None:
    """Raise BadInput if the folder holds files that no run of `retr encode` has left there."""
    before_first_manifest = {SKIPPED, shard_name(0)}
    check_free(folder, MANIFEST, lambda name: name in before_first_manifest)


def relocate_embeddings(folder: Place, new: str) -> None:
    """Let the embeddings in the folder know that their images were moved to the folder `new`.

    Raises the errors of `Manifest.read`, BadInput if the images are not files, Busy if another
    process writes there.
    """
    with locked(folder):
        manifest = Manifest.read(folder)
        source = manifest.facts.source
        if source.root is None:
            raise BadInput(
                f"the images of {folder} are not files below one folder, or it was written by an "
                "earlier version; encode them again"
            )
        root = storable(new)
        name = source.name
        if name == source.root or name.startswith(source.root.rstrip("/") + "/"):
            name = root + name[len(source.root) :]
        source = replace(source, name=name, root=root)
        replace(manifest, facts=replace(manifest.facts, source=source)).write(folder)


def _is_same_run(found: Facts, wanted: Facts) -> bool:
    """Return whether two runs are the same; sets of earlier versions have no root."""
    root = found.source.root if found.source.root is None else wanted.source.root
    return found == replace(wanted, source=replace(wanted.source, root=root))


def _difference(found: Facts, wanted: Facts) -> str | None:
    """Return the first fact for which a run cannot update a set, for an error message."""
    if found.encoder != wanted.encoder:
        if found.encoder.name != wanted.encoder.name:
            return f"of encoder {found.encoder.name}, not {wanted.encoder.name}"
        return f"of another version of encoder {found.encoder.name}"
    if found.source.name != wanted.source.name:
        return f"of {found.source.name}, not {wanted.source.name}"
    if (found.source.first_of is None) != (wanted.source.first_of is None):
        part, whole = ("only the first images", "all")
        if found.source.first_of is None:
            part, whole = whole, part
        return f"of {part} of {found.source.name}, not {whole}"
    if found.source != wanted.source and not wanted.has_files:
        return f"of {found.source.name} as it was before it changed"
    if found.dtype != wanted.dtype:
        return f"as {found.dtype}, not {wanted.dtype}"
    if found.shard_images != wanted.shard_images:
        return f"in shards of {found.shard_images} images, not {wanted.shard_images}"
    return None
