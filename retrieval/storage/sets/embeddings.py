"""Open a complete embeddings folder for reading."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa

from retrieval.contracts import Json, Vectors
from retrieval.errors import BadInput
from retrieval.storage.files import (
    sha256_of,
)
from retrieval.storage.places import Place, place_of
from retrieval.storage.sets.assigned import about_assigned, of_keys, read_assigned
from retrieval.storage.sets.manifest import (
    FILE_FIELDS,
    MANIFEST,
    PHOTO_FIELDS,
    ROW_FIELDS,
    THUMBNAIL_FIELD,
    Facts,
    Manifest,
    Shard,
)
from retrieval.storage.sets.shards import read_columns, read_shard, vectors_of
from retrieval.storage.tables import check_unique
from retrieval.values import shown

ROWS = tuple(field.name for field in ROW_FIELDS)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A complete embeddings folder, opened for reading."""

    folder: Place
    manifest: Manifest
    first: int | None = None  # the number of the first shard; None for all shards
    prefix: str = ""  # start of all ids, to distinguish the sets of an index

    @property
    def identity(self) -> str:
        """Return the identity of this set: the sha256 of its manifest.

        A set of some of the shards adds `#` and the numbers of its first and last shard.
        """
        whole = sha256_of(self.folder / MANIFEST)
        if self.first is None:
            return whole
        return f"{whole}#{self.first}-{self.first + len(self.manifest.shards) - 1}"

    def some(self, first: int, count: int) -> Self:
        """Return the set of `count` shards from the shard `first` on."""
        shards = self.manifest.shards[first : first + count]
        return replace(self, manifest=replace(self.manifest, shards=shards), first=first)

    @property
    def facts(self) -> Facts:
        """Return the facts of the set."""
        return self.manifest.facts

    def __len__(self) -> int:
        return self.manifest.rows

    def tables(self) -> Iterator[pa.Table]:
        """Yield the table of each shard. Raises BadData for one that is not as listed.

        A label is that of `retr label`, or else of a table beside the images, if one gives it.
        """
        further, assigned = self._further(), self._assigned()
        for shard in self.manifest.shards:
            table = read_shard(self.folder, shard, self.facts)
            if further is not None and "label" in further.column_names:
                table = _labeled(table, _labels_of(further, table["id"]))
            if assigned is not None:
                keys = table["content" if self.facts.has_files else "id"]
                table = _relabeled(table, assigned, keys)
            if self.prefix:
                place = table.schema.get_field_index("id")
                table = table.set_column(
                    place, table.schema.field(place), self._prefixed(table["id"])
                )
            yield table

    def ids(self) -> pa.ChunkedArray:
        """Return the ids of all rows, without reading or checking the embeddings."""
        chunks = [pa.array([], pa.string())]
        for shard in self.manifest.shards:
            table = read_columns(self.folder / shard.file, ["id"])
            if table is not None:
                chunks.append(self._prefixed(table["id"]))
        return pa.chunked_array(chunks)

    def files(self) -> pa.Table:
        """Return the columns stamp and content of all rows; null for images that are not files."""
        schema = pa.schema([field.with_nullable(True) for field in FILE_FIELDS])
        tables = [schema.empty_table()]
        for shard in self.manifest.shards:
            table = read_columns(self.folder / shard.file, schema.names)
            if table is None:
                columns = [pa.nulls(shard.rows, field.type) for field in schema]
                table = pa.table(columns, schema=schema)
            tables.append(table.cast(schema))
        return pa.concat_tables(tables)

    def thumbnails(self) -> pa.ChunkedArray:
        """Return the thumbnails of all rows, without checking the shards; null if not stored."""
        chunks = [pa.array([], THUMBNAIL_FIELD.type)]
        for shard in self.manifest.shards:
            table = read_columns(self.folder / shard.file, [THUMBNAIL_FIELD.name])
            if table is None:
                chunks.append(pa.nulls(shard.rows, THUMBNAIL_FIELD.type))
            else:
                chunks += table[THUMBNAIL_FIELD.name].chunks
        return pa.chunked_array(chunks)

    def contents(self) -> pa.ChunkedArray:
        """Return the hashes of the image files of all rows, without checking the shards.

        Raises BadInput if the images are not files.
        """
        if not self.facts.has_files:
            raise BadInput(f"the images of {self.folder} are not files, which have hashes")
        return self.files()["content"]

    def columns(self) -> pa.Table:
        """Return the columns that filters can name, of all rows, without checking the shards.

        They are those of PHOTO_FIELDS, if the images are files, and those of tables beside the
        images but for their labels. Labels of `retr label` add their probability. Raises BadData
        for a damaged file.
        """
        from retrieval.storage.sets.columns import aligned, overlaid  # a search does not need them

        photo = pa.table({})
        if self.facts.has_files:
            photo = pa.concat_tables([self._photo_columns(s) for s in self.manifest.shards])
        further, assigned = self._further(), self._assigned()
        if further is not None:
            names = [name for name in further.column_names if name != "label"]
            photo = overlaid(photo, aligned(further.select(names), replace(self, prefix="").ids()))
        if assigned is not None:
            photo = overlaid(photo, of_keys(assigned, self.keys()).drop_columns("label"))
        return photo

    def keys(self) -> pa.ChunkedArray:
        """Return what the labels of `retr label` belong to, of all rows: content, or id."""
        return self.contents() if self.facts.has_files else replace(self, prefix="").ids()

    def assigned(self) -> Mapping[str, Json]:
        """Return how `retr label` found the labels; empty if it found none."""
        table = self._assigned()
        return {} if table is None else about_assigned(table)

    def _assigned(self) -> pa.Table | None:
        file = self.manifest.assigned
        return None if file is None else read_assigned(self.folder, file)

    def _photo_columns(self, shard: Shard) -> pa.Table:
        names = [field.name for field in PHOTO_FIELDS]
        table = read_columns(self.folder / shard.file, names)
        if table is None:  # of version 3
            columns = [pa.nulls(shard.rows, field.type) for field in PHOTO_FIELDS]
            return pa.table(columns, schema=pa.schema(PHOTO_FIELDS))
        return table.replace_schema_metadata()

    def _further(self) -> pa.Table | None:
        """Return the table of further columns; None without one."""
        from retrieval.storage.sets.columns import read_further

        file = self.manifest.columns
        return None if file is None else read_further(self.folder, file.file, file.sha256)

    def _prefixed(self, ids: pa.ChunkedArray) -> pa.Array:
        return pa.array([self.prefix + each for each in ids.to_pylist()], pa.string())

    def vectors(self) -> Vectors:
        """Return all embeddings, (n, dim) float32."""
        return self.read()[1]

    def rows(self) -> pa.Table:
        """Return the table of id, label and path. Raises the errors of `read`."""
        return self._joined([table.select([*ROWS]) for table in self.tables()])

    def read(self) -> tuple[pa.Table, Vectors]:
        """Return the table of id, label and path, and the embeddings (n, dim), in the same order.

        Raises BadData for a damaged shard, an embedding that is not finite, or an id that
        stands twice.
        """
        vectors = np.empty((len(self), self.facts.dim), np.float32)
        rows = []
        start = 0
        for table in self.tables():
            vectors[start : start + len(table)] = vectors_of(table)
            rows.append(table.select([*ROWS]))
            start += len(table)
        return self._joined(rows), vectors

    def _joined(self, rows: Sequence[pa.Table]) -> pa.Table:
        none = pa.schema(ROW_FIELDS).empty_table()
        joined = pa.concat_tables([none, *(table.replace_schema_metadata() for table in rows)])
        check_unique(joined["id"], str(self.folder))
        return joined


def _labeled(table: pa.Table, labels: pa.ChunkedArray) -> pa.Table:
    """Return the table of a shard with these labels, where they are not null."""
    import pyarrow.compute as pc

    return _with_labels(table, pc.coalesce(labels, table["label"]))


def _with_labels(table: pa.Table, labels: pa.ChunkedArray) -> pa.Table:
    place = table.schema.get_field_index("label")
    return table.set_column(place, table.schema.field(place), labels)


def _relabeled(table: pa.Table, assigned: pa.Table, keys: pa.ChunkedArray) -> pa.Table:
    """Return the table of a shard with the assigned labels, which may be null, of these keys."""
    import pyarrow.compute as pc

    known = pc.is_in(keys, value_set=assigned["key"].combine_chunks())
    labels = of_keys(assigned, keys)["label"]
    return _with_labels(table, pc.if_else(known, labels, table["label"]))


def _labels_of(further: pa.Table, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the labels of a table beside the images, for these ids."""
    import pyarrow.compute as pc

    from retrieval.storage.sets.columns import aligned

    labels = aligned(further.select(["id", "label"]), ids)["label"]
    return pc.utf8_normalize(pc.cast(labels, pa.string()), "NFC")


def open_embeddings(folder: Place | str) -> Embeddings:
    """Open the embeddings in the folder, or at the URL.

    Raises BadInput if it is not an embeddings folder or not complete, BadData if it is damaged.
    """
    folder = place_of(folder)
    manifest = Manifest.read(folder)
    if not manifest.complete:
        covered = min(
            len(manifest.shards) * manifest.facts.shard_images, manifest.facts.source.images
        )
        raise BadInput(
            f"{folder} is not complete: {covered:,} of {manifest.facts.source.images:,} images "
            "are encoded; run the same 'retr encode' again to continue"
        )
    return Embeddings(folder, manifest)


def embeddings_list(sets: Any) -> list[Embeddings]:
    """Return the sets as a list; one set becomes a list of one.

    Raises BadInput for other objects, such as the name of a folder that is not opened.
    """
    each = [sets] if isinstance(sets, Embeddings) else sets
    if isinstance(each, Iterable) and not isinstance(each, str | bytes):
        found = list(each)
        if all(isinstance(one, Embeddings) for one in found):
            return found
    raise BadInput(f"the embeddings are {shown(sets)}; open them with open_embeddings")
