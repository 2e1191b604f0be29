"""Let an index follow embeddings that changed: add what is new, delete what is gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.choices import choice
from retrieval.contracts import Growing, Index, Metric, Rows, Shrinking, Upserting, Vectors
from retrieval.errors import BadData
from retrieval.index.build import partial_folder, shards_of, write_index
from retrieval.index.folder import (
    IndexFacts,
    OpenIndex,
    is_index,
    local_files,
    open_index,
    options_of,
)
from retrieval.index.renumbering import MAX_DELETED, Renumbered, plain
from retrieval.index.row_tables import CONTENTS, RowTables, read_contents
from retrieval.registry import make_indexer
from retrieval.storage.files import locked
from retrieval.storage.places import Place
from retrieval.storage.sets.compatible import joined_rows, with_unique_ids
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.storage.sets.shards import vectors_of
from retrieval.values import named_options

MAX_ADDED = 0.5
"""Share of rows that were added after the build, above which an index is built again.

Its lists, axes and search options were chosen for the first rows.
"""


@dataclass(frozen=True, slots=True)
class Followed:
    """The facts of an index after it followed its embeddings, and numbers of changed rows.

    is_change: whether rows, or their labels, paths or columns, have changed.
    """

    facts: IndexFacts
    added: int = 0
    deleted: int = 0
    is_change: bool = False


def follow_embeddings(
    sets: Sequence[Embeddings],
    backend: str,
    folder: Place,
    metric: Metric | str,
    options: Mapping[str, object] | None = None,
) -> Followed | None:
    """Bring the index in the folder up to date with embeddings of files; return what changed.

    Return None if the index must be built: there is none of this backend, metric and options, it is
    damaged, too many rows changed, or the backend cannot add rows. The new index replaces the old
    one once it is complete.

    Raises the errors of `open_index` and `build_index`.
    """
    metric = choice(Metric, metric)
    sets = with_unique_ids(sets)
    try:
        is_same = is_index(folder) and _may_follow(
            IndexFacts.read(folder), sets, backend, metric, named_options(options)
        )
        if not is_same:
            return None
        with locked(folder):
            return _followed(folder, open_index(folder), sets)
    except BadData:
        return None  # the build replaces a damaged index


def _followed(folder: Place, opened: OpenIndex, sets: Sequence[Embeddings]) -> Followed | None:
    if opened.facts.embeddings == tuple(each.identity for each in sets):
        return Followed(opened.facts)
    change = _Change.between(opened, sets)
    if change.is_large(opened):
        return None
    with partial_folder(folder) as partial:
        index = change.applied(opened.index, sets)
        facts = replace(
            opened.facts,
            embeddings=tuple(each.identity for each in sets),
            deleted=0,
            added=opened.facts.added + len(change.added),
        )
        blocks = shards_of(sets, change.rows, folder)
        facts = write_index(partial, folder, index, change.tables, facts, blocks)
        return Followed(facts, len(change.added), len(change.deleted), is_change=True)


def _may_follow(
    facts: IndexFacts,
    sets: Sequence[Embeddings],
    backend: str,
    metric: Metric,
    options: Mapping[str, object],
) -> bool:
    """Return whether the index is one that a build with these arguments would replace."""
    first = sets[0].facts
    is_same = (facts.backend, facts.metric, facts.dim, facts.encoder.fingerprint) == (
        backend,
        metric,
        first.dim,
        first.encoder.fingerprint,
    )
    if not is_same or facts.parts or CONTENTS not in facts.files:
        return False
    if not all(each.facts.has_files for each in sets):
        return False
    wanted = options_of(make_indexer(backend, {**options, "metric": metric}))
    # An option of None was chosen by the build.
    return all(value in (None, facts.options.get(name)) for name, value in wanted.items())


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """From the rows of an index to those of its embeddings.

    tables: of the embeddings. old: (rows,) for each of their rows, its row in the index, or -1.
    """

    tables: RowTables
    old: Rows
    index_rows: int

    @classmethod
    def between(cls, opened: OpenIndex, sets: Sequence[Embeddings]) -> "_Change":
        rows = joined_rows([each.rows() for each in sets], sets)
        tables = RowTables.of(rows, sets)
        assert tables.contents is not None, "all images are files"
        before = read_contents(local_files(opened.folder, opened.facts), opened.facts.rows)
        keys = _keys(opened.rows["id"], before)
        old = pc.index_in(_keys(rows["id"], tables.contents), value_set=keys).fill_null(-1)
        return cls(tables, np.asarray(old, np.int64), len(opened.rows))

    @property
    def rows(self) -> pa.Table:
        """Ids, labels and paths of the embeddings."""
        return self.tables.rows

    @property
    def added(self) -> Rows:
        """Rows of the embeddings that the index lacks."""
        return np.flatnonzero(self.old < 0)

    @property
    def deleted(self) -> Rows:
        """Rows of the index that the embeddings lack."""
        return np.setdiff1d(np.arange(self.index_rows), self.old)

    def is_large(self, opened: OpenIndex) -> bool:
        """Return whether a new index is better, or the only way."""
        inner = plain(opened.index)
        if not len(self.rows) or len(self.deleted) == self.index_rows:
            return True
        if isinstance(inner, Upserting):
            return False
        if len(self.added) and not isinstance(inner, Growing):
            return True
        if len(inner) - len(opened.index) + len(self.deleted) > MAX_DELETED * len(inner):
            return True
        return opened.facts.added + len(self.added) > MAX_ADDED * len(self.rows)

    def applied(self, index: Index, sets: Sequence[Embeddings]) -> Index:
        """Return the index with its rows deleted, added and in the order of the embeddings."""
        if isinstance(index, Upserting):
            return index.upsert(self.tables.all_columns, self.old, _vectors(sets, self.added))
        numbers = np.full(self.index_rows, -1, np.int64)
        kept = np.setdiff1d(np.arange(self.index_rows), self.deleted)
        numbers[kept] = np.arange(len(kept))
        if len(self.deleted):
            if not isinstance(index, Shrinking):
                index = Renumbered(index, np.arange(len(index)))
            index.delete(self.deleted)
        if len(self.added):
            cast(Growing, index).add(_vectors(sets, self.added))
        order = np.where(self.old < 0, 0, numbers[self.old])
        order[self.added] = len(kept) + np.arange(len(self.added))
        inner = index if isinstance(index, Renumbered) else Renumbered(index, np.arange(len(index)))
        return inner.ordered(order)


def _keys(ids: pa.ChunkedArray, contents: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ids and contents as one column."""
    hashes = pc.cast(contents, pa.binary())
    return pc.binary_join_element_wise(hashes, pc.cast(ids, pa.binary()), b"")


def _vectors(sets: Sequence[Embeddings], rows: Rows) -> Vectors:
    """Return the vectors (n, dim) of these rows, ascending, of all sets."""
    found = np.empty((len(rows), sets[0].facts.dim), np.float32)
    start = 0
    for each in sets:
        for table in each.tables():
            first, last = np.searchsorted(rows, (start, start + len(table)))
            if first < last:
                found[first:last] = vectors_of(table)[rows[first:last] - start]
            start += len(table)
    return found
