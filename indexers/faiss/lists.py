"""Inverted lists: their number, training rows, and number of lists that a search probes."""

from math import isqrt
from typing import Any

import numpy as np

from indexers.copies import Copies
from retrieval.choices import choice
from retrieval.contracts import Blocks, Metric, Rows, Vectors
from retrieval.hits import InMemory, checked_blocks

# faiss's k-means warns below 39 training points per cluster, and ignores points above 256.
MIN_POINTS_PER_CLUSTER = 39
MAX_POINTS_PER_CLUSTER = 256

NEIGHBORS = 10
QUERIES = 300
DRAWN_ROWS = 1200  # the first that are not copies are the queries
MIN_DEFAULT_PROBES = 32  # lists that a search probes by default, even if fewer suffice
MIN_NEIGHBOR_SHARE = 0.99
"""Minimum share of the nearest neighbors that are in the lists that a search probes by default.

It is measured with rows of the index as queries. It is higher than the recall of 0.95 intended for
other queries: a few hundred queries give an uncertain estimate, and codes lose some recall.
"""


def list_count(rows: int, wanted: int | None) -> int:
    """Return `wanted`, at most `rows`; for None 4·√rows, or fewer so that a list has 39 rows."""
    if wanted is not None:
        return min(wanted, rows)
    return max(1, min(isqrt(16 * rows), rows // MIN_POINTS_PER_CLUSTER))


def drawn_rows(blocks: Blocks, seed: int, metric: Metric | str) -> tuple[Rows, Vectors]:
    """Return a random sample of rows and their prepared vectors (q, dim), to measure recall.

    No two are copies: the neighbors of a vector with many copies are easily found.
    """
    metric = choice(Metric, metric)
    rows = np.random.default_rng(seed).permutation(blocks.rows)[:DRAWN_ROWS]
    vectors = _picked(blocks, rows, metric)
    distinct = np.flatnonzero(Copies.find(InMemory(vectors), metric).is_first)[:QUERIES]
    return rows[distinct], vectors[distinct]


def training_rows(blocks: Blocks, clusters: int, seed: int, metric: Metric | str) -> Vectors:
    """Return a random sample of prepared vectors, as many as k-means uses for these clusters.

    Raises the errors of `checked_blocks`.
    """
    metric = choice(Metric, metric)
    enough = clusters * MAX_POINTS_PER_CLUSTER
    drawn = np.arange(blocks.rows)
    if blocks.rows > enough:
        drawn = np.sort(np.random.default_rng(seed).choice(blocks.rows, enough, replace=False))
    return _picked(blocks, drawn, metric)


def _picked(blocks: Blocks, rows: Rows, metric: Metric) -> Vectors:
    """Return the prepared vectors of these rows. Raises the errors of `checked_blocks`."""
    vectors = np.empty((len(rows), blocks.dim), np.float32)
    for start, block in checked_blocks(blocks, metric):
        inside = (rows >= start) & (rows < start + len(block))
        vectors[inside] = block[rows[inside] - start]
    return vectors


def probes_needed(quantizer: Any, queries: Vectors, lists: Rows) -> int:
    """Return the least number of lists that hold the share `MIN_NEIGHBOR_SHARE` of the neighbors.

    At least `MIN_DEFAULT_PROBES`, or all lists if they are fewer. quantizer: faiss's index of the
    centroids. queries: (q, dim). lists: (q, k), the lists of each query's neighbors, or -1.
    """
    there = lists >= 0
    if not there.any():
        return min(MIN_DEFAULT_PROBES, int(quantizer.ntotal))
    order = quantizer.search(queries, quantizer.ntotal)[1]
    ranks = np.argsort(order, axis=1)
    of_neighbors = np.take_along_axis(ranks, np.where(there, lists, 0), axis=1)[there]
    needed = int(np.quantile(of_neighbors, MIN_NEIGHBOR_SHARE, method="inverted_cdf")) + 1
    return min(max(needed, MIN_DEFAULT_PROBES), int(quantizer.ntotal))
