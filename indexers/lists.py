"""Inverted lists: how many there are, and which rows their centroids are found from."""

from math import isqrt

import numpy as np

from retrieval.contracts import Vectors

# faiss's k-means wants from 39 to 256 training points per cluster: it warns below the first and
# leaves out what exceeds the second.
FEWEST_POINTS = 39
MOST_POINTS = 256


def list_count(rows: int, wanted: int | None) -> int:
    """`wanted`, or for None 4·√rows, but no more than leave 39 rows per list; at most `rows`."""
    if wanted is not None:
        return min(wanted, rows)
    return max(1, min(isqrt(16 * rows), rows // FEWEST_POINTS))


def training_rows(vectors: Vectors, clusters: int, seed: int) -> Vectors:
    """As many of the vectors as k-means makes use of for so many clusters, drawn by seed."""
    enough = clusters * MOST_POINTS
    if len(vectors) <= enough:
        return vectors
    rows = np.random.default_rng(seed).choice(len(vectors), enough, replace=False)
    return vectors[np.sort(rows)]
