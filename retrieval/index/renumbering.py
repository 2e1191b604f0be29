"""Give the rows of an index new numbers, and leave some out, with any backend.

So an index follows embeddings that changed: deleted rows stay in the library's file and are never
returned, and all rows have the order of the embeddings. Deleted rows cost memory and time. An index
with more of them than `MAX_DELETED` is built again.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.contracts import Blocks, Growing, Hits, Index, Json, Mask, Readable, Rows, Vectors
from retrieval.errors import BadData, BadInput
from retrieval.hits import sort
from retrieval.storage.tables import read_table, write_table

NUMBERING = "numbering.parquet"
"""The file of an index folder with the row in the library's file of each row of the index."""

MAX_DELETED = 0.2  # share of all rows of the library's file

MORE_HITS = 8  # asked for beyond k, besides the share of deleted rows


class Renumbered:
    """Some rows of an index, in any order."""

    def __init__(self, inner: Index, rows: Rows) -> None:
        """rows: for each row, its row in the inner index."""
        self.inner = inner
        self._set(rows)

    def _set(self, rows: Rows) -> None:
        self.rows = rows
        self._number = np.full(len(self.inner) + 1, -1, np.int64)  # the last is that of row -1
        self._number[rows] = np.arange(len(rows))

    @property
    def dim(self) -> int:
        """Number of dimensions of the vectors."""
        return self.inner.dim

    @property
    def deleted(self) -> int:
        """Number of rows of the inner index that are left out."""
        return len(self.inner) - len(self.rows)

    @property
    def details(self) -> Mapping[str, Json]:
        """Details of the inner index, and the number of rows that are left out."""
        return {**self.inner.details, "deleted": self.deleted}

    def __len__(self) -> int:
        return len(self.rows)

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows; see `Index`.

        More hits than k are asked for, and those that are left out are dropped. Queries that lack
        hits then are searched again with a mask, which takes longer.
        """
        if among is not None or k > len(self):
            mask = np.zeros(len(self.inner), np.bool_)
            mask[self.rows if among is None else self.rows[among]] = True
            return self._renumbered(self.inner.search(queries, k, mask), k)
        more = MORE_HITS + 2 * k * self.deleted // len(self) if self.deleted else 0
        hits = self._renumbered(self.inner.search(queries, min(k + more, len(self.inner))), k)
        lacking = np.flatnonzero(hits.rows[:, -1] < 0)
        if len(lacking):
            again = self.search(queries[lacking], k, np.ones(len(self), np.bool_))
            hits.rows[lacking], hits.distances[lacking] = again.rows, again.distances
        return hits

    def _renumbered(self, hits: Hits, k: int) -> Hits:
        """Return the k nearest of the inner index's hits, without rows that are left out."""
        rows = self._number[hits.rows]
        distances = np.where(rows < 0, np.float32(np.inf), hits.distances)
        sort(rows, distances)
        return Hits(np.ascontiguousarray(rows[:, :k]), np.ascontiguousarray(distances[:, :k]))

    def add(self, vectors: Vectors) -> None:
        """Add vectors (n, dim) behind the others. Raises BadInput if the backend cannot."""
        if not isinstance(self.inner, Growing):
            raise BadInput("the backend cannot add rows; index all rows again")
        before = len(self.inner)
        self.inner.add(vectors)
        self._set(np.concatenate([self.rows, np.arange(before, len(self.inner))]))

    def delete(self, rows: Rows) -> None:
        """Delete these rows, all different, and fewer than there are."""
        self._set(np.delete(self.rows, rows))

    def ordered(self, order: Rows) -> Index:
        """Return the index with its rows in this order, of their present numbers."""
        rows = self.rows[order]
        whole = len(rows) == len(self.inner) and bool((rows == np.arange(len(rows))).all())
        return self.inner if whole else Renumbered(self.inner, rows)

    def stored(self) -> Blocks | None:
        """Return the vectors; None if the inner index has them in another order, or not at all."""
        if not isinstance(self.inner, Readable) or not (np.diff(self.rows) > 0).all():
            return None
        blocks = self.inner.stored()
        return None if blocks is None else _Kept(blocks, self._number[:-1] >= 0)

    def save(self, folder: Path) -> None:
        """Write the files of the inner index, and the numbers of the rows."""
        self.inner.save(folder)
        write_table(folder / NUMBERING, pa.table({"row": pa.array(self.rows, pa.int64())}), "zstd")


class _Kept:
    """The vectors of the rows of a mask."""

    def __init__(self, blocks: Blocks, mask: Mask) -> None:
        self._blocks = blocks
        self._mask = mask
        self.rows = int(mask.sum())
        self.dim = blocks.dim

    def __iter__(self) -> Iterator[Vectors]:
        start = 0
        for block in self._blocks:
            yield block[self._mask[start : start + len(block)]]
            start += len(block)


def renumbered(inner: Index, folder: Path) -> Index:
    """Return the index with the numbers that the folder has for its rows. Raises BadData."""
    path = folder / NUMBERING
    if not path.is_file():
        return inner
    try:
        column = read_table(path.read_bytes())["row"].combine_chunks()
        if column.type != pa.int64() or column.null_count:
            raise ValueError("the rows are not numbers")
        # `to_numpy` would import pandas if it is installed, which a search does not wait for.
        rows = np.frombuffer(column.buffers()[1], np.int64, len(column), 8 * column.offset)
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); index again") from None
    if not len(rows) or rows.min() < 0 or rows.max() >= len(inner):
        raise BadData(f"{path} names rows that the index does not have; index again")
    return Renumbered(inner, rows)


def plain(index: Index) -> Index:
    """Return the index of the library, whose rows may have other numbers."""
    return index.inner if isinstance(index, Renumbered) else index
