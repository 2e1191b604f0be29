"""SVS, Intel's library, in float32 and in float16."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import svs

from benchmarks.peers.peer import EF_CONSTRUCTION, EFFORTS, Ladders, M, Peer
from retrieval.contracts import Metric, Rows, Vectors


class Svs(Peer):
    """SVS with Euclidean distances, which rank vectors of length 1 like cosines."""

    ladders: ClassVar[Ladders] = (EFFORTS,)
    numbers: ClassVar[type[np.floating[Any]]] = np.float32

    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        self.cosine = metric is Metric.COSINE
        # The graph's one layer has as many links as the lowest layer of HNSW.
        parameters = svs.VamanaBuildParameters(graph_max_degree=2 * M, window_size=EF_CONSTRUCTION)
        self.index: Any = svs.Vamana.build(
            parameters,
            self._prepared(vectors).astype(self.numbers),
            svs.DistanceType.L2,
            num_threads=threads,
        )

    def set(self, effort: int, threads: int) -> None:
        self.index.search_window_size = effort
        self.index.num_threads = threads

    def search(self, queries: Vectors, k: int) -> Rows:
        rows: Rows = self.index.search(self._prepared(queries), k)[0].view(np.int64)
        return rows

    def _prepared(self, vectors: Vectors) -> Vectors:
        if not self.cosine:
            return vectors
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


class SvsHalf(Svs):
    numbers = np.float16
