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
    CollectionFiller,
    check_count,
    check_same,
    drop,
    unfinished,
)
from indexers.milvus.database import LONG_REQUEST, URI, Database, Lite, Server, checked_uri, library
from indexers.milvus.holding import CollectionFacts, read_facts
from indexers.milvus.index import MilvusIndex
from indexers.options import EFFORTS, PROBES, check_range
from retrieval.choices import choice
from retrieval.contracts import Blocks, Index, Items, Json, Metric, Vectors
from retrieval.errors import BadData, BadInput, UnknownName
from retrieval.hits import InMemory
from retrieval.values import resolve_options

INDEX_TYPES = ("HNSW", "IVF_FLAT", "FLAT", "AUTOINDEX", "DISKANN")
SERVER_ONLY_TYPES = ("DISKANN",)
CONSISTENCY = ("Strong", "Bounded", "Session", "Eventually")


@dataclass(frozen=True)
class Milvus:
    """`milvus`: a collection of Milvus, searched with its index and filtered by its expressions.

    index_type: HNSW, IVF_FLAT, FLAT or AUTOINDEX; DISKANN on a server only.
    m, ef_construction: options of HNSW; see the backend hnsw.
    n_lists: number of lists of IVF_FLAT; see the backend ivf.
    ef: number of candidates that HNSW and DISKANN keep during a search.
    n_probe: number of lists that IVF_FLAT searches. Larger values of `ef` and `n_probe` raise
    recall and take more time.
    consistency: Strong, Bounded, Session or Eventually: the delay after which a server shows rows.
    uri: address of a server; None for MILVUS_URI. Without either, Milvus Lite keeps the collection
    in the index folder. The token comes from MILVUS_TOKEN only.
    collection: name of the collection; None for a name that depends on its content.

    The backend requires pymilvus: `pip install 'retr[milvus]'`. It cannot add or delete rows.
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
            raise BadInput(f"Milvus has no {self.metric} distance; use the backend exact or ivf")
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
                f"invalid collection name '{self.collection}'; use up to 255 letters, digits and "
                "_, and no digit first"
            )

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["Milvus"]:
        """Return an empty list.

        Trials over samples cannot predict the speed of a server, and Milvus Lite is slower than the
        other backends.
        """
        metric = choice(Metric, metric)
        return []

    def ladders(self) -> list[list["Milvus"]]:
        """Return a ladder of `ef` or `n_probe`, depending on the type of the index."""
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
        """Build an index of vectors (n, dim), n ≥ 1, which are not changed. Raises BadInput."""
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
            with database.connected():  # check the connection first: `drop` connects again at exit
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
        """Load the index saved in the folder, with these search options.

        Raises BadData if it is missing or damaged, BadInput if the server does not answer or has no
        such collection, Mismatch if the collection has changed.
        """
        library()
        collection, uri, holds = read_facts(folder)
        copies = _read_copies(folder, holds)
        if uri is None:
            if self.uri:
                raise BadInput(
                    f"the collection of {folder} is in the folder, not at {self.uri}; leave out "
                    "uri, or index again with it"
                )
            return _loaded(folder, collection, holds, copies, self)
        database = Server(collection, checked_uri(self.uri or uri), named_by_us=False)
        with database.connected() as client:
            if not client.has_collection(collection, timeout=database.timeout):
                raise BadInput(
                    f"{database.name} has no collection {collection}; index again, or name the "
                    "server that has it with --set uri="
                )
        check_same(database, holds)
        with database.connected() as client:
            client.load_collection(collection, **LONG_REQUEST)
        check_count(database, holds)
        return MilvusIndex(database, holds, self, copies)

    def _server(self) -> str:
        uri = self.uri or os.environ.get(URI, "")
        if not uri and self.index_type in SERVER_ONLY_TYPES:
            raise BadInput(
                f"Milvus Lite has no {self.index_type}; name a server in {URI}, or use HNSW"
            )
        return uri and checked_uri(uri)

    def _holding(
        self, blocks: Blocks, copies: Copies, encoder: str, source: Any
    ) -> CollectionFacts:
        build: dict[str, Json] = {}
        if self.index_type == "HNSW":
            build = {"M": self.m, "efConstruction": self.ef_construction}
        elif self.index_type == "IVF_FLAT":
            build = {"nlist": min(list_count(copies.vectors, self.n_lists), 65_536)}
        return CollectionFacts(
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
        holds: CollectionFacts,
        blocks: Blocks,
        copies: Copies,
        table: pa.Table | None,
    ) -> MilvusIndex:
        keys = np.flatnonzero(copies.is_first)
        filling = CollectionFiller(
            database, holds, copies.distinct(blocks), keys, table, self.consistency
        )
        return MilvusIndex(database, holds, self, copies, resumed_at=filling.fill())


def _read_copies(folder: Path, holds: CollectionFacts) -> Copies:
    """Read the rows that share vectors. Raises BadData."""
    copies = Copies.load(folder, holds.stored)
    if copies.rows != holds.rows:
        raise BadData(
            f"the file of copies in {folder} has {copies.rows:,} rows, not {holds.rows:,}; "
            "build the index again"
        )
    return copies


def _loaded(
    folder: Path, collection: str, holds: CollectionFacts, copies: Copies, options: Milvus
) -> MilvusIndex:
    """Load the index from Milvus Lite's files. Raises BadData."""
    database = Lite.saved(collection, folder)
    try:
        with database.connected() as client:
            if not client.has_collection(collection):
                raise BadData(f"{folder} has no collection {collection}; build the index again")
        check_same(database, holds)
        check_count(database, holds)
    except BadInput as problem:
        database.close()
        reason = str(problem).rpartition("; ")[0] or problem
        raise BadData(f"{folder} is damaged ({reason}); build the index again") from None
    return MilvusIndex(database, holds, options, copies)
