"""HNSW over principal axes, searched by retr's own code.

faiss builds the graph (Malkov & Yashunin, TPAMI 2020) over the vectors' principal axes, which
makes the build fast, too. `indexers.graph.walk` searches the graph by codes of 16 bits, and ranks
the candidates by their vectors.
"""

from collections.abc import Mapping
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
from indexers.graph.parallel import spread
from indexers.graph.products import build_products, inside, load_products
from indexers.options import EFFORTS, check_graph, check_range
from indexers.projection import AXES_MULTIPLE, SAMPLE_ROWS, projection
from retrieval.choices import choice
from retrieval.contracts import Blocks, Hits, Index, Json, Mask, Metric, Vectors
from retrieval.errors import BadData, BadInput
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
from retrieval.values import resolve_options

WALK_METRICS = {
    Metric.COSINE: walk.COSINE,
    Metric.EUCLIDEAN: walk.EUCLIDEAN,
    Metric.INNER_PRODUCT: walk.INNER_PRODUCT,
}
GRAPH_METRICS = {
    Metric.COSINE: Metric.EUCLIDEAN,  # more precise on the axes of vectors of length 1
    Metric.EUCLIDEAN: Metric.EUCLIDEAN,
    Metric.INNER_PRODUCT: Metric.INNER_PRODUCT,
}

AXES = (16, 32, 64, 96, 128)
"""Numbers of axes that `auto` tries."""

CODE_RANGE_QUANTILE = 0.99  # quantile of the vectors' lengths
CODE_RANGE_MARGIN = 2.0  # factor on that length; codes that would be longer are shortened
COMPARED_PER_CANDIDATE = 8  # with fewer matching rows per candidate, all of them are compared
NO_MASK = np.empty(0, np.bool_)


@dataclass(frozen=True)
class HnswPca:
    """`hnsw-pca`: walk a graph over principal axes in retr's own code, and rank by the vectors.

    axes: number of principal axes, rounded up to a multiple of 16; None for the fewest along which
    neighbors stay near, see `indexers.projection`. The vectors' own dimensions if they are fewer.
    m: links per vector and layer, twice as many in the lowest; more cost memory and raise recall.
    ef_construction: candidates kept while a vector is linked; more cost build time.
    ef: candidates kept while a query walks, whose vectors are then compared; more cost time and
    raise recall. None for 128, or for more if the build finds that queries need more; see
    `indexers.graph.effort`.
    build_threads: threads of the build; 0 for all cores. With more than one, the graph depends on
    their timing.

    Inner products have the graph that finds more of them in a sample; see
    `indexers.graph.products`.

    Copies of a vector are linked once, and all copies are found; see `indexers.copies`. The first
    use on a machine takes some seconds more, to compile the walk.
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
        if self.metric not in WALK_METRICS:
            raise BadInput(f"hnsw-pca has no {self.metric} distance; use the backend exact or ivf")
        if self.axes is not None:
            check_range("axes", self.axes, 1)
        check_graph(self.m, self.ef_construction, self.ef, self.build_threads)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["HnswPca"]:
        """Return graphs over few axes and over more."""
        metric = choice(Metric, metric)
        if metric not in WALK_METRICS:
            return []
        fewer = [axes for axes in AXES if axes < dim]
        return [
            cls(metric, axes=axes, ef=EFFORTS[-1])
            for axes in (fewer if len(fewer) == len(AXES) else [*fewer, dim])
        ]

    def ladders(self) -> list[list["HnswPca"]]:
        """Return one ladder, by ascending `ef`."""
        return [[replace(self, ef=ef) for ef in EFFORTS]]

    def apply(self, index: Index) -> None:
        """Set `ef`; None leaves it as it is."""
        index = inside(index)
        assert isinstance(index, HnswPcaIndex)
        if self.ef is not None:
            index.ef = self.ef

    def settled(self, index: Index) -> "HnswPca":
        """Return these options with the index's own `ef` in place of None."""
        index = inside(index)
        assert isinstance(index, HnswPcaIndex)
        return replace(self, ef=index.ef)

    def build(self, vectors: Vectors) -> Index:
        """Build an index of vectors (n, dim), n ≥ 1, which are not changed. Raises BadInput."""
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> Index:
        """Build an index from blocks of vectors; see `Streaming`."""
        if self.metric is Metric.INNER_PRODUCT:
            return build_products(self, blocks)
        return self.build_graph(blocks)

    def build_graph(self, blocks: Blocks) -> "HnswPcaIndex":
        """Build the graph of these vectors and this metric."""
        copies = Copies.find(blocks, self.metric)
        distinct = copies.distinct(blocks)
        rows, dim = distinct.rows, distinct.dim
        metric = bridge.METRICS[GRAPH_METRICS[self.metric]]
        every = ceil(rows / SAMPLE_ROWS)
        prepared_rows = checked_blocks(distinct, self.metric)
        sample = np.concatenate([block[-first % every :: every] for first, block in prepared_rows])
        turn = projection(sample, GRAPH_METRICS[self.metric], self.axes)
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

    def load(self, folder: Path) -> Index:
        """Load the index saved in the folder, with this `ef`; 128 for None.

        Raises BadData if it is missing or damaged.
        """
        return load_products(self, folder)

    def load_graph(self, folder: Path) -> "HnswPcaIndex":
        """Load the graph of this metric."""
        index = bridge.load_refined(folder, faiss.IndexHNSWFlat, GRAPH_METRICS[self.metric])
        return HnswPcaIndex(index, self, Copies.load(folder, int(index.ntotal)))


class HnswPcaIndex:
    """faiss's index, whose graph and vectors are used in place, and codes of the vectors.

    It holds distinct vectors; `copies` has the rows of each.
    """

    def __init__(self, index: faiss.IndexRefineFlat, settings: HnswPca, copies: Copies) -> None:
        self.index: Any = index
        self.settings = settings
        self.ef = settings.ef or DEFAULT_EF
        self.copies = copies
        self.kind = WALK_METRICS[settings.metric]
        self.dim = int(index.d)
        self.tags: list[NDArray[np.uint8]] = []
        self._prepare()

    def __len__(self) -> int:
        return self.copies.rows

    @property
    def details(self) -> Mapping[str, Json]:
        """The number of axes, and of distinct vectors if rows share some."""
        return {"axes": int(bridge.inside(self.index).d), **self.copies.details}

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows that a walk finds; see `Index` and `Hits`.

        With a mask that admits many rows, the walk keeps more candidates, so that enough of them
        match. With a smaller mask, all matching rows are compared.
        """
        if among is None and self._is_plain(queries, k):  # a fast path for the most frequent case
            hits = Hits(np.empty((1, k), np.int64), np.empty((1, k), np.float32))
            if not self._walk(queries, self.ef, NO_MASK, hits.rows, hits.distances):
                return hits
        nearest = self.copies.expanded(self._nearest)
        return answer(nearest, queries, k, among, dim=self.dim, rows=len(self))

    def add(self, vectors: Vectors) -> None:
        """Add rows, linked as in a build, on the same axes; see `Growing`."""
        metric = self.settings.metric
        vectors = prepared(checked_additions(vectors, self.dim, metric), metric)
        copies = self.copies.joined([self.vectors], vectors)
        vectors = vectors[copies.is_first[len(self) :]]
        with bridge.threads(self.settings.build_threads):
            _add(self.index, vectors, metric)
        self.copies = copies
        self._prepare()

    def stored(self) -> Fetched:
        """Return the vectors of all rows."""
        return self.copies.fetched(self.dim, self.vectors.__getitem__)

    def save(self, folder: Path) -> None:
        """Write index.faiss, for `faiss.read_index`; cosine's vectors are of length 1."""
        bridge.save(self.index, folder)
        self.copies.save(folder)

    def _prepare(self) -> None:
        """Prepare the arrays for a walk from faiss's index."""
        graph: Any = bridge.inside(self.index)
        layers = graph.hnsw
        self.rows = int(self.index.ntotal)
        flat: Any = faiss.downcast_index(self.index.refine_index)
        storage: Any = faiss.downcast_index(graph.storage)
        self.vectors, turned = bridge.vectors_of(flat), bridge.vectors_of(storage)
        self.upper = _view_of(layers.neighbors)
        self.offsets = _view_of(layers.offsets)
        if not -1 <= self.upper.min() <= self.upper.max() < self.rows:
            raise BadData("graph has links out of range; build the index again")
        degree = layers.nb_neighbors(0)
        self.links = np.empty((self.rows, degree), np.int32)
        for column in range(degree):
            self.links[:, column] = self.upper[self.offsets[:-1] + np.uint64(column)]
        self.entry, self.levels = int(layers.entry_point), int(layers.max_level)
        center = np.zeros(graph.d)
        if self.kind != walk.INNER_PRODUCT:
            center = turned.mean(axis=0, dtype=np.float64)
        self.scale = _scale(turned, center)
        self.codes = np.zeros((self.rows, _rounded_up(graph.d)), np.int16)
        self.zero: int | None = None
        for start in range(0, self.rows, BLOCK_ROWS):
            if self.kind == walk.COSINE and self.zero is None:
                zeros = np.flatnonzero(~self.vectors[start : start + BLOCK_ROWS].any(axis=1))
                self.zero = start + int(zeros[0]) if len(zeros) else None
            block = turned[start : start + BLOCK_ROWS] - center
            lengths = np.linalg.norm(block, axis=1, keepdims=True) * self.scale
            block *= self.scale * np.minimum(1, walk.MAX_CODE_LENGTH / np.maximum(lengths, 1))
            self.codes[start : start + BLOCK_ROWS, : graph.d] = np.rint(block)
        matrix = _matrix(self.index)
        self.turn = np.zeros((self.codes.shape[1], matrix.shape[1] + 1), np.float32)
        self.turn[: graph.d, :-1] = matrix
        self.turn[: graph.d, -1] = -center
        self.tags.clear()

    def _is_plain(self, queries: Vectors, k: int) -> bool:
        """Return whether this is one query that the walk can take without checks and conversion."""
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
            if matching <= max(bridge.MAX_COMPARED_ROWS, COMPARED_PER_CANDIDATE * ef):
                candidates = np.flatnonzero(among)
                walk.compare(queries, self.vectors, candidates, self.kind, rows, distances)
                return rows, distances
        mask = NO_MASK if among is None else np.require(among, requirements=("C", "W"))

        def walk_chunk(chunk: slice) -> None:
            self._walk(queries[chunk], ef, mask, rows[chunk], distances[chunk])

        spread(walk_chunk, len(queries))
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short):
            candidates = np.arange(self.rows) if among is None else np.flatnonzero(among)
            some, some_distances = rows[short], distances[short]
            walk.compare(queries[short], self.vectors, candidates, self.kind, some, some_distances)
            rows[short], distances[short] = some, some_distances
        if self.zero is not None and (among is None or among[self.zero]):
            missed = (distances[:, -1] > 1) & (rows != self.zero).all(axis=1)
            rows[missed, -1], distances[missed, -1] = self.zero, 1  # orthogonal to everything
        return rows, distances

    def _walk(
        self,
        queries: Vectors,
        ef: int,
        among: Mask,
        rows: NDArray[np.int64],
        distances: NDArray[np.float32],
    ) -> int:
        """Run `walk.search`, which fills rows and distances; return its result."""
        try:
            tags = self.tags.pop()
        except IndexError:  # more concurrent calls than before
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

    For cosines, the graph has zero vectors on the first axis. At the center, a zero vector would be
    nearer to most vectors than they are to each other, and take all of their links.
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


def _view_of(values: Any) -> NDArray[Any]:
    """Return a view of a vector of faiss, valid as long as the vector."""
    return np.asarray(faiss.rev_swig_ptr(values.data(), values.size()))


def _matrix(index: faiss.IndexRefineFlat) -> NDArray[np.float32]:
    """Return the matrix (axes, dim) onto the axes; (axes, 0) if vectors are not rotated."""
    base: Any = faiss.downcast_index(index.base_index)
    if not isinstance(base, faiss.IndexPreTransform):
        return np.empty((base.d, 0), np.float32)
    chain: Any = base.chain
    turn: Any = faiss.downcast_VectorTransform(chain.at(0))
    return np.asarray(faiss.vector_to_array(turn.A).reshape(turn.d_out, turn.d_in))


def _scale(turned: Vectors, center: NDArray[np.float64]) -> float:
    """Return the factor that takes nearly all vectors (n, axes), less their center, to codes.

    Codes are at most `walk.MAX_CODE_LENGTH` long. A few vectors that are far longer than the others
    are shortened, so that the codes of the others stay precise.
    """
    lengths = np.concatenate(
        [
            np.linalg.norm(turned[start : start + BLOCK_ROWS] - center, axis=1)
            for start in range(0, len(turned), BLOCK_ROWS)
        ]
    )
    reach = min(
        float(lengths.max()), CODE_RANGE_MARGIN * float(np.quantile(lengths, CODE_RANGE_QUANTILE))
    )
    return walk.MAX_CODE_LENGTH / (reach or float(lengths.max()) or 1.0)


def _rounded_up(axes: int) -> int:
    return -(-axes // AXES_MULTIPLE) * AXES_MULTIPLE
