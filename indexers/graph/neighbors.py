"""True neighbors of a few queries among all rows of an index, to choose its settings by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Blocks, Metric, Rows, Vectors

COMPARED_ROWS = 8_192  # at a time: faiss keeps a copy of them, and their distances


@dataclass(frozen=True, eq=False)
class Nearest:
    """The true neighbors of queries. distances: (q, k), ascending. vectors: (q, k, dim)."""

    distances: NDArray[np.float32]
    vectors: NDArray[np.float32]

    @classmethod
    def of(cls, queries: Vectors, blocks: Blocks, metric: Metric | str, k: int) -> "Nearest":
        """Compare the queries (q, dim) with all vectors of the blocks, which are read once.

        k: at most the number of rows.
        """
        from retrieval.registry import make_indexer  # the backend exact may load another library

        metric = choice(Metric, metric)
        exact = make_indexer("exact", {"metric": metric, "device": "cpu"})
        distances = np.full((len(queries), k), np.inf, np.float32)
        vectors = np.zeros((*distances.shape, blocks.dim), np.float32)
        for block in blocks:
            for start in range(0, len(block), COMPARED_ROWS):
                part = block[start : start + COMPARED_ROWS]
                hits = exact.build(part).search(queries, min(k, len(part)))
                all_distances = np.hstack([distances, hits.distances])
                order: Rows = np.argsort(all_distances, axis=1, kind="stable")[:, :k]
                distances = np.take_along_axis(all_distances, order, axis=1)
                vectors = np.take_along_axis(vectors, np.minimum(order, k - 1)[..., None], axis=1)
                query, place = np.nonzero(order >= k)
                vectors[query, place] = part[hits.rows[query, order[query, place] - k]]
        return cls(distances, vectors)
