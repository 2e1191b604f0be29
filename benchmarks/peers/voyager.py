"""voyager, Spotify's library."""

from pathlib import Path
from typing import Any

import numpy as np
import voyager

from benchmarks.peers.peer import EF_CONSTRUCTION, M, Peer
from retrieval.contracts import Metric, Rows, Vectors


class Voyager(Peer):
    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        space = voyager.Space.Euclidean if metric is Metric.EUCLIDEAN else voyager.Space.Cosine
        self.index: Any = voyager.Index(
            space, num_dimensions=vectors.shape[1], M=M, ef_construction=EF_CONSTRUCTION
        )
        self.index.add_items(vectors, num_threads=threads)

    def set(self, effort: int, threads: int) -> None:
        self.effort, self.threads = effort, threads

    def search(self, queries: Vectors, k: int) -> Rows:
        found, _ = self.index.query(queries, k, num_threads=self.threads, query_ef=self.effort)
        rows: Rows = found.view(np.int64)
        return rows
