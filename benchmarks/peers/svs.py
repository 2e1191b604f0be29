"""SVS, Intel's library: in float32, float16, and compressed (on Intel's processors only)."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import svs

from benchmarks.peers.peer import EF_CONSTRUCTION, EFFORTS, Ladders, M, UnitPeer
from retrieval.contracts import Metric, Rows, Vectors

LEANVEC_AXES = 96


class Svs(UnitPeer):
    ladders: ClassVar[Ladders] = (EFFORTS,)

    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        self.cosine = metric is Metric.COSINE
        # The graph's one layer has as many links as the lowest layer of HNSW.
        parameters = svs.VamanaBuildParameters(graph_max_degree=2 * M, window_size=EF_CONSTRUCTION)
        data = self._data(self.prepared(vectors), folder)
        distance = svs.DistanceType.L2
        self.index: Any = svs.Vamana.build(parameters, data, distance, num_threads=threads)

    def _data(self, vectors: Vectors, folder: Path) -> Any:
        """Return what SVS builds over."""
        return vectors

    def set(self, effort: int, threads: int) -> None:
        self.index.search_window_size = effort
        self.index.num_threads = threads

    def search(self, queries: Vectors, k: int) -> Rows:
        rows: Rows = self.index.search(queries, k)[0].view(np.int64)
        return rows


class SvsHalf(Svs):
    def _data(self, vectors: Vectors, folder: Path) -> Any:
        return vectors.astype(np.float16)


class SvsLvq8(Svs):
    bits: ClassVar[tuple[int, int]] = (8, 0)

    def _data(self, vectors: Vectors, folder: Path) -> Any:
        return svs.LVQLoader(_file(vectors, folder), *self.bits)


class SvsLvq4x8(SvsLvq8):
    bits = (4, 8)


class SvsLeanVec(Svs):
    def _data(self, vectors: Vectors, folder: Path) -> Any:
        return svs.LeanVecLoader(_file(vectors, folder), min(LEANVEC_AXES, vectors.shape[1]))


def _file(vectors: Vectors, folder: Path) -> Any:
    path = str(folder / "vectors.fvecs")
    svs.write_vecs(vectors, path)
    return svs.VectorDataLoader(path, svs.DataType.float32)
