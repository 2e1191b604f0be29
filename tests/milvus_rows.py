"""Vectors and collections of Milvus, for tests."""

import numpy as np

from indexers.milvus import database as milvus_database
from retrieval.contracts import Vectors

DIM = 6


def vectors(rows: int, seed: int = 1) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def collections(uri: str) -> list[str]:
    database = milvus_database.Server("any", uri, named_by_us=True)
    with database.connected() as client:
        names = sorted(client.list_collections())
    database.close()
    return names
