"""hnswlib and faiss, called as their documentation does."""

from math import isqrt
from pathlib import Path
from typing import Any, ClassVar

import faiss
import hnswlib
import numpy as np

from benchmarks.peers.peer import EF_CONSTRUCTION, PROBES, Ladders, M, Peer
from retrieval.contracts import Metric, Rows, Vectors


class Hnswlib(Peer):
    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        rows, dim = vectors.shape
        self.index = hnswlib.Index("l2" if metric is Metric.EUCLIDEAN else "cosine", dim)
        self.index.init_index(rows, M=M, ef_construction=EF_CONSTRUCTION)
        self.index.add_items(vectors, num_threads=threads)

    def set(self, effort: int, threads: int) -> None:
        self.index.set_ef(effort)
        self.index.set_num_threads(threads)

    def search(self, queries: Vectors, k: int) -> Rows:
        rows: Rows = self.index.knn_query(queries, k)[0].view(np.int64)
        return rows


class _Faiss(Peer):
    """An index of faiss's factory; cosines are inner products of vectors of length 1."""

    factory: ClassVar[str]
    option: ClassVar[str] = "efSearch"

    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        faiss.omp_set_num_threads(threads)
        self.cosine = metric is Metric.COSINE
        if self.cosine:
            vectors = vectors.copy()
            faiss.normalize_L2(vectors)
        rows, dim = vectors.shape
        kind = faiss.METRIC_INNER_PRODUCT if self.cosine else faiss.METRIC_L2
        # Product codes of about four numbers each; the number of lists is a power of two.
        codes = max(n for n in range(1, dim // 2 + 1) if dim % n == 0 and n <= max(1, dim // 4))
        lists = 2 ** round(np.log2(2 * isqrt(rows)))
        factory = self.factory.format(m=M, lists=lists, codes=codes)
        self.index: Any = faiss.index_factory(dim, factory, kind)
        space: Any = faiss.ParameterSpace()
        self.parameters = space
        if self.option == "efSearch":
            space.set_index_parameter(self.index, "efConstruction", EF_CONSTRUCTION)
        self.index.train(vectors)
        self.index.add(vectors)

    def set(self, effort: Any, threads: int) -> None:
        faiss.omp_set_num_threads(threads)
        probes, refine = effort if isinstance(effort, tuple) else (effort, None)
        self.parameters.set_index_parameter(self.index, self.option, probes)
        if refine is not None:
            self.parameters.set_index_parameter(self.index, "k_factor_rf", refine)

    def prepared(self, queries: Vectors) -> Vectors:
        queries = queries.copy()
        if self.cosine:
            faiss.normalize_L2(queries)
        return queries

    def search(self, queries: Vectors, k: int) -> Rows:
        rows: Rows = self.index.search(queries, k)[1]
        return rows


class FaissHnsw(_Faiss):
    factory = "HNSW{m},Flat"


class FaissHnswSq8(_Faiss):
    factory = "HNSW{m}_SQ8"


class FaissIvf(_Faiss):
    factory = "IVF{lists},Flat"
    option = "nprobe"
    ladders: ClassVar[Ladders] = (PROBES,)


class FaissIvfPq(_Faiss):
    factory = "IVF{lists},PQ{codes}x4fs,RFlat"
    option = "nprobe"
    ladders: ClassVar[Ladders] = tuple(tuple((p, r) for p in PROBES) for r in (4, 10, 20))
