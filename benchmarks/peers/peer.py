"""The interface of libraries that are measured."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from retrieval.contracts import Metric, Rows, Vectors
from retrieval.errors import UnknownName

M = 16
EF_CONSTRUCTION = 200
"""Of every graph, as ann-benchmarks and the libraries' own comparisons have them."""

EFFORTS = (
    *range(5, 9), *range(10, 21, 2), 23, 26, 30, 34, 40, 46, 52, 60, 70, 80, 92, 106, 122, 140, 160,
    185, 212, 244, 280, 320, 370, 425, 490, 560, 640, 740, 850,
)  # fmt: skip
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Ladders = Sequence[Sequence[Any]]


class Peer(ABC):
    """An index of one library with one build, searched with several efforts."""

    ladders: ClassVar[Ladders] = (EFFORTS,)
    """Efforts from the fastest to the most thorough; of a library with two, a ladder for each
    value of the other."""

    @abstractmethod
    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        """Build the index over vectors (n, dim), which are found by their rows.

        folder: empty, for a library that writes files.
        """

    @abstractmethod
    def set(self, effort: Any, threads: int) -> None:
        """Set the effort and the number of threads of later searches."""

    def prepared(self, queries: Vectors) -> Vectors:
        """Return the queries as `search` takes them; this is not timed."""
        return queries

    @abstractmethod
    def search(self, queries: Vectors, k: int) -> Rows:
        """Return the rows (q, k) nearest to prepared queries (q, dim)."""


class UnitPeer(Peer):
    """A library that compares Euclidean distances; these rank vectors of length 1 like cosines.

    cosine: set by `build`.
    """

    cosine: bool

    def prepared(self, queries: Vectors) -> Vectors:
        if not self.cosine:
            return queries
        return np.asarray(queries / np.linalg.norm(queries, axis=1, keepdims=True))


PEERS = {
    "hnswlib": "raw:Hnswlib",
    "faiss-hnsw": "raw:FaissHnsw",
    "faiss-hnsw-sq8": "raw:FaissHnswSq8",
    "faiss-ivf": "raw:FaissIvf",
    "faiss-ivfpq": "raw:FaissIvfPq",
    "svs": "svs:Svs",
    "svs-half": "svs:SvsHalf",
    "svs-lvq8": "svs:SvsLvq8",
    "svs-lvq4x8": "svs:SvsLvq4x8",
    "svs-leanvec": "svs:SvsLeanVec",
    "glass-sq8u": "glass:GlassSq8",
    "glass-sq4u": "glass:GlassSq4",
    "symphonyqg": "symphony:SymphonyQg",
    "usearch": "usearch:Usearch",
    "usearch-bf16": "usearch:UsearchBf16",
    "voyager": "voyager:Voyager",
    "lancedb": "lancedb:LanceDb",
    "milvus-lite": "milvus:MilvusLite",
    "retr-exact": "retr:RetrExact",
    "retr-ivf": "retr:RetrIvf",
    "retr-hnsw": "retr:RetrHnsw",
    "retr-hnsw-pca": "retr:RetrHnswPca",
    "retr-ivfpq": "retr:RetrIvfPq",
    "retr-vamana": "retr:RetrVamana",
    "retr-auto": "retr:RetrAuto",
}
"""Module and class of each peer."""

FROM_SOURCE = ("glass-sq8u", "glass-sq4u", "symphonyqg")
"""Peers without wheels."""


def open_peer(name: str) -> Peer:
    """Import the library of the peer, and return the peer. Raises UnknownName."""
    if name not in PEERS:
        raise UnknownName("peer", name, PEERS)
    module, _, kind = PEERS[name].partition(":")
    peer = getattr(import_module(f"benchmarks.peers.{module}"), kind)()
    assert isinstance(peer, Peer)
    return peer
