"""usearch, in float32 and in bfloat16."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from usearch.index import Index

from benchmarks.peers.peer import EF_CONSTRUCTION, M, Peer
from retrieval.contracts import Metric, Rows, Vectors


class Usearch(Peer):
    dtype: ClassVar[str] = "f32"

    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        self.index: Any = Index(
            ndim=vectors.shape[1],
            metric="l2sq" if metric is Metric.EUCLIDEAN else "cos",
            dtype=self.dtype,
            connectivity=M,
            expansion_add=EF_CONSTRUCTION,
        )
        self.index.add(np.arange(len(vectors)), vectors, threads=threads)

    def set(self, effort: int, threads: int) -> None:
        self.index.expansion_search = effort
        self.threads = threads

    def search(self, queries: Vectors, k: int) -> Rows:
        one = len(queries) == 1
        found = self.index.search(queries[0] if one else queries, k, threads=self.threads).keys
        rows: Rows = found.reshape(len(queries), -1).view(np.int64)
        return rows


class UsearchBf16(Usearch):
    dtype = "bf16"
