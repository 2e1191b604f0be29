"""Measure the recall of an index for its own rows, once after each build.

The recall of a graph is higher for its own rows than for other queries, because the graph links
rows to their neighbors. The recall of lists is about the same for both.
"""

from collections.abc import Iterator

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Blocks, Index, Metric, Rows, Vectors
from retrieval.hits import without_own
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import distances_of
from retrieval.registry import make_indexer

K = 10
QUERIES = 100  # rows, drawn at random
DRAWN_ROWS = 1000  # random rows; the first that are not copies of each other are queries
COMPARED_ROWS = 8_192  # at a time: faiss keeps a copy of them, and their distances
MAX_COPY_DISTANCE = 1e-5  # between copies, as a share of their length


def measured_recall(index: Index, blocks: Blocks, metric: Metric | str, seed: int = 0) -> float:
    """Return the recall@10 of the index for some of its own rows, with exact search as truth.

    blocks: the vectors of the index's rows. They are read twice.

    No two queries are copies of one vector: searches find copies easily, which would hide that
    other rows are missed. A query's own row counts neither as a hit nor as a neighbor. Recall is
    counted by distance; see `index_recall_at`. It is 1 for an index of one row.
    """
    metric = choice(Metric, metric)
    own = np.random.default_rng(seed).permutation(blocks.rows)[:DRAWN_ROWS]
    k = min(K, blocks.rows - 1)
    if k == 0:
        return 1.0
    queries = _picked(blocks, own)
    distinct = _distinct(queries, seed)[:QUERIES]
    own, queries = own[distinct], queries[distinct]
    found = without_own(index.search(queries, k + 1), own).rows
    distances = np.full(found.shape, np.inf)
    true = np.full((len(own), k), np.inf)
    exact = make_indexer("exact", {"metric": metric, "device": "cpu"})
    for start, block in _slices(blocks):
        inside = np.where((found >= start) & (found < start + len(block)), found - start, -1)
        np.minimum(distances, distances_of(queries, block, inside, metric), out=distances)
        hits = without_own(exact.build(block).search(queries, k + 1), own - start)
        near = distances_of(queries, block, hits.rows, metric)
        true = np.sort(np.hstack([true, near]), axis=1)[:, :k]
    of_queries = index_recall_at(distances, true, k, metric)
    return float(of_queries.mean())


def _distinct(vectors: Vectors, seed: int) -> Rows:
    """Return the rows of vectors (n, dim) that are not copies of others, up to rounding."""
    vectors = vectors.astype(np.float64)
    direction = np.random.default_rng(seed).standard_normal(vectors.shape[1])
    order = np.argsort(vectors @ direction, kind="stable")  # copies lie next to each other
    apart = np.linalg.norm(np.diff(vectors[order], axis=0), axis=1)
    is_copy = apart <= MAX_COPY_DISTANCE * np.linalg.norm(vectors[order[1:]], axis=1)
    return np.sort(order[np.append(True, ~is_copy)])


def _picked(blocks: Blocks, rows: Rows) -> Vectors:
    """Return the vectors (q, dim) of these rows."""
    vectors = np.empty((len(rows), blocks.dim), np.float32)
    for start, block in _slices(blocks):
        inside = (rows >= start) & (rows < start + len(block))
        vectors[inside] = block[rows[inside] - start]
    return vectors


def _slices(blocks: Blocks) -> Iterator[tuple[int, Vectors]]:
    """Yield blocks of at most `COMPARED_ROWS` vectors, each with its first row."""
    first = 0
    for vectors in blocks:
        for start in range(0, len(vectors), COMPARED_ROWS):
            yield first + start, vectors[start : start + COMPARED_ROWS]
        first += len(vectors)
