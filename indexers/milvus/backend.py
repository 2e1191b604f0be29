"""Milvus: the rows in a collection of its own, on a server or in Milvus Lite's files.

docs/milvus.md says what lies where.
"""

import atexit
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, cast

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexers.faiss import bridge
from indexers.faiss.lists import list_count
from indexers.milvus.database import (
    URI,
    WORKING,
    Database,
    Lite,
    Server,
    checked_uri,
    files_in,
    library,
)
from indexers.options import EFFORTS, PROBES, check_range
from retrieval.choices import choice, resolve_choices
from retrieval.contracts import (
    Blocks,
    Filter,
    Hits,
    Index,
    Items,
    Json,
    Mask,
    Metric,
    Rows,
    Vectors,
)
from retrieval.errors import BadData, BadInput, Mismatch, RetrError, UnknownName
from retrieval.hits import Found, InMemory, answer, checked_blocks, prepared
from retrieval.storage.files import check_format, read_json, write_json

FACTS = "milvus.json"
FORMAT, VERSION = "retr-milvus", 1

METRICS = {Metric.COSINE: "COSINE", Metric.EUCLIDEAN: "L2", Metric.INNER_PRODUCT: "IP"}
INDEX_TYPES = ("HNSW", "IVF_FLAT", "FLAT", "AUTOINDEX", "DISKANN")
SERVERS_OWN = ("DISKANN",)
CONSISTENCY = ("Strong", "Bounded", "Session", "Eventually")

ROW, VECTOR, TEXTS = "row", "vector", ("id", "label", "path")
LONGEST_TEXT = 65_535  # bytes, of a VARCHAR
BATCH_BYTES = 2**22  # of vectors in one insert; servers take up to 64 MB
BATCH_ROWS = 5_000
QUERIES_AT_ONCE = 1_000
HITS_AT_ONCE = 2**17
CELLS_AT_ONCE = 2**24  # distances that Milvus Lite holds at once where it compares all rows
MOST_HITS = 16_384  # that a server gives for a query
FETCHED = 5_000  # rows with their vectors in one answer
MOST_FETCHED = 2**31  # bytes of vectors that are compared here
MOST_KEPT = 2**28  # bytes of such vectors that are kept for the next search
GREATEST_EF = 2**15
WALKED = ("HNSW", "AUTOINDEX")
FETCHING = 20  # steps of Milvus Lite's walk take as long as to fetch one vector


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
        resolve_choices(self)
        if self.metric not in METRICS:
            raise BadInput(
                f"Milvus has no {self.metric} distance; use the backend exact or ivf for it"
            )
        if self.index_type not in INDEX_TYPES:
            raise UnknownName("index_type of backend milvus", self.index_type, INDEX_TYPES)
        if self.consistency not in CONSISTENCY:
            raise UnknownName("consistency of backend milvus", self.consistency, CONSISTENCY)
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

    def build(self, vectors: Vectors) -> "MilvusIndex":
        """An index of the vectors (n, dim), n ≥ 1, in a copy. Raises BadInput for others."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> "MilvusIndex":
        """The same from blocks, as `Streaming` says. A server's collection is gone at exit."""
        library()
        holds = self._holding(blocks, "", [])
        uri = self._server()
        database: Database
        if uri:
            database = Server(f"retr_tmp_{uuid.uuid4().hex}", uri, named_by_us=True)
            with database.asked():  # or it would be looked for once more at exit
                atexit.register(_drop, database)
        else:
            database = Lite.temporary(self.collection or "retr")
        return self._filled(database, holds, blocks, None)

    def store(self, items: Items) -> "MilvusIndex":
        """The same with ids, labels and paths, behind what is there, as `Storing` says."""
        library()
        holds = self._holding(items, items.encoder, items.source)
        uri = self._server()
        database: Database
        if uri:
            database = Server(self.collection or holds.name(), uri, named_by_us=True)
        else:
            database = _unfinished(self.collection or "retr", items.unfinished, holds)
        return self._filled(database, holds, items, items.table)

    def load(self, folder: Path) -> "MilvusIndex":
        """The index saved in the folder, to be searched with these options.

        Raises BadData if it is not there or damaged, BadInput for a server that does not answer or
        lacks the collection, Mismatch where that is another than it was.
        """
        library()
        collection, uri, holds = _read_facts(folder)
        if uri is None:
            if self.uri:
                raise BadInput(
                    f"{folder} holds its collection itself, and none at {self.uri}; leave uri away,"
                    " or index anew with it"
                )
            return _loaded(folder, collection, holds, self)
        database = Server(collection, checked_uri(self.uri or uri), named_by_us=False)
        with database.asked() as client:
            if not client.has_collection(collection, timeout=database.answering):
                raise BadInput(
                    f"{database.name} has no collection {collection}; index anew, or name the "
                    "server that has it with --set uri="
                )
        _check_same(database, holds)
        with database.asked() as client:
            client.load_collection(collection, **WORKING)
        _check_count(database, holds)
        return MilvusIndex(database, holds, self)

    def _server(self) -> str:
        uri = self.uri or os.environ.get(URI, "")
        if not uri and self.index_type in SERVERS_OWN:
            raise BadInput(
                f"Milvus Lite has no {self.index_type}; name a server in {URI}, or take HNSW"
            )
        return uri and checked_uri(uri)

    def _holding(self, blocks: Blocks, encoder: str, source: Any) -> "Holding":
        build: dict[str, Json] = {}
        if self.index_type == "HNSW":
            build = {"M": self.m, "efConstruction": self.ef_construction}
        elif self.index_type == "IVF_FLAT":
            build = {"nlist": min(list_count(blocks.rows, self.n_lists), 65_536)}
        return Holding(
            encoder, [*source], blocks.rows, blocks.dim, str(self.metric), self.index_type, build
        )

    def _filled(
        self, database: Database, holds: "Holding", blocks: Blocks, table: pa.Table | None
    ) -> "MilvusIndex":
        """The index of a collection that holds all rows, and has Milvus's index then and no sooner.

        So one that has it is complete, and is neither added to nor dropped.
        """
        name, there, complete = database.collection, 0, False
        with database.asked() as client:
            if client.has_collection(name, timeout=database.answering):
                _check_same(database, holds)
                complete = bool(client.list_indexes(name, timeout=database.answering))
                client.flush(name, **WORKING)  # or a server does not count them
                counted = client.get_collection_stats(name, timeout=database.answering)
                there = int(counted["row_count"])
            else:
                self._create(database, holds, table)
        if not complete:
            self._complete(database, holds, blocks, table, there)
        with database.asked() as client:
            client.load_collection(name, **WORKING)
        try:
            _check_count(database, holds)
        except BadData:
            if not complete:  # and so nobody's yet
                _drop(database)
            raise
        return MilvusIndex(database, holds, self, resumed_at=there)

    def _complete(
        self,
        database: Database,
        holds: "Holding",
        blocks: Blocks,
        table: pa.Table | None,
        there: int,
    ) -> None:
        """Insert the rows behind those that are there, and let Milvus index all of them."""
        for first, block in _good(blocks, self.metric, database):
            for start in range(0, len(block), holds.batch()):
                batch = block[start : start + holds.batch()]
                row = first + start
                if row + len(batch) > there:
                    # What is there in part was being written when the build was killed.
                    _insert(database, row, batch, table, again=row < there)
        with database.asked() as client:
            client.flush(database.collection, **WORKING)
            index = client.prepare_index_params()
            index.add_index(
                VECTOR,
                index_type=self.index_type,
                metric_type=METRICS[self.metric],
                # As Milvus Lite wants them, which ignores them where they are spread out.
                params={"params": holds.build} if holds.build else {},
            )
            # Milvus Lite builds it when it loads: there is nothing to wait for.
            client.create_index(database.collection, index, **WORKING, sync=not database.lite)

    def _create(self, database: Database, holds: "Holding", table: pa.Table | None) -> None:
        pymilvus = library()
        kinds = pymilvus.DataType
        text = holds.text()
        schema = pymilvus.MilvusClient.create_schema(auto_id=False, description=text)
        schema.add_field(ROW, kinds.INT64, is_primary=True)
        schema.add_field(VECTOR, kinds.FLOAT_VECTOR, dim=holds.dim)
        if table is not None:
            for column in TEXTS:
                _check_texts(table, column)
                schema.add_field(
                    column, kinds.VARCHAR, max_length=LONGEST_TEXT, nullable=column != "id"
                )
        database.client.create_collection(
            database.collection,
            schema=schema,
            consistency_level=self.consistency,
            properties={"retr": text},
            timeout=database.answering,
        )


@dataclass(frozen=True)
class Holding:
    """What a collection is to hold: whose vectors, how many, of which build.

    encoder, source: as `Items` has them; empty for bare vectors, which have no ids and labels.
    """

    encoder: str
    source: list[str]
    rows: int
    dim: int
    metric: str
    index_type: str
    build: dict[str, Json]

    def name(self) -> str:
        """The same for the same content."""
        return f"retr_{sha256(self.text().encode()).hexdigest()[:16]}"

    def text(self) -> str:
        """As the collection carries it."""
        return f"{FORMAT} {VERSION} {json.dumps(asdict(self), sort_keys=True)}"

    def batch(self) -> int:
        """Rows in one insert."""
        return max(1, min(BATCH_ROWS, BATCH_BYTES // (4 * self.dim)))

    @classmethod
    def of(cls, text: str) -> "Holding | None":
        """What `text` says; None where that is nothing of retr's."""
        form, _, rest = text.partition(" ")
        version, _, document = rest.partition(" ")
        try:
            if form != FORMAT or int(version) > VERSION:
                return None
            return cls.read(json.loads(document))
        except (TypeError, ValueError):
            return None

    @classmethod
    def read(cls, document: Any) -> "Holding":
        """From JSON. Raises TypeError or ValueError."""
        holds = cls(**document)
        kinds = {"rows": int, "dim": int, "source": list, "build": dict}
        for field in fields(cls):
            value = getattr(holds, field.name)
            if not isinstance(value, kinds.get(field.name, str)) or isinstance(value, bool):
                raise ValueError(f"{field.name}: {value!r}")
        return holds


class MilvusIndex:
    """A collection whose primary keys are the rows."""

    def __init__(
        self, database: Database, holds: Holding, options: Milvus, resumed_at: int = 0
    ) -> None:
        self.database = database
        self.holds = holds
        self.options = options
        self.resumed_at = resumed_at
        self.metric = options.metric
        self.dim = holds.dim
        self._kept: tuple[Rows, faiss.IndexFlat] | None = None

    @property
    def details(self) -> Mapping[str, Json]:
        """Where the collection lies, and at which row an earlier build was taken up again."""
        details: dict[str, Json] = {
            "database": self.database.name,
            "collection": self.database.collection,
        }
        if "nlist" in self.holds.build:
            details["n_lists"] = self.holds.build["nlist"]
        if self.resumed_at:
            details["resumed_at"] = self.resumed_at
        return details

    def __len__(self) -> int:
        return self.holds.rows

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """The k nearest rows that Milvus comes by, as `Index` and `Hits` say.

        A mask becomes an expression that lists its rows. Queries for which too few were found are
        compared with the vectors of all rows that may be found, fetched for it.
        """
        return answer(self._nearest, queries, k, among, dim=self.dim, rows=len(self))

    def search_where(self, queries: Vectors, k: int, among: Mask, where: Filter) -> Hits:
        """The same with an expression over id or label, as `Filtering` says."""
        if not self.holds.encoder:  # bare vectors
            return self.search(queries, k, among)
        nearest = partial(self._nearest, where=expression_of(where))
        return answer(nearest, queries, k, among, dim=self.dim, rows=len(self))

    def save(self, folder: Path) -> None:
        """Write milvus.json, and Milvus Lite's files; a server's collection stays there."""
        self.database.save(folder)
        sizes: dict[str, Json] = {file.name: file.stat().st_size for file in files_in(folder)}
        facts: dict[str, Json] = {
            "format": FORMAT,
            "version": VERSION,
            "collection": self.database.collection,
            "uri": self.database.uri if isinstance(self.database, Server) else None,
            "holds": cast(Json, asdict(self.holds)),
            "bytes": sizes,
        }
        write_json(folder / FACTS, facts)

    def _nearest(self, queries: Vectors, count: int, among: Mask | None, where: str = "") -> Found:
        queries = prepared(queries, self.metric)
        matching = len(self) if among is None else int(np.count_nonzero(among))
        lite, filtered = self.database.lite, among is not None
        fits = 4 * self.dim * matching <= MOST_FETCHED
        if not lite and count > MOST_HITS:
            if not fits:
                raise BadInput(f"k is {count:,}, and Milvus gives {MOST_HITS:,}; ask for fewer")
            return self._compared(queries, count, among, where)
        if lite and among is not None and fits and self._is_longer(len(queries), among, matching):
            return self._compared(queries, count, among, where)
        expression = ""
        if among is not None:
            expression = where or rows_expression(among, matching)
        usual, most = self._efforts(count)
        rows, distances = self._asked(
            queries, count, expression, most if lite and filtered else usual
        )
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short) and not lite and usual != most:
            rows[short], distances[short] = self._asked(queries[short], count, expression, most)
            short = np.flatnonzero(rows[:, -1] < 0)
        if len(short) and fits:
            rows[short], distances[short] = self._compared(queries[short], count, among, where)
        return rows, distances

    def _is_longer(self, queries: int, among: Mask, matching: int) -> bool:
        """Whether walking Milvus Lite's whole graph takes longer than fetching the vectors.

        A shorter walk would stop among the rows that are nearest to the query, of which the
        filter may admit none.
        """
        if self.options.index_type not in WALKED:
            return False
        if self._kept is not None and np.array_equal(self._kept[0], np.flatnonzero(among)):
            return True
        return queries * len(self) > FETCHING * matching

    def _efforts(self, count: int) -> tuple[dict[str, int], dict[str, int]]:
        """The parameters of a search for `count` rows, and those of the most thorough."""
        ef = max(count, self.options.ef)
        lite = self.database.lite
        most = max(ef, len(self) if lite else min(len(self), GREATEST_EF))
        match self.options.index_type:
            case "HNSW":
                return {"ef": ef}, {"ef": most}
            case "AUTOINDEX" if lite:  # an HNSW index there
                return {"ef": ef}, {"ef": most}
            case "DISKANN":
                return {"search_list": ef}, {"search_list": ef}
            case "IVF_FLAT":
                lists = cast(int, self.holds.build["nlist"])
                return {"nprobe": min(lists, self.options.n_probe)}, {"nprobe": lists}
            case _:
                return {}, {}

    def _asked(
        self, queries: Vectors, count: int, expression: str, effort: dict[str, int]
    ) -> Found:
        """What Milvus finds, -1 where that is fewer than `count`."""
        rows = np.full((len(queries), count), -1, np.int64)
        scores = np.zeros((len(queries), count), np.float32)
        at_once = min(QUERIES_AT_ONCE, HITS_AT_ONCE // count)
        if self.options.index_type == "FLAT":
            at_once = min(at_once, CELLS_AT_ONCE // len(self))
        at_once = max(1, at_once)
        for start in range(0, len(queries), at_once):
            with self.database.asked() as client:
                found = client.search(
                    self.database.collection,
                    data=[*queries[start : start + at_once]],
                    anns_field=VECTOR,
                    filter=expression,
                    limit=count,
                    output_fields=[ROW],
                    search_params={"metric_type": METRICS[self.metric], "params": effort},
                    consistency_level=self.options.consistency,
                    timeout=self.database.answering,
                )
            for line, hits in enumerate(found, start=start):
                rows[line, : len(hits)] = hits.ids
                scores[line, : len(hits)] = hits.distances
        return rows, bridge.to_distances(scores, self.metric)

    def _compared(self, queries: Vectors, count: int, among: Mask | None, where: str) -> Found:
        """The true neighbors among the rows of the mask, by comparing their vectors here."""
        rows, flat = self._fetched(among, where)
        places, distances = bridge.compared(flat, queries, count, None, self.metric)
        return rows[places], distances

    def _fetched(self, among: Mask | None, where: str) -> tuple[Rows, faiss.IndexFlat]:
        """The rows of the mask, and their vectors.

        Those of the last time are kept where the collection is a copy that nobody else can change.
        """
        rows = np.arange(len(self)) if among is None else np.flatnonzero(among)
        if self._kept is not None and np.array_equal(self._kept[0], rows):
            return self._kept
        flat = faiss.IndexFlat(self.dim, bridge.METRICS[self.metric])
        for start in range(0, len(rows), FETCHED):
            part = rows[start : start + FETCHED]
            first, last = int(part[0]), int(part[-1])
            expression = f"{ROW} >= {first} and {ROW} <= {last}"
            if where:
                expression += f" and {where}"
            elif last - first >= len(part):
                expression = f"{ROW} in {part.tolist()}"
            with self.database.asked() as client:
                found = client.query(
                    self.database.collection,
                    filter=expression,
                    output_fields=[ROW, VECTOR],
                    consistency_level=self.options.consistency,
                    timeout=self.database.answering,
                )
            by_row = {each[ROW]: each[VECTOR] for each in found}
            if len(by_row) != len(part):
                raise BadData(
                    f"the collection {self.database.collection} of {self.database.name} has "
                    f"{len(by_row):,} of {len(part):,} rows from {first} to {last}; index anew"
                )
            flat.add(np.array([by_row[row] for row in part.tolist()], np.float32))
        if isinstance(self.database, Lite) and 4 * self.dim * len(rows) <= MOST_KEPT:
            self._kept = rows, flat
        return rows, flat


def expression_of(where: Filter) -> str:
    """The filter in Milvus's language."""
    return f"{where.field} in [{', '.join(map(_quoted, where.values))}]"


def rows_expression(among: Mask, matching: int) -> str:
    """What admits the rows of the mask, by the shorter of two lists: theirs, or the others'."""
    listed, word = (among, "in") if 2 * matching <= len(among) else (~among, "not in")
    return f"{ROW} {word} {np.flatnonzero(listed).tolist()}"


def _quoted(text: str) -> str:
    """A string literal; Milvus Lite knows no escapes but these."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(letter, letter) for letter in text) + '"'


def _good(blocks: Blocks, metric: Metric, database: Database) -> Iterator[tuple[int, Vectors]]:
    """The blocks, prepared. Where they are at fault, no collection of them stays behind."""
    try:
        yield from checked_blocks(blocks, metric)
    except RetrError:
        _drop(database)
        raise


def _insert(
    database: Database, first: int, vectors: Vectors, table: pa.Table | None, again: bool
) -> None:
    """Insert the vectors as the rows from `first` on; again: over such as may be there."""
    texts: dict[str, list[str | None]] = {}
    if table is not None:
        texts = table.slice(first, len(vectors)).select([*TEXTS]).to_pydict()
    rows: list[dict[str, Any]] = [
        {ROW: first + place, VECTOR: vector} for place, vector in enumerate(vectors)
    ]
    for column, values in texts.items():
        for row, value in zip(rows, values, strict=True):
            row[column] = value
    with database.asked() as client:
        write = client.upsert if again else client.insert
        write(database.collection, rows, timeout=database.answering)


def _check_texts(table: pa.Table, column: str) -> None:
    longest = pc.max(pc.binary_length(table[column])).as_py() or 0
    if longest > LONGEST_TEXT:
        raise BadInput(
            f"a {column} has {longest:,} bytes, and Milvus holds {LONGEST_TEXT:,}; take another "
            "backend, or shorten it"
        )


def _check_same(database: Database, holds: Holding) -> None:
    """Raise Mismatch unless the collection is one of the same rows and the same build."""
    name, where = database.collection, database.name
    with database.asked() as client:
        described = client.describe_collection(name, timeout=database.answering)
    said = described.get("properties", {}).get("retr") or described.get("description") or ""
    found = Holding.of(str(said))
    another = "drop it, or name another with --set collection="
    if found is None:
        raise Mismatch(f"the collection {name} of {where} was not made by this retr; {another}")
    if found == holds:
        return
    if found.encoder != holds.encoder:
        what = f"is of encoder {found.encoder[:8]}, not {holds.encoder[:8]}"
    elif found.dim != holds.dim:
        what = f"has {found.dim} dimensions, not {holds.dim}"
    elif found.metric != holds.metric:
        what = f"is for {found.metric} distances, not {holds.metric}"
    elif (found.source, found.rows) != (holds.source, holds.rows):
        what = f"holds {found.rows:,} rows of other embeddings"
    else:
        options = " ".join(f"{name}={value}" for name, value in found.build.items())
        what = f"has an index of other options ({' '.join((found.index_type, options)).strip()})"
    raise Mismatch(f"the collection {name} of {where} {what}; {another}")


def _check_count(database: Database, holds: Holding) -> None:
    """Raise BadData unless the collection has as many rows as it should."""
    with database.asked() as client:
        (found,) = client.query(
            database.collection,
            filter="",
            output_fields=["count(*)"],
            consistency_level="Strong",
            timeout=database.answering,
        )
    if found["count(*)"] != holds.rows:
        drop = "" if isinstance(database, Lite) else "drop it, and "
        raise BadData(
            f"the collection {database.collection} of {database.name} has "
            f"{found['count(*)']:,} rows, not {holds.rows:,}; {drop}build the index again"
        )


def _drop(database: Database) -> None:
    """Drop the collection, if that can be."""
    try:
        with database.asked() as client:
            client.drop_collection(database.collection, timeout=database.answering)
    except BadInput:
        return  # it is not complete, and so not mistaken for one that is


def _unfinished(collection: str, folder: Path, holds: Holding) -> Lite:
    """The database of a build of the same that was killed, or a new one."""
    if folder.exists():
        left = Lite(collection, folder)
        try:
            with left.asked() as client:
                if client.has_collection(collection):
                    _check_same(left, holds)
            return left
        except BadInput:  # of other rows, or damaged
            left.stop()
            shutil.rmtree(folder)
    return Lite(collection, folder)


def _loaded(folder: Path, collection: str, holds: Holding, options: Milvus) -> MilvusIndex:
    """The index in Milvus Lite's files. Raises BadData."""
    database = Lite.saved(collection, folder)
    try:
        with database.asked() as client:
            if not client.has_collection(collection):
                raise BadData(f"{folder} lacks the collection {collection}; build the index again")
        _check_same(database, holds)
        _check_count(database, holds)
    except BadInput as problem:
        database.close()
        reason = str(problem).rpartition("; ")[0] or problem
        raise BadData(f"{folder} is damaged ({reason}); build the index again") from None
    return MilvusIndex(database, holds, options)


def _read_facts(folder: Path) -> tuple[str, str | None, Holding]:
    """The collection, the server's address or None, and what it holds. Raises BadData."""
    path = folder / FACTS
    document: Any = read_json(path)
    check_format(document, FORMAT, VERSION, path)
    try:
        collection, uri, sizes = document["collection"], document["uri"], dict(document["bytes"])
        holds = Holding.read(document["holds"])
        if not isinstance(collection, str) or not isinstance(uri, str | None):
            raise ValueError(f"collection {collection!r}, uri {uri!r}")
    except (KeyError, TypeError, ValueError) as problem:
        raise BadData(f"{path} lacks or misstates {problem}; build the index again") from None
    there = {file.name: file.stat().st_size for file in files_in(folder)}
    for name in sorted({*sizes, *there}):
        if sizes.get(name) != there.get(name):
            raise BadData(
                f"{folder / name} has {there.get(name, 0):,} of {sizes.get(name, 0):,} bytes; "
                "build the index again"
            )
    return collection, uri, holds
