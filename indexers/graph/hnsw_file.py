"""Check a file of hnswlib before hnswlib reads it, because hnswlib does not check it.

The file has three parts:
- a header;
- for each row, an element of level 0: a count of links and a mark, the links, the vector, and the
  label;
- for each row, the size of its links on higher levels, then for each of these levels the count of
  links and the links.
"""

import struct
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import BadData

# In the order of saveIndex: offset of level 0, capacity, rows, bytes per element, offset of an
# element's label, offset of its vector, highest level, entry point, M above level 0, M at level 0,
# M, 1 / ln M, ef_construction.
HEADER = struct.Struct("<6QiI3QdQ")
LABEL_BYTES = 8
WORD_BYTES = 4  # size of a link and of a count of links
COUNT_MASK = 0xFFFF  # bits of the count; higher bits mark a deletion
BLOCK_ELEMENTS = 1 << 18  # elements checked in one step

Words = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Header:
    """Numbers of the header from which the others follow."""

    rows: int
    element: int  # bytes
    dim: int
    top: int  # the highest level
    entry: int  # the row where a walk begins
    links: int  # at most, on each level above 0
    links_0: int  # at most, on level 0

    @classmethod
    def of(cls, content: bytes) -> Self | None:
        """Parse the first bytes of a file; return None if they contradict each other."""
        if len(content) < HEADER.size:
            return None
        level0, room, rows, element, label, vector, top, entry, m, m0, _, _, _ = HEADER.unpack(
            content[: HEADER.size]
        )
        dim, rest = divmod(label - vector, 4)
        consistent = (
            level0 == 0
            and dim >= 1
            and rest == 0
            and vector == WORD_BYTES * (m0 + 1)
            and element == label + LABEL_BYTES
            and entry < rows == room  # a larger capacity would allocate more than the file's size
            and 1 <= m <= m0
            and top >= 0
        )
        return cls(rows, element, dim, top, entry, m, m0) if consistent else None


def checked_dim(path: Path) -> int:
    """Return the dimension of the vectors in the file, which `load_index` needs.

    Raises BadData if the file is missing, truncated, or has links out of range.
    """
    if not path.is_file():
        raise BadData(f"{path} not found; build the index again")
    with path.open("rb") as file:
        header = Header.of(file.read(HEADER.size))
    if header is None:
        raise _damaged(path, "header")
    if path.stat().st_size < HEADER.size + header.rows * (header.element + WORD_BYTES):
        raise _damaged(path, "size")
    content = np.memmap(path, np.uint8, "r")
    levels = _levels(content[HEADER.size + header.rows * header.element :], header)
    if levels is None or levels[header.entry] < header.top:
        raise _damaged(path, "levels")
    if not _elements_fit(content[HEADER.size :], header):
        raise _damaged(path, "links")
    return header.dim


def _elements_fit(content: NDArray[np.uint8], header: Header) -> bool:
    """Return whether the links of level 0 are in range, and each row is one label."""
    named = np.zeros(header.rows, np.bool_)
    for start in range(0, header.rows, BLOCK_ELEMENTS):
        rows = min(BLOCK_ELEMENTS, header.rows - start)
        place = start * header.element
        words = _words(content, place, rows, 1 + header.links_0, header.element)
        labels: NDArray[np.uint64] = np.ndarray(
            (rows,),
            "<u8",
            content[place:].data,
            header.element - LABEL_BYTES,
            (header.element,),
        )
        if not _links_fit(words[:, 0], words[:, 1:], header.links_0, header.rows):
            return False
        if labels.max() >= header.rows:
            return False
        named[labels] = True
    return bool(named.all())


def _links_fit(counts: Words, links: Words, most: int, rows: int) -> bool:
    if int((counts & COUNT_MASK).max(initial=0)) > most:
        return False
    if links.max(initial=0) < rows:
        return True
    there = (
        np.arange(links.shape[1]) < (counts & COUNT_MASK)[:, None]
    )  # entries after the count are not used
    return bool((links[there] < rows).all())


def _levels(content: NDArray[np.uint8], header: Header) -> NDArray[np.int64] | None:
    """Return the highest level of each row; None if links are out of range or truncated."""
    if len(content) % WORD_BYTES:
        return None
    words: Words = content.view("<u4")
    per_level = 1 + header.links  # words
    nonzero = np.flatnonzero(words)
    filled, values = nonzero.tolist(), words[nonzero].tolist()  # lists are faster one by one
    levels = np.zeros(header.rows, np.int64)
    row, place, following = 0, 0, 0
    blocks = []
    while True:
        following = bisect_left(filled, place, following)
        if following == len(filled):
            row += len(words) - place
            break
        size_at = filled[following]
        row += size_at - place  # a zero for each row that is only on level 0
        level, rest = divmod(values[following], WORD_BYTES * per_level)
        place = size_at + 1 + level * per_level
        if rest or row >= header.rows or level > header.top or place > len(words):
            return None
        levels[row] = level
        blocks.append((row, size_at + 1))
        row += 1
    if row != header.rows:
        return None
    for level in range(1, header.top + 1):
        here = [start + (level - 1) * per_level for row, start in blocks if levels[row] >= level]
        if not here:
            return None
        found = words[np.array(here)[:, None] + np.arange(per_level)]
        counts = found[:, 0] & COUNT_MASK
        if counts.max() > header.links:
            return None
        links = found[:, 1:][np.arange(header.links) < counts[:, None]]
        # hnswlib reads the links of a linked row on this level, which must exist.
        if links.size and (links.max() >= header.rows or (levels[links] < level).any()):
            return None
    return levels


def _words(content: Any, place: int, rows: int, columns: int, stride: int) -> Words:
    return np.ndarray((rows, columns), "<u4", content[place:].data, 0, (stride, WORD_BYTES))


def _damaged(path: Path, what: str) -> BadData:
    return BadData(f"{path} is damaged (hnswlib's {what}); build the index again")
