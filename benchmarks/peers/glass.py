"""glass, built from its source, with codes of 8 and of 4 bits, refined by the vectors."""

from pathlib import Path
from typing import Any, ClassVar

import glass
import numpy as np

from benchmarks.peers.peer import EF_CONSTRUCTION, M, UnitPeer
from retrieval.contracts import Metric, Rows, Vectors

OPTIMIZED_EF = 32
"""Effort at which glass chooses its prefetching."""


class GlassSq8(UnitPeer):
    quantizer: ClassVar[str] = "SQ8U"

    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        self.cosine = metric is Metric.COSINE
        glass.set_num_threads(threads)
        vectors = self.prepared(vectors)
        # R counts the links of the lowest layer.
        index = glass.Index(
            index_type="HNSW", metric="L2", quant="SQ8U", R=2 * M, L=EF_CONSTRUCTION
        )
        self.searcher: Any = glass.Searcher(
            graph=index.build(vectors), data=vectors, metric="L2", quantizer=self.quantizer
        )
        self.searcher.set_ef(OPTIMIZED_EF)
        self.searcher.optimize(threads)  # crashes when called again

    def set(self, effort: int, threads: int) -> None:
        glass.set_num_threads(threads)
        self.searcher.set_ef(effort)

    def search(self, queries: Vectors, k: int) -> Rows:
        found = (
            self.searcher.search(queries[0], k)
            if len(queries) == 1
            else self.searcher.batch_search(queries, k)
        )
        return np.asarray(found[0], np.int64).reshape(len(queries), k)


class GlassSq4(GlassSq8):
    quantizer = "SQ4U"
