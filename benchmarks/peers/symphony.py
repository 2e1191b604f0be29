"""SymphonyQG, built from its source: a graph with codes of the neighbors; one query per call."""

from pathlib import Path
from typing import Any

import numpy as np
import symphonyqg

from benchmarks.peers.peer import EF_CONSTRUCTION, M, UnitPeer
from retrieval.contracts import Metric, Rows, Vectors


class SymphonyQg(UnitPeer):
    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        self.cosine = metric is Metric.COSINE
        vectors = self.prepared(vectors)
        rows, dim = vectors.shape
        self.index: Any = symphonyqg.Index("QG", "L2", rows, dim, degree_bound=2 * M)
        self.index.build_index(vectors, EF_CONSTRUCTION, num_iter=3, num_thread=threads)

    def set(self, effort: int, threads: int) -> None:
        self.index.set_ef(effort)

    def search(self, queries: Vectors, k: int) -> Rows:
        return np.array([self.index.search(query, k) for query in queries]).astype(np.int64)
