"""Plan a run of `retr encode`: which images to read, and which rows stay.

A file whose path, size and time of change are those of a row keeps its row. Every other file is
read. If its bytes are those of a row that does not stay, the embedding is copied from there: the
file was touched, renamed or moved. All other files are encoded.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.contracts import Rows, Vectors
from retrieval.errors import BadImage
from retrieval.images import Item, Source
from retrieval.images.folders.listing import Listed, listed
from retrieval.images.pixels.decoding import read_item
from retrieval.images.source import text
from retrieval.runtime.threads import usable_cores
from retrieval.storage.places import Place
from retrieval.storage.sets.manifest import (
    FILE_FIELDS,
    PHOTO_FIELDS,
    ROW_FIELDS,
    THUMBNAIL_FIELD,
    Facts,
    Shard,
    Skipped,
)
from retrieval.storage.sets.shard_writer import ShardWriter
from retrieval.storage.sets.shards import read_columns, read_stored, vectors_of

NO_ROW = -1
HASHED_IMAGES = 1_000  # at a time, by threads


class Origin(NamedTuple):
    """A row of a shard whose embedding may be copied."""

    id: str
    shard: Shard
    row: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Images that a run has to read, and rows that stay.

    positions: of the source's images to read, ascending; shard `first + i` gets the i-th group of
    `shard_images` of them. copies: rows that do not stay, by the hash of their image's bytes.
    kept: rows that stay. gone: ids of rows whose files are not listed.
    """

    positions: Sequence[int]
    first: int
    facts: Facts
    kept: int = 0
    copies: Mapping[bytes, Sequence[Origin]] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()

    @property
    def numbers(self) -> range:
        """The numbers of the shards to make."""
        return range(self.first, self.first + -(-len(self.positions) // self.facts.shard_images))

    def positions_of(self, number: int) -> Sequence[int]:
        """Return the positions of the images of the shard."""
        start = (number - self.first) * self.facts.shard_images
        return self.positions[start : start + self.facts.shard_images]

    def items(self, source: Source, number: int) -> Iterator[Item]:
        """Yield the items to read, from those of this shard on."""
        start = (number - self.first) * self.facts.shard_images
        if isinstance(self.positions, range):
            return source.items(self.positions.start + start)
        found = listed(source)
        assert found is not None, "only files are read at chosen positions"
        return found.items_at(self.positions[start:])

    def origin(self, item: Item, content: bytes) -> Origin | None:
        """Return the row with these bytes: that of the item's own id, if there are several."""
        found = self.copies.get(content)
        if not found:
            return None
        return next((each for each in found if each.id == item.id), found[0])


def plan_of(
    source: Source,
    writer: ShardWriter,
    check_content: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Return the plan for the source, and tell the writer which rows stay.

    check_content: read the files whose size and time are those of their row, too. `progress` is
    called with the number of these that were read, and their total.
    """
    found = listed(source)
    if found is None or not writer.facts.has_files:
        rest = range(writer.position, len(source))
        return Plan(rest, writer.next_number, writer.facts, kept=writer.rows)
    images = len(source)
    if not writer.shards:  # the names of a million files are not needed in memory
        return Plan(range(images), writer.next_number, writer.facts)
    rows = _Rows.of(writer)
    ids = pa.array((text(path) for path in islice(found.listing.paths(), images)), pa.string())
    row_of = rows.matching(ids, found.listing.stamps)
    if check_content:
        row_of = _checked(found, row_of, rows, progress)
    unmatched = np.flatnonzero(row_of == NO_ROW)
    skipped = _still_skipped(found, unmatched, writer.skipped_now)
    stays = np.zeros(len(rows), np.bool_)
    stays[row_of[row_of != NO_ROW]] = True
    gone = ~np.asarray(pc.is_in(rows.table["id"], value_set=ids))
    for folder in found.left_out.folders:  # their files are unknown
        head = text(Path(folder.path).relative_to(str(found.root))) + "/"
        unlisted = gone & np.asarray(pc.starts_with(rows.table["id"], head))
        stays |= unlisted
        gone &= ~unlisted
    writer.keep(rows.live(stays), {*skipped.values()})
    positions = array("q", (each for each in unmatched.tolist() if each not in skipped))
    return Plan(
        range(images) if len(positions) == images else positions,
        writer.next_number,
        writer.facts,
        kept=int(stays.sum()),
        copies=rows.copies(~stays) if len(positions) else {},
        gone=frozenset(rows.table["id"].filter(pa.array(gone)).to_pylist()),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of all shards that are there, the latest first.

    table: id, stamp, content, whether the columns of photographs are there, and the number and row
    of the shard.
    """

    shards: Mapping[int, Shard]
    table: pa.Table

    @classmethod
    def of(cls, writer: ShardWriter) -> Self:
        """Read the rows. Shards of versions 1 and 2 know nothing about files."""
        schema = pa.schema([ROW_FIELDS[0], *FILE_FIELDS])
        tables = [_numbered(schema.empty_table(), -1, True)]
        shards = {}
        for shard in reversed(writer.shards):
            shards[shard.number] = shard
            file = writer.folder / shard.file
            facts = read_columns(file, schema.names)
            if facts is not None:
                has_columns = read_columns(file, [PHOTO_FIELDS[0].name]) is not None
                numbered = _numbered(facts, shard.number, has_columns)
                tables.append(numbered.replace_schema_metadata())
        return cls(shards, pa.concat_tables(tables))

    def __len__(self) -> int:
        return len(self.table)

    def matching(self, ids: pa.Array, stamps: "array[int]") -> Rows:
        """Return, for each listed file, the row with its id and stamp, or NO_ROW.

        A row without the columns of photographs does not count: its file is read for them.
        """
        of_id = pc.index_in(ids, value_set=self.table["id"]).fill_null(NO_ROW)
        row_of = np.asarray(of_id, np.int64)
        known = row_of != NO_ROW
        stored = np.asarray(self.table["stamp"])[row_of[known]]
        listed_as = np.frombuffer(stamps, np.uint64)[: len(ids)][known]
        lacks = ~np.asarray(self.table["has_columns"])[row_of[known]]
        row_of[np.flatnonzero(known)[(stored != listed_as) | lacks]] = NO_ROW
        return row_of

    def live(self, stays: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
        """Return, for each shard's file, a mask of its rows that stay."""
        live = {shard.file: np.zeros(shard.rows, np.bool_) for shard in self.shards.values()}
        chosen = self.table.filter(pa.array(stays))
        numbers, rows = np.asarray(chosen["shard"]), np.asarray(chosen["row"])
        for number, shard in self.shards.items():
            live[shard.file][rows[numbers == number]] = True
        return live

    def copies(self, chosen: NDArray[np.bool_]) -> dict[bytes, list[Origin]]:
        """Return these rows by the hash of their image's bytes."""
        found: dict[bytes, list[Origin]] = {}
        for row in self.table.filter(pa.array(chosen)).to_pylist():
            origin = Origin(row["id"], self.shards[row["shard"]], row["row"])
            found.setdefault(row["content"], []).append(origin)
        return found


def _numbered(table: pa.Table, number: int, has_columns: bool) -> pa.Table:
    """Return the table with the number of the shard, and the rows' own numbers."""
    table = table.append_column("has_columns", pa.array(np.full(len(table), has_columns)))
    shard = pa.array(np.full(len(table), number, np.int64))
    row = pa.array(np.arange(len(table)))
    return table.append_column("shard", shard).append_column("row", row)


def _checked(
    source: Listed, row_of: Rows, rows: _Rows, progress: Callable[[int, int], None]
) -> Rows:
    """Return `row_of` without files whose bytes are not those of their row."""
    row_of = row_of.copy()
    positions = np.flatnonzero(row_of != NO_ROW)
    contents = rows.table["content"].take(pa.array(row_of[positions])).to_pylist()
    with ThreadPoolExecutor(usable_cores()) as threads:
        for start in range(0, len(positions), HASHED_IMAGES):
            some = positions[start : start + HASHED_IMAGES].tolist()
            hashes = threads.map(_hash_of, source.items_at(some))
            for position, got, stored in zip(some, hashes, contents[start:], strict=False):
                if got not in (None, stored):
                    row_of[position] = NO_ROW
            progress(min(start + HASHED_IMAGES, len(positions)), len(positions))
    return row_of


def _hash_of(item: Item) -> bytes | None:
    """Return the hash of the item's bytes; None if it cannot be read."""
    try:
        return read_item(item)[1]
    except BadImage:
        return None


def _still_skipped(source: Listed, unmatched: Rows, skipped: Sequence[Skipped]) -> dict[int, str]:
    """Return position and path of each file that failed in this run before it was killed."""
    stamps = {each.path: each.stamp for each in skipped if each.stamp is not None}
    if not stamps:
        return {}
    found = {}
    positions = unmatched.tolist()
    for position, path in zip(positions, source.listing.at(positions), strict=True):
        whole = str(source.root / path)
        if stamps.get(whole) == source.listing.stamps[position]:
            found[position] = whole
    return found


class Copier:
    """Copies embeddings and thumbnails of rows. It keeps the last shard that it read."""

    def __init__(self, folder: Place, facts: Facts) -> None:
        self.folder = folder
        self._facts = facts
        self._read = lru_cache(1)(self._columns)

    def _columns(self, shard: Shard) -> tuple[Vectors, pa.ChunkedArray]:
        table = read_stored(self.folder, shard, self._facts)
        return vectors_of(table), table[THUMBNAIL_FIELD.name]

    def copied(self, origins: Sequence[Origin]) -> tuple[Vectors, list[bytes | None]]:
        """Return the embeddings (n, dim) and the thumbnails of these rows.

        Raises the errors of `read_stored`.
        """
        found = np.empty((len(origins), self._facts.dim), np.float32)
        thumbnails: list[bytes | None] = [None] * len(origins)
        for at in sorted(range(len(origins)), key=lambda at: origins[at].shard.number):
            vectors, column = self._read(origins[at].shard)
            found[at] = vectors[origins[at].row]
            thumbnails[at] = column[origins[at].row].as_py()
        return found, thumbnails
