"""Exact rankings of a database, computed by blocks of queries in bounded memory.

Distances are computed in double precision and then rounded to the 24 significant bits of float32.
Items at equal distance rank by their row. So a ranking depends neither on the block of its query
nor on the order of additions in a matrix product, and equal vectors have equal distances from every
query.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from threading import Lock, local
from typing import TypeVar, assert_never

import numpy as np
from numpy.typing import NDArray

# scikit-learn brings scipy, which publishes no types.
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from retrieval.choices import choice
from retrieval.contracts import Hits, Metric, Vectors
from retrieval.errors import BadInput, Mismatch
from retrieval.runtime.threads import usable_cores

Rows = NDArray[np.int64]
Distances = NDArray[np.float64]

BLOCK_BYTES = 32 * 2**20
"""Maximum memory for the distances of a block of queries. Each core works on one block."""

MAX_BYTES = 2**30
"""Maximum memory for the blocks of all cores, unless the distances of one query take more."""

# A ranking limits the BLAS threads of the whole process, so that only one may run at a time.
_RANKING_LOCK = Lock()

# A double has 29 bits more than a float32. After rounding, they hold the row.
_ROW_BITS = 29
_ROW_MASK = 2**_ROW_BITS - 1
_LAST = np.iinfo(np.int64).max

# A matrix product gives about 1e-16 times the dimension for distances that should be 0. Distances
# below this, times the query's squared length, count as equal.
_ZERO_TOLERANCE = 1e-12

Result = TypeVar("Result")


def map_rankings(
    queries: Vectors,
    database: Vectors,
    metric: Metric | str,
    summarize: Callable[[int, Rows], Result],
    leave_out: Rows | None = None,
) -> list[Result]:
    """Return `summarize(i, rows)` for each query i; rows are the whole database, nearest first.

    leave_out: (q,), a row to leave out of each query's ranking; -1 for none.
    summarize: called from several threads at once. It must not keep `rows`.

    Raises Mismatch if queries and database differ in dimension; BadInput for numbers that are not
    finite, and for more than 2^29 rows.
    """
    metric = choice(Metric, metric)
    _check(queries, database)
    if len(database) > _ROW_MASK + 1:
        raise BadInput(f"{len(database)} rows are too many to rank exactly; give at most 2^29")
    distances = _Distances(queries, database, metric)
    numbers = np.arange(len(database))
    # With a very large database, the distances of a single query are a large block.
    cores = max(1, min(usable_cores(), MAX_BYTES // (8 * max(1, len(database)))))
    size = min(BLOCK_BYTES // (8 * max(1, len(database))), -(-len(queries) // cores))
    starts = range(0, len(queries), max(1, size))
    room = local()  # one for each thread: allocating memory again takes as long as a product

    def summaries(start: int) -> list[Result]:
        if not hasattr(room, "block"):
            room.block = np.empty((starts.step, len(database)))
        block = room.block[: len(queries) - start]
        distances.write(start, block)
        found = []
        for i, row in enumerate(block, start):
            left_out = -1 if leave_out is None else int(leave_out[i])
            rows = _nearest_first(row, float(distances.lowest[i]), numbers, left_out)
            found.append(summarize(i, rows))
        return found

    # A product on each core, followed by sorts in its cache, is faster than products shared by all.
    with (
        _RANKING_LOCK,
        threadpool_limits(1, "blas"),
        ThreadPoolExecutor(cores) as threads,
    ):
        return [*chain.from_iterable(threads.map(summaries, starts))]


def nearest(queries: Vectors, database: Vectors, metric: Metric | str, k: int) -> Hits:
    """Return the k true neighbors of each query, and their distances as `Metric` defines them."""
    metric = choice(Metric, metric)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    first = min(k, len(database))
    for i, found in enumerate(
        map_rankings(queries, database, metric, lambda _, rows: rows[:first].copy())
    ):
        rows[i, :first] = found
    return Hits(rows, distances_of(queries, database, rows, metric).astype(np.float32))


def distances_of(
    queries: Vectors, database: Vectors, rows: Rows, metric: Metric | str
) -> Distances:
    """Return the distances (q, k) of each query from its rows (q, k); +inf if a row is -1."""
    metric = choice(Metric, metric)
    distances = np.full(rows.shape, np.inf)
    step = max(1, BLOCK_BYTES // (8 * max(1, rows.shape[1] * queries.shape[1])))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        known = rows[block] >= 0
        a = np.broadcast_to(queries[block, None, :], (*known.shape, queries.shape[1]))[known]
        b = database[rows[block][known]]
        distances[block][known] = pairwise(a.astype(np.float64), b.astype(np.float64), metric)
    return distances


def pairwise(a: Distances, b: Distances, metric: Metric | str) -> Distances:
    """Return the distances (n,) between the vectors a and b, both (n, dim)."""
    metric = choice(Metric, metric)
    match metric:
        case Metric.COSINE:
            cosine: Distances = np.vecdot(_normalized(a), _normalized(b))
            return np.maximum(1 - cosine, 0)
        case Metric.EUCLIDEAN:
            return np.sqrt(_squares(a - b))
        case Metric.INNER_PRODUCT:
            product: Distances = np.vecdot(a, b)
            return 0 - product
        case Metric.MANHATTAN:
            return np.asarray(np.abs(a - b).sum(axis=1))
        case _:
            assert_never(metric)


class _Distances:
    """Distances of queries from a database, by blocks. Euclidean distances stay squared.

    All distances but Manhattan are one matrix product, of the vectors with some columns added.

    lowest: (q,), the smallest possible distance of each query; smaller values are rounding errors.
    """

    def __init__(self, queries: Vectors, database: Vectors, metric: Metric) -> None:
        a, b = queries.astype(np.float64), database.astype(np.float64)
        lowest = np.full(len(a), -np.inf if metric is Metric.INNER_PRODUCT else 0.0)
        match metric:
            case Metric.COSINE:
                a, b = _normalized(a), _normalized(b)
                a, b = _columns(-a, 1.0), _columns(b, 1.0)
                lowest += _ZERO_TOLERANCE
            case Metric.EUCLIDEAN:
                # Far from the origin, distances would be lost in the rounding of the squares.
                center = b.mean(axis=0) if len(b) else 0.0
                a, b = a - center, b - center
                squares = _squares(a)
                a, b = _columns(-2 * a, squares, 1.0), _columns(b, 1.0, _squares(b))
                lowest += _ZERO_TOLERANCE * squares
            case Metric.INNER_PRODUCT:
                a = -a
            case Metric.MANHATTAN:
                pass
            case _:
                assert_never(metric)
        self._queries, self._database, self._metric = a, b, metric
        self.lowest = lowest

    def write(self, start: int, out: Distances) -> None:
        """Write the distances of the queries from number `start` into `out` (b, n)."""
        queries = self._queries[start : start + len(out)]
        if self._metric is Metric.MANHATTAN:
            cdist(queries, self._database, "cityblock", out=out)
        else:
            np.matmul(queries, self._database.T, out=out)


def _nearest_first(distances: Distances, lowest: float, numbers: Rows, left_out: int) -> Rows:
    """Return the rows sorted by their distances (n,), equal ones by row. Overwrite the distances.

    A sort of 64-bit numbers, with the rounded distance in the high bits and the row in the low
    bits, is faster than an argsort of the distances, and stable. Positive doubles have the same
    order as their bits, read as integers.
    """
    keys = distances.view(np.int64)
    if lowest < 0:
        distances += 0.0  # -0.0 becomes 0.0
        keys ^= (keys >> 63) & _LAST
    else:
        np.maximum(distances, lowest, out=distances)
    keys += 1 << (_ROW_BITS - 1)
    keys &= ~_ROW_MASK
    keys |= numbers
    if left_out >= 0:
        keys[left_out] = _LAST
    keys.sort()
    if left_out >= 0:
        keys = keys[:-1]
    keys &= _ROW_MASK
    return keys


def _normalized(vectors: Distances) -> Distances:
    """Return the vectors scaled to length 1. Zero vectors stay zero, so that their cosine is 0."""
    lengths = np.sqrt(_squares(vectors))
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0)[:, None])


def _squares(vectors: Distances) -> Distances:
    return np.asarray(np.vecdot(vectors, vectors))


def _columns(vectors: Distances, *more: Distances | float) -> Distances:
    """Return the vectors (n, dim) with a column added for each array (n,) or number."""
    columns = [np.broadcast_to(column, len(vectors))[:, None] for column in more]
    return np.hstack([vectors, *columns])


def _check(queries: Vectors, database: Vectors) -> None:
    if queries.shape[1] != database.shape[1]:
        raise Mismatch(
            f"queries have dimension {queries.shape[1]}, and the database {database.shape[1]}; "
            "encode both with the same encoder"
        )
    for name, vectors in (("queries", queries), ("database", database)):
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise BadInput(
                f"{name}: vector {int(np.argmin(finite))} has numbers that are not finite; "
                "encode it again"
            )
