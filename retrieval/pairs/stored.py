"""Thumbnails that sets of embeddings hold, of the images that have not changed since.

A file counts as unchanged if its path, size and time of change are those of its row. Files in a
store are not asked.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.contracts import Images
from retrieval.images.folders.folder import fact_of
from retrieval.images.folders.listing import stamp
from retrieval.runtime.threads import usable_cores
from retrieval.storage.names import restored
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.storage.sets.manifest import THUMBNAIL_SIDE

FILES_PER_TASK = 1024


class StoredThumbnails(NamedTuple):
    """Thumbnails (n, side, side, 3) of rows. known: (n,), False for those that are not stored."""

    pixels: Images
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, embeddings: Embeddings) -> Self:
        """Return the thumbnails of a set. Those of files that have changed are not known."""
        column = embeddings.thumbnails()
        shape = (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
        found = cls(np.zeros((len(column), *shape), np.uint8), ~np.asarray(column.is_null()))
        start = 0
        for chunk in column.chunks:
            end = start + len(chunk)
            if found.known[start:end].any():
                content = np.frombuffer(chunk.buffers()[1], np.uint8)
                size = found.pixels[0].size
                some = content[chunk.offset * size : (chunk.offset + len(chunk)) * size]
                found.pixels[start:end] = some.reshape(-1, *shape)
            start = end
        if found.known.any():
            found.known[:] &= unchanged(embeddings, np.flatnonzero(found.known))
        return found


def stored_thumbnails(sets: Sequence[Embeddings]) -> list[StoredThumbnails]:
    """Return the thumbnails of each set. Raises the errors of `Embeddings.rows`."""
    return [StoredThumbnails.of(each) for each in sets]


def unchanged(embeddings: Embeddings, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return a mask of all rows of the set: those of `rows` with an unchanged file."""
    chosen = pa.array(rows)
    described = embeddings.rows().take(chosen)
    stamps = embeddings.files()["stamp"].take(chosen).to_pylist()
    ids, paths = described["id"].to_pylist(), described["path"].to_pylist()

    def check(start: int) -> list[bool]:
        some = slice(start, start + FILES_PER_TASK)
        return [*map(is_unchanged, ids[some], paths[some], stamps[some])]

    found = np.zeros(len(embeddings), np.bool_)
    with ThreadPoolExecutor(usable_cores()) as threads:
        for start, answers in zip(
            range(0, len(rows), FILES_PER_TASK),
            threads.map(check, range(0, len(rows), FILES_PER_TASK)),
            strict=True,
        ):
            found[rows[start : start + FILES_PER_TASK]] = answers
    return found


def is_unchanged(id_: str, path: str | None, stored: int) -> bool:
    """Return whether the file has the stored stamp. A file in a store is not asked."""
    if path is None or "://" in path:
        return True
    return stamp(fact_of(tuple(restored(id_).split("/")), restored(path))) == stored
