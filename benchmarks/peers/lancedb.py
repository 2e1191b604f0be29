"""lancedb: a table on disk with an IVF-PQ index, refined by the vectors, one query per call."""

from pathlib import Path
from typing import Any, ClassVar

import lancedb
import numpy as np
import pyarrow as pa

from benchmarks.peers.peer import PROBES, Ladders, Peer
from retrieval.contracts import Metric, Rows, Vectors


class LanceDb(Peer):
    ladders: ClassVar[Ladders] = tuple(tuple((p, r) for p in PROBES[::3]) for r in (5, 20))

    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        rows, dim = vectors.shape
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
        table = pa.table({"row": np.arange(rows), "vector": column})
        self.metric = "l2" if metric is Metric.EUCLIDEAN else "cosine"
        self.table: Any = lancedb.connect(str(folder)).create_table("vectors", table)
        codes = max(n for n in range(1, dim // 4 + 1) if dim % n == 0 and dim // n % 8 == 0)
        self.table.create_index(metric=self.metric, num_partitions=256, num_sub_vectors=codes)

    def set(self, effort: tuple[int, int], threads: int) -> None:
        self.probes, self.refine = effort

    def search(self, queries: Vectors, k: int) -> Rows:
        found = np.full((len(queries), k), -1)
        for line, query in zip(found, queries, strict=True):
            search = self.table.search(query).distance_type(self.metric).limit(k)
            search = search.nprobes(self.probes).refine_factor(self.refine)
            search = search.select(["row", "_distance"])
            rows = search.to_arrow()["row"].to_numpy()
            line[: len(rows)] = rows
        return found
