"""A navigable graph of near neighbors in layers, with greedy search: hnswlib.

Malkov & Yashunin, Efficient and robust approximate nearest neighbor search using Hierarchical
Navigable Small World graphs (TPAMI 2020).
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

import hnswlib
import numpy as np
from numpy.typing import NDArray

from indexers.copies import Copies
from indexers.graph.effort import DEFAULT_EF, settle_ef
from indexers.graph.hnsw_file import checked_dim
from indexers.graph.products import build_products, inside, load_products
from indexers.options import EFFORTS, check_graph, check_range
from retrieval.choices import choice
from retrieval.contracts import Blocks, Hits, Index, Json, Mask, Metric, Vectors
from retrieval.errors import BadData, BadInput, RetrError
from retrieval.hits import (
    BLOCK_ROWS,
    Fetched,
    Found,
    InMemory,
    answer,
    checked_additions,
    checked_blocks,
    prepared,
)
from retrieval.runtime.threads import usable_cores
from retrieval.storage.files import native_path, write_whole
from retrieval.values import resolve_options

FILE = "index.hnsw"
MORE_CANDIDATES = 1.5  # factor on those of which, on average, enough match a mask
WIDENED = 4  # factor on the candidates of queries that found too few matching rows
MAX_WALKS = 2  # for a query with a filter, the second one wider
MAX_CANDIDATES = 1 << 22  # summed over the queries of one call
COPIED_AS_COMPARED = 4
"""Rows of a mask that are compared in the time of one that is copied out of the graph first: less
than measured, because a mask is often used again."""

MAX_KEPT_ROWS = 10_000  # rows of a mask that are kept for the next search
Labeled = tuple[NDArray[np.uint64], NDArray[np.float32]]

SPACES = {
    Metric.COSINE: "ip",  # retr scales vectors to length 1 itself, in double precision
    Metric.EUCLIDEAN: "l2",
    Metric.INNER_PRODUCT: "ip",
}


@dataclass(frozen=True)
class Hnsw:
    """`hnsw`: walk a graph that links each vector to about `m` of its near neighbors.

    m: links per vector and layer; more cost memory and raise recall.
    ef_construction: candidates kept while a vector is linked; more cost build time.
    ef: candidates kept while a query walks; more cost time and raise recall. None for 128, or for
    more if the build finds that queries need more; see `indexers.graph.effort`.
    seed: of the draw of the vectors' layers.
    build_threads: threads of the build; 0 for all cores. With more than one, the graph depends on
    their timing.

    Inner products have the graph that finds more of them in a sample; see
    `indexers.graph.products`. In that of the products themselves, distances are 1 - dot in float32:
    products far below 1 lose precision.

    Copies of a vector are linked once, and all copies are found; see `indexers.copies`.
    """

    metric: Metric = Metric.COSINE
    m: int = 16
    ef_construction: int = 200
    ef: int | None = None
    seed: int = 0
    build_threads: int = 0
    search_options: ClassVar[frozenset[str]] = frozenset({"ef"})

    def __post_init__(self) -> None:
        resolve_options(self)
        if self.metric not in SPACES:
            raise BadInput(f"hnswlib has no {self.metric} distance; use the backend exact or ivf")
        check_graph(self.m, self.ef_construction, self.ef, self.build_threads)
        check_range("seed", self.seed, 0, 2**31 - 1)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["Hnsw"]:
        """Return graphs with the default number of links and with many."""
        metric = choice(Metric, metric)
        return [cls(metric, m=m, ef=EFFORTS[-1], seed=seed) for m in (16, 32) if metric in SPACES]

    def ladders(self) -> list[list["Hnsw"]]:
        """Return one ladder, by ascending `ef`."""
        return [[replace(self, ef=ef) for ef in EFFORTS]]

    def apply(self, index: Index) -> None:
        """Set `ef`; None leaves it as it is."""
        index = inside(index)
        assert isinstance(index, HnswIndex)
        if self.ef is not None:
            index.graph.set_ef(self.ef)

    def settled(self, index: Index) -> "Hnsw":
        """Return these options with the index's own `ef` in place of None."""
        index = inside(index)
        assert isinstance(index, HnswIndex)
        return replace(self, ef=int(index.graph.ef))

    def build(self, vectors: Vectors) -> Index:
        """Build an index of a copy of vectors (n, dim), n ≥ 1. Raises BadInput for others."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> Index:
        """Build an index from blocks of vectors; see `Streaming`."""
        if self.metric is Metric.INNER_PRODUCT:
            return build_products(self, blocks)
        return self.build_graph(blocks)

    def build_graph(self, blocks: Blocks) -> "HnswIndex":
        """Build the graph of these vectors and this metric."""
        copies = Copies.find(blocks, self.metric)
        distinct = copies.distinct(blocks)
        graph = hnswlib.Index(SPACES[self.metric], blocks.dim)
        graph.init_index(
            distinct.rows, M=self.m, ef_construction=self.ef_construction, random_seed=self.seed
        )
        for start, block in checked_blocks(distinct, self.metric):
            labels = np.arange(start, start + len(block))
            graph.add_items(block, labels, num_threads=self.build_threads or usable_cores())
        graph.set_num_threads(usable_cores())
        graph.set_ef(self.ef or DEFAULT_EF)
        index = HnswIndex(graph, self.metric, self.build_threads, copies)
        if self.ef is None:
            settle_ef(graph.set_ef, index, blocks, self.metric)
        return index

    def load(self, folder: Path) -> Index:
        """Load the index saved in the folder, with this `ef`; 128 for None.

        Raises BadData if it is missing or damaged.
        """
        return load_products(self, folder)

    def load_graph(self, folder: Path) -> "HnswIndex":
        """Load the graph of this metric."""
        path = folder / FILE
        graph = hnswlib.Index(SPACES[self.metric], checked_dim(path))
        try:
            with native_path(path) as name:
                graph.load_index(name)
        except (RuntimeError, MemoryError) as problem:
            raise BadData(f"{path} is damaged ({problem}); build the index again") from None
        graph.set_num_threads(usable_cores())
        graph.set_ef(self.ef or DEFAULT_EF)  # hnswlib does not save it
        copies = Copies.load(folder, int(graph.element_count))
        return HnswIndex(graph, self.metric, self.build_threads, copies)


class HnswIndex:
    """hnswlib's graph of distinct vectors; a vector's label is its number in `Copies`."""

    def __init__(
        self, graph: Any, metric: Metric | str, build_threads: int, copies: Copies
    ) -> None:
        self.graph = graph
        self.metric = choice(Metric, metric)
        self.build_threads = build_threads
        self.copies = copies
        self.kept: tuple[Mask, Any] | None = None  # a mask, and an exact index of its rows

    @property
    def details(self) -> Mapping[str, Json]:
        """The number of distinct vectors, if rows share any."""
        return self.copies.details

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.graph.dim)

    def __len__(self) -> int:
        return self.copies.rows

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows that a walk finds; see `Index` and `Hits`.

        With a mask, a walk finds more rows, of which enough match. If the mask admits few rows, all
        of them are compared, and kept for the next search with the same mask.
        """
        nearest = self.copies.expanded(self._nearest)
        return answer(nearest, queries, k, among, dim=self.dim, rows=len(self))

    def add(self, vectors: Vectors) -> None:
        """Add rows, linked as in a build; see `Growing`."""
        vectors = prepared(checked_additions(vectors, self.dim, self.metric), self.metric)
        known = range(self.copies.vectors)
        linked = (self.graph.get_items(known[i : i + BLOCK_ROWS]) for i in known[::BLOCK_ROWS])
        copies = self.copies.joined(linked, vectors)
        vectors = vectors[copies.is_first[len(self) :]]
        self.graph.resize_index(copies.vectors)
        labels = np.arange(len(known), copies.vectors)
        self.graph.add_items(vectors, labels, num_threads=self.build_threads or usable_cores())
        self.copies = copies
        self.kept = None

    def stored(self) -> Fetched:
        """Return the vectors of all rows."""
        return self.copies.fetched(self.dim, lambda rows: np.asarray(self.graph.get_items(rows)))

    def save(self, folder: Path) -> None:
        """Write index.hnsw, for `hnswlib.Index.load_index`; cosine's vectors are of length 1."""
        write_whole(folder / FILE, self._write)
        self.copies.save(folder)

    def _write(self, path: Path) -> None:
        with native_path(path) as name:
            self.graph.save_index(name)
        # hnswlib does not check whether its bytes reached the disk.
        written, whole = path.stat().st_size, self.graph.index_file_size()
        if written != whole:
            raise RetrError(f"{path} has {written} of {whole} bytes (disk full?); free disk space")

    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        queries = prepared(queries, self.metric)
        if among is not None:
            found = self._filtered(queries, count, among)
        else:
            walked = self._walk(queries, count)
            found = walked or self._flat(np.arange(self.copies.vectors)).knn_query(queries, count)
        labels, distances = found
        return labels.view(np.int64), self._to_distances(distances)

    def _walk(self, queries: Vectors, count: int) -> Labeled | None:
        """Return labels and hnswlib's distances, or None if a query finds fewer than `count` rows.

        hnswlib walks until it has max(ef, count) candidates. So a larger ef finds no more rows: the
        missing ones are not reachable from the entry point.
        """
        try:
            labels, distances = self.graph.knn_query(queries, count)
        except RuntimeError:  # raised by hnswlib in this case only
            return None
        return labels, distances

    def _filtered(self, queries: Vectors, count: int, among: Mask) -> Labeled:
        """Return labels and hnswlib's distances of the nearest rows of the mask."""
        matching = int(np.count_nonzero(among))
        labels = np.empty((len(queries), count), np.uint64)
        distances = np.empty(labels.shape, np.float32)
        missing = np.arange(len(queries))
        wide = ceil(MORE_CANDIDATES * count * self.copies.vectors / matching)
        for _ in range(MAX_WALKS):
            if not self._walk_is_shorter(matching, wide):
                break
            found = np.zeros(len(missing), np.bool_)
            size = max(1, MAX_CANDIDATES // wide)
            for some in (slice(i, i + size) for i in range(0, len(missing), size)):
                walked = self._walk(queries[missing[some]], wide)
                if walked is None:
                    continue
                matches = among[walked[0].view(np.int64)]
                whole = np.count_nonzero(matches, axis=1) >= count
                first = np.argsort(~matches[whole], axis=1, kind="stable")[:, :count]
                places = missing[some][whole]
                labels[places] = np.take_along_axis(walked[0][whole], first, axis=1)
                distances[places] = np.take_along_axis(walked[1][whole], first, axis=1)
                found[some] = whole
            missing, wide = missing[~found], WIDENED * wide
        if len(missing):
            labels[missing], distances[missing] = self._compared(queries[missing], count, among)
        return labels, distances

    def _compared(self, queries: Vectors, count: int, among: Mask) -> Labeled:
        """Return labels and distances where a walk costs more, or finds too few rows of the mask.

        Few rows are all compared. Many are often far from such a query: hnswlib's own filter walks
        until it has found enough of them, and calls Python for each row that it meets.
        """
        if int(np.count_nonzero(among)) > MAX_KEPT_ROWS:
            with suppress(RuntimeError):  # fewer than `count` rows
                admits = among.tolist().__getitem__
                labels, distances = self.graph.knn_query(queries, count, 1, admits)
                return labels, distances
        labels, distances = self._matching(among).knn_query(queries, count)
        return labels, distances

    def _walk_is_shorter(self, matching: int, wide: int) -> bool:
        """Return whether a walk for `wide` candidates costs less than comparing matching rows.

        A walk compares about m links of each candidate.
        """
        compared = max(int(self.graph.ef), wide) * int(self.graph.M)
        return wide <= self.copies.vectors and compared <= COPIED_AS_COMPARED * matching

    def _matching(self, among: Mask) -> Any:
        """Return hnswlib's exact index of the rows of the mask, kept if it is small."""
        kept = self.kept  # another thread may change it
        if kept is not None and np.array_equal(kept[0], among):
            return kept[1]
        rows = np.flatnonzero(among)
        flat = self._flat(rows)
        if len(rows) <= MAX_KEPT_ROWS:
            self.kept = among.copy(), flat
        return flat

    def _flat(self, rows: NDArray[np.int64]) -> Any:
        """Return hnswlib's exact index of these rows."""
        flat = hnswlib.BFIndex(SPACES[self.metric], self.dim)
        flat.init_index(len(rows))
        flat.set_num_threads(usable_cores())
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            flat.add_items(self.graph.get_items(block), block)
        return flat

    def _to_distances(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        match self.metric:
            case Metric.COSINE:
                np.maximum(distances, 0, out=distances)  # rounding may take a cosine above 1
            case Metric.INNER_PRODUCT:
                distances -= 1
            case Metric.EUCLIDEAN:
                np.sqrt(distances, out=distances)
            case _:
                raise AssertionError(f"hnswlib has no {self.metric} distance")
        return distances
