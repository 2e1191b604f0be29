"""HNSW over principal axes, walked by retr's own code and refined by the vectors.

The graph is faiss's (Malkov & Yashunin, TPAMI 2020), built over the vectors' principal axes, where
building is fast, too. `indexers.graph.walk` searches it, over codes of 16 bits and without a call
from Python for each step. The vectors themselves rank what it finds.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray

from indexers.copies import Copies
from indexers.faiss import bridge
from indexers.graph import walk
from indexers.graph.effort import DEFAULT_EF, settle_ef
from indexers.options import EFFORTS, check_graph, check_range
from indexers.projection import MULTIPLE, SAMPLE, projection
from retrieval.choices import choice
from retrieval.contracts import Blocks, Hits, Index, Json, Mask, Metric, Vectors
from retrieval.errors import BadData, BadInput
from retrieval.hits import (
    BLOCK,
    Found,
    InMemory,
    answer,
    checked_additions,
    checked_blocks,
    prepared,
)
from retrieval.runtime.threads import usable_cores
from retrieval.values import resolve_options

KINDS = {
    Metric.COSINE: walk.COSINE,
    Metric.EUCLIDEAN: walk.EUCLIDEAN,
    Metric.INNER_PRODUCT: walk.INNER_PRODUCT,
}
BUILT = {
    Metric.COSINE: Metric.EUCLIDEAN,  # of vectors of length 1, on whose axes it says more
    Metric.EUCLIDEAN: Metric.EUCLIDEAN,
    Metric.INNER_PRODUCT: Metric.INNER_PRODUCT,
}

AXES = (16, 32, 64, 96, 128)
"""Numbers of axes that `auto` tries."""

USUAL = 0.99  # share of the codes that are not to be cut short
ROOM = 2.0  # times the length of these
AT_LEAST = 64  # queries that a thread takes at once
PARTS = 4  # that each thread gets, so that none waits long for another
LOOKED_AT = 8  # vectors for each candidate that a walk keeps
EVERYTHING = np.empty(0, np.bool_)


@dataclass(frozen=True)
class HnswPca:
    """`hnsw-pca`: walks a graph of principal axes in retr's own code, and ranks by the vectors.

    axes: principal axes that are kept, raised to a multiple of 16; None for the fewest along which
    neighbors stay near, see `indexers.projection`; the vectors' own dimensions where these are no
    more.
    m: links per vector and layer, twice as many in the lowest; more cost memory and raise recall.
    ef_construction: candidates kept while a vector is linked; more cost build time.
    ef: candidates kept while a query walks, all of which are compared as they are; more cost time
    and raise recall. None for 128, or for more where the build finds that queries need them;
    see `indexers.graph.effort`.
    build_threads: threads that link; 0 for all cores. How threads take turns shows in the graph:
    only 1 builds the same graph every time.

    Copies of a vector are linked once, and all of them are found: see `indexers.copies`.

    The first use on a machine takes some seconds more, in which the walk is compiled for it.
    """

    metric: Metric = Metric.COSINE
    axes: int | None = None
    m: int = 16
    ef_construction: int = 200
    ef: int | None = None
    build_threads: int = 0
    search_options: ClassVar[frozenset[str]] = frozenset({"ef"})

    def __post_init__(self) -> None:
        resolve_options(self)
        if self.metric not in KINDS:
            raise BadInput(
                f"hnsw-pca has no {self.metric} distance; use the backend exact or ivf for it"
            )
        if self.axes is not None:
            check_range("axes", self.axes, 1)
        check_graph(self.m, self.ef_construction, self.ef, self.build_threads)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["HnswPca"]:
        """Graphs over few axes and over more."""
        metric = choice(Metric, metric)
        if metric not in KINDS:
            return []
        fewer = [axes for axes in AXES if axes < dim]
        return [
            cls(metric, axes=axes) for axes in (fewer if len(fewer) == len(AXES) else [*fewer, dim])
        ]

    def ladders(self) -> list[list["HnswPca"]]:
        """By `ef`."""
        return [[replace(self, ef=ef) for ef in EFFORTS]]

    def apply(self, index: Index) -> None:
        """Set `ef`; None leaves it as it is."""
        assert isinstance(index, HnswPcaIndex)
        if self.ef is not None:
            index.ef = self.ef

    def settled(self, index: Index) -> "HnswPca":
        """Return these options with the index's own `ef` in place of None."""
        assert isinstance(index, HnswPcaIndex)
        return replace(self, ef=index.ef)

    def build(self, vectors: Vectors) -> "HnswPcaIndex":
        """An index of the vectors (n, dim), n ≥ 1, in copies. Raises BadInput for others."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> "HnswPcaIndex":
        """The same from blocks, as `Streaming` says."""
        copies = Copies.find(blocks, self.metric)
        distinct = copies.distinct(blocks)
        rows, dim = distinct.rows, distinct.dim
        metric = bridge.METRICS[BUILT[self.metric]]
        every = ceil(rows / SAMPLE)
        prepared_rows = checked_blocks(distinct, self.metric)
        sample = np.concatenate([block[-first % every :: every] for first, block in prepared_rows])
        turn = projection(sample, BUILT[self.metric], self.axes)
        del sample
        axes = dim if turn is None else turn.d_out
        graph = faiss.IndexHNSWFlat(axes, self.m, metric)
        graph.hnsw.efConstruction = self.ef_construction
        index = faiss.IndexRefineFlat(
            graph if turn is None else faiss.IndexPreTransform(turn, graph)
        )
        bridge.reserve_vectors(index, rows)
        storage: Any = faiss.downcast_index(graph.storage)
        bridge.reserve(storage.codes, rows * storage.code_size)
        with bridge.threads(self.build_threads):
            for _, block in checked_blocks(distinct, self.metric):
                _add(index, block, self.metric)
        built = HnswPcaIndex(index, self, copies)
        if self.ef is None:
            settle_ef(partial(setattr, built, "ef"), built, blocks, self.metric)
        return built

    def load(self, folder: Path) -> "HnswPcaIndex":
        """The index saved in the folder, to be searched with this `ef`; 128 for None.

        Raises BadData if it is not there or damaged.
        """
        index = bridge.load_refined(folder, faiss.IndexHNSWFlat, BUILT[self.metric])
        return HnswPcaIndex(index, self, Copies.load(folder, int(index.ntotal)))


class HnswPcaIndex:
    """faiss's index, whose graph and vectors are read where they lie, and the codes beside it.

    They are of the distinct vectors; `copies` tells which rows these are.
    """

    def __init__(self, index: faiss.IndexRefineFlat, settings: HnswPca, copies: Copies) -> None:
        self.index: Any = index
        self.settings = settings
        self.ef = settings.ef or DEFAULT_EF
        self.copies = copies
        self.kind = KINDS[settings.metric]
        self.dim = int(index.d)
        self.tags: list[NDArray[np.uint8]] = []
        self._prepare()

    def __len__(self) -> int:
        return self.copies.rows

    @property
    def details(self) -> Mapping[str, Json]:
        """Number of axes, and of distinct vectors where rows share some."""
        return {"axes": int(bridge.inside(self.index).d), **self.copies.details}

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """The k nearest rows that the walk comes by, as `Index` and `Hits` say.

        With a mask that admits many rows the walk keeps more candidates, so that enough of them are
        among these; with others these are compared one by one.
        """
        if among is None and self._is_plain(queries, k):  # what is asked most is answered soonest
            hits = Hits(np.empty((1, k), np.int64), np.empty((1, k), np.float32))
            if not self._walk(queries, self.ef, EVERYTHING, hits.rows, hits.distances):
                return hits
        nearest = self.copies.expanded(self._nearest)
        return answer(nearest, queries, k, among, dim=self.dim, rows=len(self))

    def add(self, vectors: Vectors) -> None:
        """Add rows, as `Growing` says: they are linked as in a build, on the same axes."""
        metric = self.settings.metric
        vectors = prepared(checked_additions(vectors, self.dim, metric), metric)
        copies = self.copies.joined([self.vectors], vectors)
        vectors = vectors[copies.is_first[len(self) :]]
        with bridge.threads(self.settings.build_threads):
            _add(self.index, vectors, metric)
        self.copies = copies
        self._prepare()

    def stored(self) -> Blocks:
        """Return the vectors of all rows."""
        return self.copies.fetched(self.dim, self.vectors.__getitem__)

    def save(self, folder: Path) -> None:
        """Write index.faiss, for `faiss.read_index`; cosine's vectors are of length 1."""
        bridge.save(self.index, folder)
        self.copies.save(folder)

    def _prepare(self) -> None:
        """Take from faiss's index what a walk wants."""
        graph: Any = bridge.inside(self.index)
        layers = graph.hnsw
        self.rows = int(self.index.ntotal)
        flat: Any = faiss.downcast_index(self.index.refine_index)
        storage: Any = faiss.downcast_index(graph.storage)
        self.vectors, turned = bridge.vectors_of(flat), bridge.vectors_of(storage)
        self.upper = _where_it_lies(layers.neighbors)
        self.offsets = _where_it_lies(layers.offsets)
        if not -1 <= self.upper.min() <= self.upper.max() < self.rows:
            raise BadData("the graph has links to rows that are not there; build the index again")
        degree = layers.nb_neighbors(0)
        self.links = np.empty((self.rows, degree), np.int32)
        for column in range(degree):
            self.links[:, column] = self.upper[self.offsets[:-1] + np.uint64(column)]
        self.entry, self.levels = int(layers.entry_point), int(layers.max_level)
        centre = np.zeros(graph.d)
        if self.kind != walk.INNER_PRODUCT:
            centre = turned.mean(axis=0, dtype=np.float64)
        self.scale = _scale(turned, centre)
        self.codes = np.zeros((self.rows, _raised(graph.d)), np.int16)
        self.zero: int | None = None
        for start in range(0, self.rows, BLOCK):
            if self.kind == walk.COSINE and self.zero is None:
                zeros = np.flatnonzero(~self.vectors[start : start + BLOCK].any(axis=1))
                self.zero = start + int(zeros[0]) if len(zeros) else None
            block = turned[start : start + BLOCK] - centre
            lengths = np.linalg.norm(block, axis=1, keepdims=True) * self.scale
            block *= self.scale * np.minimum(1, walk.LONGEST / np.maximum(lengths, 1))
            self.codes[start : start + BLOCK, : graph.d] = np.rint(block)
        matrix = _matrix(self.index)
        self.turn = np.zeros((self.codes.shape[1], matrix.shape[1] + 1), np.float32)
        self.turn[: graph.d, :-1] = matrix
        self.turn[: graph.d, -1] = -centre
        self.tags.clear()

    def _is_plain(self, queries: Vectors, k: int) -> bool:
        """Whether it is one query, in the form that the walk takes, for rows that there are."""
        return (
            self.copies.vector_of is None
            and self.zero is None
            and getattr(queries, "shape", None) == (1, self.dim)
            and queries.dtype == np.float32
            and queries.flags.carray
            and 1 <= k <= self.rows
        )

    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        queries = np.require(queries, requirements=("C", "W"))
        rows = np.empty((len(queries), count), np.int64)
        distances = np.empty(rows.shape, np.float32)
        ef = self.ef
        if among is not None:
            matching = int(np.count_nonzero(among))
            ef = ceil(max(ef, 1.5 * count) * self.rows / matching)
            if matching <= max(bridge.COMPARED, LOOKED_AT * ef):
                candidates = np.flatnonzero(among)
                walk.compare(queries, self.vectors, candidates, self.kind, rows, distances)
                return rows, distances
        mask = EVERYTHING if among is None else np.require(among, requirements=("C", "W"))

        def walked(part: slice) -> None:
            self._walk(queries[part], ef, mask, rows[part], distances[part])

        _spread(walked, len(queries))
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short):
            candidates = np.arange(self.rows) if among is None else np.flatnonzero(among)
            some, some_distances = rows[short], distances[short]
            walk.compare(queries[short], self.vectors, candidates, self.kind, some, some_distances)
            rows[short], distances[short] = some, some_distances
        if self.zero is not None and (among is None or among[self.zero]):
            missed = (distances[:, -1] > 1) & (rows != self.zero).all(axis=1)
            rows[missed, -1], distances[missed, -1] = self.zero, 1  # at right angles to everything
        return rows, distances

    def _walk(
        self,
        queries: Vectors,
        ef: int,
        among: Mask,
        rows: NDArray[np.int64],
        distances: NDArray[np.float32],
    ) -> int:
        """What `walk.search` returns and fills."""
        try:
            tags = self.tags.pop()
        except IndexError:  # as many calls are at it as never before
            tags = np.zeros(self.rows + 1, np.uint8)
        short: int = walk.search(
            queries,
            self.turn,
            self.codes,
            self.links,
            self.upper,
            self.offsets,
            self.vectors,
            among,
            tags,
            self.kind,
            self.scale,
            min(ef, self.rows),
            self.entry,
            self.levels,
            rows,
            distances,
        )
        self.tags.append(tags)
        return short


def _add(index: Any, vectors: Vectors, metric: Metric) -> None:
    """Add prepared vectors (n, dim) to faiss's index.

    The graph of cosines places a zero vector on the first axis. In the center it would be nearer to
    most vectors than they are to each other, and take all of their links.
    """
    zeros = np.flatnonzero(~vectors.any(axis=1)) if metric is Metric.COSINE else ()
    if not len(zeros):
        index.add(vectors)
        return
    matrix = _matrix(index)
    placed = vectors.copy()
    placed[zeros] = matrix[0] if matrix.size else np.eye(1, index.d)
    index.base_index.add(placed)
    index.refine_index.add(vectors)
    index.ntotal = index.refine_index.ntotal


def _spread(call: Callable[[slice], object], queries: int) -> None:
    """Call with parts of so many queries, on all cores where they are many."""
    cores = usable_cores()
    at_once = max(AT_LEAST, ceil(queries / (PARTS * cores)))
    parts = [slice(first, first + at_once) for first in range(0, queries, at_once)]
    threads = min(cores, len(parts))
    if threads <= 1:
        call(slice(0, queries))
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, parts))  # raises what a call raised


def _where_it_lies(values: Any) -> NDArray[Any]:
    """A vector of faiss's as an array, which lives as long as it."""
    return np.asarray(faiss.rev_swig_ptr(values.data(), values.size()))


def _matrix(index: faiss.IndexRefineFlat) -> NDArray[np.float32]:
    """(axes, dim): what turns vectors onto the axes; (axes, 0) where there is none."""
    base: Any = faiss.downcast_index(index.base_index)
    if not isinstance(base, faiss.IndexPreTransform):
        return np.empty((base.d, 0), np.float32)
    chain: Any = base.chain
    turn: Any = faiss.downcast_VectorTransform(chain.at(0))
    return np.asarray(faiss.vector_to_array(turn.A).reshape(turn.d_out, turn.d_in))


def _scale(turned: Vectors, centre: NDArray[np.float64]) -> float:
    """What brings nearly all of the vectors (n, axes), less their centre, within `walk.LONGEST`.

    A few that are far longer are cut short, so that the others are told apart.
    """
    lengths = np.concatenate(
        [
            np.linalg.norm(turned[start : start + BLOCK] - centre, axis=1)
            for start in range(0, len(turned), BLOCK)
        ]
    )
    reach = min(float(lengths.max()), ROOM * float(np.quantile(lengths, USUAL)))
    return walk.LONGEST / (reach or float(lengths.max()) or 1.0)


def _raised(axes: int) -> int:
    return -(-axes // MULTIPLE) * MULTIPLE
