"""Inverted lists: how many there are, and which rows their centroids are found from."""

from math import isqrt

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Blocks, Metric, Vectors
from retrieval.hits import checked_blocks

# faiss's k-means wants from 39 to 256 training points per cluster: it warns below the first and
# leaves out what exceeds the second.
FEWEST_POINTS = 39
MOST_POINTS = 256


def list_count(rows: int, wanted: int | None) -> int:
    """`wanted`, or for None 4·√rows, but no more than leave 39 rows per list; at most `rows`."""
    if wanted is not None:
        return min(wanted, rows)
    return max(1, min(isqrt(16 * rows), rows // FEWEST_POINTS))


def training_rows(blocks: Blocks, clusters: int, seed: int, metric: Metric | str) -> Vectors:
    """As many of the vectors as k-means makes use of for so many clusters, drawn by seed.

    They come prepared. Raises what `checked_blocks` raises.
    """
    metric = choice(Metric, metric)
    enough = clusters * MOST_POINTS
    drawn = np.arange(blocks.rows)
    if blocks.rows > enough:
        drawn = np.sort(np.random.default_rng(seed).choice(blocks.rows, enough, replace=False))
    sample = np.empty((len(drawn), blocks.dim), np.float32)
    for start, block in checked_blocks(blocks, metric):
        first, end = np.searchsorted(drawn, (start, start + len(block)))
        sample[first:end] = block[drawn[first:end] - start]
    return sample
