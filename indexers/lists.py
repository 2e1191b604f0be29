"""Inverted lists: how many there are, which rows train them, and how many a search must probe."""

from math import isqrt
from typing import Any

import numpy as np

from indexers.copies import Copies
from retrieval.choices import choice
from retrieval.contracts import Blocks, Metric, Rows, Vectors
from retrieval.hits import InMemory, checked_blocks

# faiss's k-means wants from 39 to 256 training points per cluster: it warns below the first and
# leaves out what exceeds the second.
FEWEST_POINTS = 39
MOST_POINTS = 256

NEIGHBORS = 10
QUERIES = 300
DRAWN_ROWS = 1200  # of which the queries are the first that are no copies
LEAST_PROBES = 32  # lists that a search probes by default, also where fewer would do
NEIGHBORS_PROBED = 0.99
"""Share of the nearest neighbors that lie in the lists that a search probes by default.

It is measured with rows of the index as queries. It exceeds the recall that is wanted of other
queries, .95, by what a few hundred queries may err, and by what codes may lose.
"""


def list_count(rows: int, wanted: int | None) -> int:
    """`wanted`, or for None 4·√rows, but no more than leave 39 rows per list; at most `rows`."""
    if wanted is not None:
        return min(wanted, rows)
    return max(1, min(isqrt(16 * rows), rows // FEWEST_POINTS))


def drawn_rows(blocks: Blocks, seed: int, metric: Metric | str) -> tuple[Rows, Vectors]:
    """Return some rows, drawn by seed, and their prepared vectors (q, dim), to measure with.

    No two of them are copies: the neighbors of a vector with many copies are easily found.
    """
    metric = choice(Metric, metric)
    rows = np.random.default_rng(seed).permutation(blocks.rows)[:DRAWN_ROWS]
    vectors = _picked(blocks, rows, metric)
    distinct = np.flatnonzero(Copies.find(InMemory(vectors), metric).is_first)[:QUERIES]
    return rows[distinct], vectors[distinct]


def training_rows(blocks: Blocks, clusters: int, seed: int, metric: Metric | str) -> Vectors:
    """As many of the vectors as k-means makes use of for so many clusters, drawn by seed.

    They come prepared. Raises what `checked_blocks` raises.
    """
    metric = choice(Metric, metric)
    enough = clusters * MOST_POINTS
    drawn = np.arange(blocks.rows)
    if blocks.rows > enough:
        drawn = np.sort(np.random.default_rng(seed).choice(blocks.rows, enough, replace=False))
    return _picked(blocks, drawn, metric)


def _picked(blocks: Blocks, rows: Rows, metric: Metric) -> Vectors:
    """Return the prepared vectors of these rows. Raises what `checked_blocks` raises."""
    vectors = np.empty((len(rows), blocks.dim), np.float32)
    for start, block in checked_blocks(blocks, metric):
        inside = (rows >= start) & (rows < start + len(block))
        vectors[inside] = block[rows[inside] - start]
    return vectors


def probes_needed(quantizer: Any, queries: Vectors, lists: Rows) -> int:
    """Return the least number of lists that hold the share `NEIGHBORS_PROBED` of the neighbors.

    It is at least `LEAST_PROBES`, or all lists where these are fewer. quantizer: faiss's index of
    the centroids. queries: (q, dim). lists: (q, k), the lists of each query's neighbors, -1 where
    it has none.
    """
    there = lists >= 0
    if not there.any():
        return min(LEAST_PROBES, int(quantizer.ntotal))
    order = quantizer.search(queries, quantizer.ntotal)[1]
    ranks = np.argsort(order, axis=1)
    of_neighbors = np.take_along_axis(ranks, np.where(there, lists, 0), axis=1)[there]
    needed = int(np.quantile(of_neighbors, NEIGHBORS_PROBED, method="inverted_cdf")) + 1
    return min(max(needed, LEAST_PROBES), int(quantizer.ntotal))
