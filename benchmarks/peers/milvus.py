"""Milvus Lite: the server's library in this process, with its HNSW index."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pymilvus import DataType, MilvusClient

from benchmarks.peers.peer import EF_CONSTRUCTION, EFFORTS, Ladders, M, Peer
from retrieval.contracts import Metric, Rows, Vectors

ROWS_AT_ONCE = 5000
QUERIES_PER_CALL = 1000  # each call first goes through all rows in Python


class MilvusLite(Peer):
    ladders: ClassVar[Ladders] = (EFFORTS[::3],)

    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        self.client: Any = MilvusClient(str(folder / "milvus.db"))
        self.metric = "L2" if metric is Metric.EUCLIDEAN else "COSINE"
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
        self.client.create_collection("vectors", schema=schema)
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            block = vectors[start : start + ROWS_AT_ONCE]
            rows = [{"row": start + i, "vector": vector} for i, vector in enumerate(block)]
            self.client.insert("vectors", rows)
        self.client.flush("vectors")  # without it, each search copies all rows and uses no index
        index = self.client.prepare_index_params()
        index.add_index(
            "vector",
            index_type="HNSW",
            metric_type=self.metric,
            # Milvus Lite ignores parameters that are not nested.
            params={"params": {"M": M, "efConstruction": EF_CONSTRUCTION}},
        )
        self.client.create_index("vectors", index)
        self.client.load_collection(
            "vectors"
        )  # builds the index, which a search would do otherwise

    def set(self, effort: int, threads: int) -> None:
        self.parameters = {"metric_type": self.metric, "params": {"ef": effort}}

    def search(self, queries: Vectors, k: int) -> Rows:
        found = []
        for start in range(0, len(queries), QUERIES_PER_CALL):
            asked = list(queries[start : start + QUERIES_PER_CALL])
            found += self.client.search(
                "vectors", data=asked, limit=k, search_params=self.parameters
            )
        return np.array([[hit["row"] for hit in hits] for hits in found])
