"""Search a collection of Milvus by its index, or fetch its vectors and compare them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import faiss
import numpy as np

from indexers.copies import Copies
from indexers.faiss import bridge
from indexers.milvus.collection import KEY, METRICS, VECTOR
from indexers.milvus.database import Database, Lite
from indexers.milvus.holding import CollectionFacts, write_facts
from retrieval.contracts import Filter, Hits, Json, Mask, Rows, Vectors
from retrieval.errors import BadData, BadInput
from retrieval.hits import Found, answer, prepared

if TYPE_CHECKING:
    from indexers.milvus.backend import Milvus

QUERIES_PER_REQUEST = 1_000
HITS_PER_REQUEST = 2**17
MAX_LITE_DISTANCES = 2**24  # in Milvus Lite's memory when it compares all rows
MAX_SERVER_HITS = 16_384  # hits of a query that a server returns
ROWS_PER_FETCH = 5_000
MAX_FETCHED_BYTES = 2**31  # vectors that are compared outside Milvus
MAX_KEPT_BYTES = 2**28  # fetched vectors that are cached for the next search
MAX_EF = 2**15
GRAPH_TYPES = ("HNSW", "AUTOINDEX")
STEPS_PER_FETCH = 20  # Milvus Lite walks this far while one vector is fetched


class MilvusIndex:
    """Index in a collection of distinct vectors.

    The primary key of a vector is the first row that has it. Methods with a leading underscore
    number the vectors as `Copies` does.
    """

    def __init__(
        self,
        database: Database,
        holds: CollectionFacts,
        options: "Milvus",
        copies: Copies,
        resumed_at: int = 0,
    ) -> None:
        self.database = database
        self.holds = holds
        self.copies = copies
        self.keys = np.flatnonzero(copies.is_first)
        self.options = options
        self.resumed_at = resumed_at
        self.metric = options.metric
        self.dim = holds.dim
        self._kept: tuple[Rows, faiss.IndexFlat] | None = None

    @property
    def details(self) -> Mapping[str, Json]:
        """The database and the collection, and the row at which a killed build was resumed."""
        details: dict[str, Json] = {
            "database": self.database.name,
            "collection": self.database.collection,
            **self.copies.details,
        }
        if "nlist" in self.holds.build:
            details["n_lists"] = self.holds.build["nlist"]
        if self.resumed_at:
            details["resumed_at"] = self.resumed_at
        return details

    def __len__(self) -> int:
        return self.holds.rows

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows that Milvus finds; see `Index` and `Hits`.

        A mask is sent as an expression that lists its rows. If Milvus finds too few rows for a
        query, the vectors of all rows that may be found are fetched and compared with the query.
        """
        return self._answer(queries, k, among, "")

    def search_where(self, queries: Vectors, k: int, among: Mask, where: Filter) -> Hits:
        """Search with an expression over id or label; see `Filtering`."""
        return self._answer(queries, k, among, self._expression_of(where, among))

    def _answer(self, queries: Vectors, k: int, among: Mask | None, where: str) -> Hits:
        nearest = self.copies.expanded(partial(self._nearest, where=where))
        return answer(nearest, queries, k, among, dim=self.dim, rows=len(self))

    def _expression_of(self, where: Filter, among: Mask) -> str:
        """Return an expression for the vectors of the mask's rows.

        The collection has the id and the label of the first row of each vector. A vector is listed
        by its key if only a later row matches the filter. The expression is empty for a collection
        without ids and labels.
        """
        if not self.holds.encoder:
            return ""
        expression = expression_of(where)
        if self.copies.vector_of is None:
            return expression
        admitted = np.zeros(self.copies.vectors, np.bool_)
        admitted[self.copies.vector_of[among]] = True
        admitted[among[self.keys]] = False
        if not admitted.any():
            return expression
        return f"({expression} or {KEY} in {self.keys[admitted].tolist()})"

    def save(self, folder: Path) -> None:
        """Write milvus.json, and Milvus Lite's files. A collection on a server stays there."""
        self.database.save(folder)
        self.copies.save(folder)
        write_facts(folder, self.database, self.holds)

    def _nearest(self, queries: Vectors, count: int, among: Mask | None, where: str = "") -> Found:
        queries = prepared(queries, self.metric)
        matching = len(self.keys) if among is None else int(np.count_nonzero(among))
        lite, filtered = self.database.lite, among is not None
        fits = 4 * self.dim * matching <= MAX_FETCHED_BYTES
        if not lite and count > MAX_SERVER_HITS:
            if not fits:
                raise BadInput(
                    f"k is {count:,}, and Milvus returns at most {MAX_SERVER_HITS:,}; ask for fewer"
                )
            return self._compared(queries, count, among, where)
        if lite and among is not None and fits and self._is_longer(len(queries), among, matching):
            return self._compared(queries, count, among, where)
        expression = ""
        if among is not None:
            expression = where or rows_expression(self.keys, among)
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
        """Return whether walking Milvus Lite's whole graph takes longer than fetching the vectors.

        A shorter walk would stop among the rows nearest to the query, and none of these may match
        the filter.
        """
        if self.options.index_type not in GRAPH_TYPES:
            return False
        if self._kept is not None and np.array_equal(self._kept[0], np.flatnonzero(among)):
            return True
        return queries * len(self.keys) > STEPS_PER_FETCH * matching

    def _efforts(self, count: int) -> tuple[dict[str, int], dict[str, int]]:
        """Return the parameters of a search for `count` rows, and those of maximum recall."""
        ef = max(count, self.options.ef)
        lite = self.database.lite
        most = max(ef, len(self.keys) if lite else min(len(self.keys), MAX_EF))
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
        """Return the vectors that Milvus finds, (queries, count); -1 if it finds fewer."""
        keys = np.full((len(queries), count), -1, np.int64)
        scores = np.zeros((len(queries), count), np.float32)
        at_once = min(QUERIES_PER_REQUEST, HITS_PER_REQUEST // count)
        if self.options.index_type == "FLAT":
            at_once = min(at_once, MAX_LITE_DISTANCES // len(self.keys))
        at_once = max(1, at_once)
        for start in range(0, len(queries), at_once):
            with self.database.connected() as client:
                found = client.search(
                    self.database.collection,
                    data=[*queries[start : start + at_once]],
                    anns_field=VECTOR,
                    filter=expression,
                    limit=count,
                    output_fields=[KEY],
                    search_params={"metric_type": METRICS[self.metric], "params": effort},
                    consistency_level=self.options.consistency,
                    timeout=self.database.timeout,
                )
            for line, hits in enumerate(found, start=start):
                keys[line, : len(hits)] = hits.ids
                scores[line, : len(hits)] = hits.distances
        return self._numbers(keys), bridge.to_distances(scores, self.metric)

    def _numbers(self, keys: Rows) -> Rows:
        """Return the numbers of the vectors with these primary keys; -1 stays -1."""
        vector_of = self.copies.vector_of
        return keys if vector_of is None else np.where(keys < 0, -1, vector_of[keys])

    def _compared(self, queries: Vectors, count: int, among: Mask | None, where: str) -> Found:
        """Return the true neighbors among the vectors of the mask, after fetching these."""
        rows, flat = self._fetched(among, where)
        places, distances = bridge.compared(flat, queries, count, None, self.metric)
        return rows[places], distances

    def _fetched(self, among: Mask | None, where: str) -> tuple[Rows, faiss.IndexFlat]:
        """Return the vectors of the mask: their numbers, and an index of them.

        The last result is cached if no other process can change the collection.
        """
        rows = np.arange(len(self.keys)) if among is None else np.flatnonzero(among)
        kept = self._kept  # another thread may change it
        if kept is not None and np.array_equal(kept[0], rows):
            return kept
        flat = faiss.IndexFlat(self.dim, bridge.METRICS[self.metric])
        for start in range(0, len(rows), ROWS_PER_FETCH):
            part = rows[start : start + ROWS_PER_FETCH]
            flat.add(self._vectors_of(part, where))
        if isinstance(self.database, Lite) and 4 * self.dim * len(rows) <= MAX_KEPT_BYTES:
            self._kept = rows, flat
        return rows, flat

    def _vectors_of(self, numbers: Rows, where: str) -> Vectors:
        """Return the vectors (n, dim) with these numbers (n,), ascending.

        where: an expression that no other vector between the first and the last number matches.
        """
        keys = self.keys[numbers].tolist()
        expression = f"{KEY} >= {keys[0]} and {KEY} <= {keys[-1]}"
        if where:
            expression += f" and {where}"
        elif numbers[-1] - numbers[0] >= len(numbers):
            expression = f"{KEY} in {keys}"
        with self.database.connected() as client:
            found = client.query(
                self.database.collection,
                filter=expression,
                output_fields=[KEY, VECTOR],
                consistency_level=self.options.consistency,
                timeout=self.database.timeout,
            )
        by_key = {each[KEY]: each[VECTOR] for each in found}
        if len(by_key) != len(keys):
            raise BadData(
                f"the collection {self.database.collection} of {self.database.name} has "
                f"{len(by_key):,} of {len(keys):,} rows from {keys[0]} to {keys[-1]}; index again"
            )
        return np.array([by_key[key] for key in keys], np.float32)


def expression_of(where: Filter) -> str:
    """Return the filter as an expression of Milvus."""
    return f"{where.field} in [{', '.join(map(_quoted, where.values))}]"


def rows_expression(keys: Rows, among: Mask) -> str:
    """Return an expression for the keys (n,) of the mask (n,): a list of these or of the others."""
    word = "in" if 2 * np.count_nonzero(among) <= len(among) else "not in"
    return f"{KEY} {word} {keys[among if word == 'in' else ~among].tolist()}"


def _quoted(text: str) -> str:
    """Return a string literal of Milvus. Milvus Lite has only these escapes."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(letter, letter) for letter in text) + '"'
