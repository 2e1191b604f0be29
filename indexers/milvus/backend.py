"""The options of the backend `milvus`, which builds and opens collections of Milvus."""

import atexit
import os
import re
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from indexers.copies import Copies
from indexers.faiss.lists import list_count
from indexers.milvus.collection import (
    METRICS,
    Filling,
    check_count,
    check_same,
    drop,
    unfinished,
)
from indexers.milvus.database import URI, WORKING, Database, Lite, Server, checked_uri, library
from indexers.milvus.holding import Holding, read_facts
from indexers.milvus.index import MilvusIndex
from indexers.options import EFFORTS, PROBES, check_range
from retrieval.choices import choice
from retrieval.contracts import Blocks, Index, Items, Json, Metric, Vectors
from retrieval.errors import BadData, BadInput, UnknownName
from retrieval.hits import InMemory
from retrieval.values import resolve_options

INDEX_TYPES = ("HNSW", "IVF_FLAT", "FLAT", "AUTOINDEX", "DISKANN")
SERVERS_OWN = ("DISKANN",)
CONSISTENCY = ("Strong", "Bounded", "Session", "Eventually")


@dataclass(frozen=True)
class Milvus:
    """`milvus`: a collection of Milvus, searched with its index and filtered by its expressions.

    index_type: HNSW, IVF_FLAT, FLAT, AUTOINDEX; DISKANN on a server alone.
    m, ef_construction: of HNSW, as the backend hnsw has them. n_lists: of IVF_FLAT, as the
    backend ivf has it.
    ef: candidates that HNSW and DISKANN keep while a query walks. n_probe: lists of IVF_FLAT that
    are searched. More of either cost time and raise recall.
    consistency: Strong, Bounded, Session or Eventually: how late a server may be to show rows.
    uri: of a server; None for that in MILVUS_URI, or where that is not set, Milvus Lite in the
    index folder. The token comes from MILVUS_TOKEN alone.
    collection: its name; None for one that follows from what is in it.

    It wants pymilvus: `pip install 'retr[milvus]'`. Rows cannot be added to it or deleted.
    """

    metric: Metric = Metric.COSINE
    index_type: str = "HNSW"
    m: int = 16
    ef_construction: int = 200
    n_lists: int | None = None
    ef: int = 128
    n_probe: int = 32
    consistency: str = "Bounded"
    uri: str | None = None
    collection: str | None = None
    search_options: ClassVar[frozenset[str]] = frozenset({"ef", "n_probe", "consistency", "uri"})

    def __post_init__(self) -> None:
        if self.index_type not in INDEX_TYPES:
            raise UnknownName("index_type of backend milvus", self.index_type, INDEX_TYPES)
        if self.consistency not in CONSISTENCY:
            raise UnknownName("consistency of backend milvus", self.consistency, CONSISTENCY)
        resolve_options(self)
        if self.metric not in METRICS:
            raise BadInput(
                f"Milvus has no {self.metric} distance; use the backend exact or ivf for it"
            )
        check_range("m", self.m, 2, 2048)
        check_range("ef_construction", self.ef_construction, 1, 2**31 - 1)
        check_range("ef", self.ef, 1, 2**31 - 1)
        check_range("n_probe", self.n_probe, 1, 65_536)
        if self.n_lists is not None:
            check_range("n_lists", self.n_lists, 1, 65_536)
        if self.uri:
            checked_uri(self.uri)
        if self.collection and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", self.collection):
            raise BadInput(
                f"'{self.collection}' is no name of a collection; give letters, digits and _, up "
                "to 255, no digit first"
            )

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["Milvus"]:
        """None: no sample tells how fast a server is, and Milvus Lite is slower than the rest."""
        metric = choice(Metric, metric)
        return []

    def ladders(self) -> list[list["Milvus"]]:
        """By `ef` or `n_probe`, as the index has them."""
        match self.index_type:
            case "HNSW" | "DISKANN":
                return [[replace(self, ef=ef) for ef in EFFORTS]]
            case "IVF_FLAT":
                return [[replace(self, n_probe=n_probe) for n_probe in PROBES]]
            case _:
                return [[self]]

    def apply(self, index: Index) -> None:
        """Set `ef`, `n_probe` and `consistency`."""
        assert isinstance(index, MilvusIndex)
        index.options = self

    def build(self, vectors: Vectors) -> MilvusIndex:
        """Return an index of the vectors (n, dim), n ≥ 1, in a copy. Raises BadInput for others."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> MilvusIndex:
        """Build an index from blocks; see `Streaming`. A server's collection is dropped at exit."""
        library()
        uri = self._server()
        copies = Copies.find(blocks, self.metric)
        holds = self._holding(blocks, copies, "", [])
        database: Database
        if uri:
            database = Server(f"retr_tmp_{uuid.uuid4().hex}", uri, named_by_us=True)
            with database.asked():  # else it would be looked up again at exit
                atexit.register(drop, database)
        else:
            database = Lite.temporary(self.collection or "retr")
        return self._filled(database, holds, blocks, copies, None)

    def store(self, items: Items) -> MilvusIndex:
        """Build an index with ids, labels and paths, continuing a killed build; see `Storing`."""
        library()
        uri = self._server()
        copies = Copies.find(items, self.metric)
        holds = self._holding(items, copies, items.encoder, items.source)
        database: Database
        if uri:
            database = Server(self.collection or holds.name(), uri, named_by_us=True)
        else:
            database = unfinished(self.collection or "retr", items.unfinished, holds)
        return self._filled(database, holds, items, copies, items.table)

    def load(self, folder: Path) -> MilvusIndex:
        """Return the index saved in the folder, to be searched with these options.

        Raises BadData if it is not there or damaged, BadInput for a server that does not answer or
        lacks the collection, Mismatch where that is another than it was.
        """
        library()
        collection, uri, holds = read_facts(folder)
        copies = _read_copies(folder, holds)
        if uri is None:
            if self.uri:
                raise BadInput(
                    f"{folder} holds its collection itself, and none at {self.uri}; leave uri away,"
                    " or index anew with it"
                )
            return _loaded(folder, collection, holds, copies, self)
        database = Server(collection, checked_uri(self.uri or uri), named_by_us=False)
        with database.asked() as client:
            if not client.has_collection(collection, timeout=database.answering):
                raise BadInput(
                    f"{database.name} has no collection {collection}; index anew, or name the "
                    "server that has it with --set uri="
                )
        check_same(database, holds)
        with database.asked() as client:
            client.load_collection(collection, **WORKING)
        check_count(database, holds)
        return MilvusIndex(database, holds, self, copies)

    def _server(self) -> str:
        uri = self.uri or os.environ.get(URI, "")
        if not uri and self.index_type in SERVERS_OWN:
            raise BadInput(
                f"Milvus Lite has no {self.index_type}; name a server in {URI}, or take HNSW"
            )
        return uri and checked_uri(uri)

    def _holding(self, blocks: Blocks, copies: Copies, encoder: str, source: Any) -> Holding:
        build: dict[str, Json] = {}
        if self.index_type == "HNSW":
            build = {"M": self.m, "efConstruction": self.ef_construction}
        elif self.index_type == "IVF_FLAT":
            build = {"nlist": min(list_count(copies.vectors, self.n_lists), 65_536)}
        return Holding(
            encoder,
            [*source],
            blocks.rows,
            blocks.dim,
            str(self.metric),
            self.index_type,
            build,
            None if copies.vector_of is None else copies.vectors,
        )

    def _filled(
        self,
        database: Database,
        holds: Holding,
        blocks: Blocks,
        copies: Copies,
        table: pa.Table | None,
    ) -> MilvusIndex:
        keys = np.flatnonzero(copies.is_first)
        filling = Filling(database, holds, copies.distinct(blocks), keys, table, self.consistency)
        return MilvusIndex(database, holds, self, copies, resumed_at=filling.fill())


def _read_copies(folder: Path, holds: Holding) -> Copies:
    """Return the rows that share vectors. Raises BadData."""
    copies = Copies.load(folder, holds.stored)
    if copies.rows != holds.rows:
        raise BadData(
            f"the copies in {folder} are of {copies.rows:,} rows, not {holds.rows:,}; "
            "build the index again"
        )
    return copies


def _loaded(
    folder: Path, collection: str, holds: Holding, copies: Copies, options: Milvus
) -> MilvusIndex:
    """Return the index in Milvus Lite's files. Raises BadData."""
    database = Lite.saved(collection, folder)
    try:
        with database.asked() as client:
            if not client.has_collection(collection):
                raise BadData(f"{folder} lacks the collection {collection}; build the index again")
        check_same(database, holds)
        check_count(database, holds)
    except BadInput as problem:
        database.close()
        reason = str(problem).rpartition("; ")[0] or problem
        raise BadData(f"{folder} is damaged ({reason}); build the index again") from None
    return MilvusIndex(database, holds, options, copies)
