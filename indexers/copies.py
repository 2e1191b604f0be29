"""Copies: rows with the same vector up to rounding, which an index holds only once.

A graph that links every copy fills their links with each other. A walk that reaches them cannot
leave, and rows elsewhere are missed. Where candidates are found by codes, copies of one vector take
the places of all others. Such indices therefore hold each vector once, and `Copies` keeps which
rows share it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Blocks, Json, Mask, Metric, Rows, Vectors
from retrieval.errors import BadData
from retrieval.hits import Fetched, Found, Nearest, checked_blocks
from retrieval.storage.tables import read_table, write_table

FILE = "copies.parquet"
COLUMN = "vector"
SCHEMA = pa.schema([(COLUMN, pa.int32())])

TOLERANCE = 2e-6
"""Largest distance of two copies, for each √dim of the shorter of: the vector's length, and the
distance between most vectors. Rounding by 1e-6 in each number stays within it."""

DIRECTIONS = 16  # orthogonal projections to estimate distances
HASHED_DIRECTIONS = 8
GRIDS = 3  # shifted hash grids; copies that one of them separates meet in another
CELL_WIDTH = 8.0  # tolerances per cell of a grid
MAX_ROUNDS = 32  # groups to find within one cell of a grid
PROJECTED_ROWS = 1024  # rows per conversion to float64
SAMPLED_ROWS = 1000  # pairs of rows to estimate a typical distance
DISTANCE_QUANTILE = 0.9  # quantile of the distances that counts as typical
SEED = 0x1D5


@dataclass(frozen=True, eq=False)
class Copies:
    """The rows of an index, and the distinct vectors that its graph holds.

    rows: number of rows.
    vectors: number of distinct vectors, numbered by the first row that has them.
    vector_of: (rows,) the vector of each row; None if all rows differ.
    """

    rows: int
    vectors: int
    vector_of: NDArray[np.int32] | None = None

    @classmethod
    def none(cls, rows: int) -> "Copies":
        """Return the `Copies` of rows without copies."""
        return cls(rows, rows)

    @classmethod
    def find(cls, blocks: Blocks, metric: Metric | str) -> "Copies":
        """Return the copies among vectors (n, dim) as the metric sees them.

        Raises the errors of `retrieval.hits.checked_vectors`.
        """
        metric = choice(Metric, metric)
        projections = _projected(checked_blocks(blocks, metric), blocks.dim)
        return cls._numbered(_first_copies(projections, 0))

    def joined(self, linked: Iterable[Vectors], added: Vectors) -> "Copies":
        """Return these rows followed by those of `added` (n, dim).

        linked: the distinct vectors in blocks (…, dim). Both are as the graph holds them. No
        vector that is already linked becomes a copy.
        """
        blocks = _counted(chain(linked, [added]))
        grown = self._numbered(_first_copies(_projected(blocks, added.shape[1]), self.vectors))
        if self.vector_of is None:
            return grown
        vector_of = np.arange(grown.rows, dtype=np.int32)
        if grown.vector_of is not None:
            vector_of = grown.vector_of
        vector_of = np.concatenate([self.vector_of, vector_of[self.vectors :]])
        return Copies(len(vector_of), grown.vectors, vector_of)

    @classmethod
    def _numbered(cls, first: Rows) -> "Copies":
        """Return the copies. first: (rows,), the first row with the same vector as each row."""
        is_first = first == np.arange(len(first))
        vectors = int(np.count_nonzero(is_first))
        if vectors == len(first):
            return cls.none(vectors)
        numbers = np.cumsum(is_first, dtype=np.int32) - 1
        return cls(len(first), vectors, numbers[first])

    @property
    def is_first(self) -> Mask:
        """A mask (rows,) of the first row of each vector."""
        if self.vector_of is None:
            return np.ones(self.rows, np.bool_)
        return np.diff(np.maximum.accumulate(self.vector_of), prepend=-1) > 0

    @property
    def details(self) -> dict[str, Json]:
        """The number of distinct vectors, if rows share any."""
        return {} if self.vector_of is None else {"distinct": self.vectors}

    def distinct(self, blocks: Blocks) -> Blocks:
        """Return blocks with only the first row of each vector."""
        return blocks if self.vector_of is None else _Distinct(blocks, self)

    def fetched(self, dim: int, fetch: Callable[[Rows], Vectors]) -> Fetched:
        """Return the vectors (rows, dim) of all rows in blocks.

        fetch: returns distinct vectors (n, dim) by their numbers (n,).
        """
        if self.vector_of is None:
            return Fetched(self.rows, dim, fetch)
        return Fetched(self.rows, dim, lambda rows: fetch(self._numbers[rows].astype(np.int64)))

    def expanded(self, nearest: Nearest) -> Nearest:
        """Return a search for rows that uses a search for distinct vectors.

        All copies of a vector are hits, at the distance of the vector that the graph holds.
        """
        return nearest if self.vector_of is None else _RowSearch(nearest, self).search

    @cached_property
    def rows_by_vector(self) -> "_RowsByVector":
        """All rows."""
        return _RowsByVector.of(self, np.argsort(self._numbers, kind="stable"))

    @property
    def _numbers(self) -> NDArray[np.int32]:
        assert self.vector_of is not None
        return self.vector_of

    def save(self, folder: Path) -> None:
        """Write `FILE` into the folder; remove it if all rows differ."""
        if self.vector_of is None:
            (folder / FILE).unlink(missing_ok=True)
            return
        table = pa.table({COLUMN: self.vector_of}, SCHEMA)
        write_table(folder / FILE, table, "zstd")

    @classmethod
    def load(cls, folder: Path, vectors: int) -> "Copies":
        """Load the file of `save`. Raises BadData unless it fits a graph of `vectors` vectors."""
        path = folder / FILE
        if not path.is_file():
            return cls.none(vectors)
        try:
            table = read_table(path.read_bytes())
        except (OSError, ValueError, pa.ArrowException) as error:
            raise BadData(f"cannot read {path} ({error}); index again") from None
        if not table.schema.equals(SCHEMA) or table[COLUMN].null_count or not len(table):
            raise BadData(f"{path} is not a table of {COLUMN} numbers; index again")
        vector_of: NDArray[np.int32] = table[COLUMN].to_numpy()
        # Vectors are numbered in the order of their first rows.
        steps = np.diff(np.maximum.accumulate(vector_of), prepend=-1)
        if vector_of.min() < 0 or steps.max() > 1:
            raise BadData(f"{path} is damaged (vectors out of order); index again")
        if (known := int(vector_of.max()) + 1) != vectors:
            raise BadData(f"{path} has {known:,} vectors, the graph {vectors:,}; index again")
        return cls(len(vector_of), vectors, vector_of)


def _counted(blocks: Iterable[Vectors]) -> Iterator[tuple[int, Vectors]]:
    """Yield each block with the number of rows before it."""
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)


class _Distinct:
    """Blocks of an index's vectors, without copies."""

    def __init__(self, blocks: Blocks, copies: Copies) -> None:
        self.blocks = blocks
        self.is_first = copies.is_first
        self.rows, self.dim = copies.vectors, blocks.dim

    def __iter__(self) -> Iterator[Vectors]:
        for start, block in _counted(self.blocks):
            yield block[self.is_first[start : start + len(block)]]


@dataclass(frozen=True, slots=True, eq=False)
class _RowsByVector:
    """Some rows, ordered by vector, then by row.

    starts, sizes: (vectors,), the range of each vector's rows.
    """

    rows: Rows
    starts: Rows
    sizes: Rows

    @classmethod
    def of(cls, copies: Copies, rows: Rows) -> "_RowsByVector":
        sizes = np.bincount(copies._numbers[rows], minlength=copies.vectors)
        return cls(rows, np.cumsum(sizes) - sizes, sizes)


class _RowSearch:
    """A search for rows that uses a search for vectors."""

    def __init__(self, nearest: Nearest, copies: Copies) -> None:
        self.nearest = nearest
        self.copies = copies

    def search(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        """Return the `count` nearest rows; see `Nearest`."""
        rows = self.copies.rows_by_vector
        admitted = None
        matching = self.copies.vectors
        if among is not None:
            rows = _RowsByVector.of(self.copies, rows.rows[among[rows.rows]])
            admitted = rows.sizes > 0
            matching = int(np.count_nonzero(admitted))
            admitted = None if matching == len(admitted) else admitted
        vectors, distances = self.nearest(queries, min(count, matching), admitted)
        return _rows_of(vectors, distances, count, rows)


def _rows_of(
    vectors: Rows, distances: NDArray[np.float32], count: int, admitted: _RowsByVector
) -> Found:
    """Return the `count` nearest admitted rows of vectors (q, n) at these distances."""
    sizes = np.where(vectors >= 0, np.minimum(admitted.sizes[vectors], count), 0)
    first = admitted.rows[np.minimum(admitted.starts[vectors], len(admitted.rows) - 1)]
    if sizes.shape[1] == count and (sizes <= 1).all():  # the usual case: each vector has one row
        return np.where(sizes > 0, first, -1), distances
    query, place = np.nonzero(sizes)
    repeats = sizes[query, place]
    ends = np.cumsum(repeats)
    within = np.arange(int(repeats.sum())) - np.repeat(ends - repeats, repeats)
    row = admitted.rows[np.repeat(admitted.starts[vectors[query, place]], repeats) + within]
    distance = np.repeat(distances[query, place], repeats)
    query = np.repeat(query, repeats)
    order = np.lexsort((row, distance, query))
    column = np.arange(len(order)) - np.searchsorted(query, query)
    kept = column < count
    all_rows = np.full((len(vectors), count), -1, np.int64)
    all_distances = np.full(all_rows.shape, np.inf, np.float32)
    all_rows[query[kept], column[kept]] = row[order[kept]]
    all_distances[query[kept], column[kept]] = distance[order[kept]]
    return all_rows, all_distances


@dataclass(frozen=True, slots=True, eq=False)
class _Projections:
    """Vectors along a few random directions, scaled to keep expected distances.

    points: (n, directions) float32; lengths: (n,) of the vectors; dim: of the vectors.
    """

    points: NDArray[np.float32]
    lengths: NDArray[np.float64]
    dim: int

    def squares(self, rows: Rows, others: Rows) -> NDArray[np.float64]:
        """Return the estimated squared distances between rows and others, both (n,)."""
        apart = self.points[rows].astype(np.float64) - self.points[others]
        return np.asarray(np.vecdot(apart, apart))

    def tolerances(self) -> NDArray[np.float64]:
        """Return the maximum distance (n,) of copies from each row."""
        draw = np.random.default_rng(SEED)
        rows, others = draw.integers(0, len(self.points), (2, SAMPLED_ROWS))
        apart = np.sqrt(self.squares(rows, others))
        usual = float(np.quantile(apart, DISTANCE_QUANTILE)) or float(apart.max()) or np.inf
        return np.asarray(TOLERANCE * np.sqrt(self.dim) * np.minimum(self.lengths, usual))


def _projected(blocks: Iterator[tuple[int, Vectors]], dim: int) -> _Projections:
    """Return the projections of blocks of vectors (n, dim)."""
    directions = min(DIRECTIONS, dim)
    draw = np.random.default_rng(SEED)
    basis = np.linalg.qr(draw.standard_normal((dim, directions)))[0] * np.sqrt(dim / directions)
    points, lengths = [], []
    origin: NDArray[np.float64] | None = None
    for _, block in blocks:
        for start in range(0, len(block), PROJECTED_ROWS):
            # In float64, the place in a block does not change a projection.
            vectors = block[start : start + PROJECTED_ROWS].astype(np.float64)
            lengths.append(np.sqrt(np.vecdot(vectors, vectors)))
            if origin is None:
                origin = np.median(vectors, axis=0)  # float32 is most precise near the origin
            points.append(((vectors - origin) @ basis).astype(np.float32))
    return _Projections(np.concatenate(points), np.concatenate(lengths), dim)


def _first_copies(projections: _Projections, distinct: int) -> Rows:
    """Return the first row (n,) with the same vector as each row, which may be the row itself.

    distinct: number of rows at the start that count as different from each other.
    """
    tolerances = projections.tolerances()
    first = np.arange(len(tolerances))
    leaders = first
    for grid in range(GRIDS):
        cells = _cells(projections.points[leaders], tolerances[leaders], grid)
        _join_cells(cells, leaders, projections, tolerances, first, distinct)
        leaders = leaders[first[leaders] == leaders]
    for _ in range(GRIDS):  # a first row may become a copy later, once per grid
        first = first[first]
    return first


def _cells(
    points: NDArray[np.float32], tolerances: NDArray[np.float64], grid: int
) -> NDArray[np.uint64]:
    """Return a hash (n,) of the grid cell of each point; copies are likely to share it.

    The cells' width is a power of two of about `CELL_WIDTH` tolerances. Each grid has its
    own origin, and its own tolerances at which the width doubles.
    """
    draw = np.random.default_rng((SEED, grid))
    hashed = min(HASHED_DIRECTIONS, points.shape[1])
    multipliers = draw.integers(0, 2**63, hashed + 1, dtype=np.uint64) * 2 + 1
    offsets = draw.random(hashed)
    with np.errstate(divide="ignore"):
        octaves = np.floor(np.log2(tolerances * CELL_WIDTH) + grid / GRIDS)
    octaves[tolerances == 0] = 0  # zero vectors, which are equal
    widths = np.exp2(octaves)
    total: NDArray[np.uint64] = octaves.astype(np.int64).view(np.uint64) * multipliers[-1]
    for direction in range(hashed):
        place = np.floor(points[:, direction] / widths + offsets[direction])
        place = np.clip(place, -(2.0**62), 2.0**62).astype(np.int64)
        total += place.view(np.uint64) * multipliers[direction]
    return total


def _join_cells(
    cells: NDArray[np.uint64],
    leaders: Rows,
    projections: _Projections,
    tolerances: NDArray[np.float64],
    first: Rows,
    distinct: int,
) -> None:
    """Set `first` of leaders that are within tolerance of an earlier one in their cell."""
    order = np.argsort(cells, kind="stable")
    cells, rows = cells[order], leaders[order]
    for _ in range(MAX_ROUNDS):
        starts = np.flatnonzero(np.diff(cells, prepend=~cells[:1]) != 0)
        sizes = np.diff(starts, append=len(cells))
        shared = np.repeat(sizes > 1, sizes)
        if not shared.any():
            return
        heads = np.repeat(rows[starts], sizes)[shared]
        cells, rows = cells[shared], rows[shared]
        is_copy = projections.squares(rows, heads) <= tolerances[heads] ** 2
        is_copy &= rows >= distinct
        first[rows[is_copy]] = heads[is_copy]
        left = ~is_copy & (rows != heads)
        cells, rows = cells[left], rows[left]
