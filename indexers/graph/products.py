"""Inner products as Euclidean distances, for graphs that do not find the largest products.

In a graph of inner products, most links lead to the few vectors that are longest. If these lie in
similar directions, they have few links of their own, and a walk misses some of them. Bachrach et
al., Speeding Up the Xbox Recommender System (RecSys 2014), give each vector x a further number,
sqrt(L² - |x|²), L being the length of the longest, and each query a zero. The row at the smallest
Euclidean distance is then the one with the largest product.

No graph is the better one for all vectors. A build tries both on a sample of the rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from indexers.graph.effort import DEFAULT_EF, EF_DEFAULTS, NEIGHBORS, RECALL_MARGIN, settle_ef
from retrieval.contracts import Blocks, Growing, Hits, Index, Json, Mask, Metric, Rows, Vectors
from retrieval.errors import BadData, BadInput
from retrieval.hits import (
    Fetched,
    Found,
    InMemory,
    answer,
    checked_additions,
    checked_blocks,
    squared_lengths,
    unit_vectors,
)
from retrieval.quality.metrics import index_recall_at
from retrieval.storage.document import parsed
from retrieval.storage.files import read_json, write_json

LENGTHENED = "lengthened.json"
"""File of an index whose vectors have a further number: the length of the longest vector."""

SAMPLE_ROWS = 5_000
SAMPLE_QUERIES = 200  # rows of the sample that are not indexed
MIN_ROWS = 1_000  # with fewer, the graph of products finds nearly all
SIMILAR_LENGTHS = 0.9
"""Ratio of the shortest to the longest vector from which both graphs are alike."""


class GraphIndexer(Protocol):
    """A backend of graphs: a dataclass with the options `metric` and `ef`."""

    @property
    def metric(self) -> Metric:
        """The metric."""

    @property
    def ef(self) -> int | None:
        """Candidates that a walk keeps; None for the default."""

    def build_graph(self, blocks: Blocks) -> Index:
        """Build the graph of this metric."""

    def load_graph(self, folder: Path) -> Index:
        """Load the graph of this metric."""

    def apply(self, index: Index) -> None:
        """Set `ef`."""


class LengthenedIndex:
    """An index of inner products, in a Euclidean index of lengthened vectors.

    A product follows from the squared distance d² of a query that is as long as the longest vector:
    (L - d² / 2 L) · |query|. Its error is about that of a product in float32.
    """

    def __init__(self, indexer: "GraphIndexer", inner: Index, longest: float) -> None:
        """indexer: of the inner index. longest: the length L of the longest vector."""
        self.indexer = indexer
        self.inner = inner
        self.longest = longest

    @property
    def dim(self) -> int:
        """Number of dimensions of the vectors, without the further number."""
        return self.inner.dim - 1

    @property
    def details(self) -> Mapping[str, Json]:
        """Details of the inner index, and that its vectors are lengthened."""
        return {**self.inner.details, "lengthened": True}

    def __len__(self) -> int:
        return len(self.inner)

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k rows with the largest products that a walk finds; see `Index`."""
        return answer(self._nearest, queries, k, among, dim=self.dim, rows=len(self))

    def add(self, vectors: Vectors) -> None:
        """Add rows; see `Growing`. If one is longer than all others, the graph is built again."""
        vectors = checked_additions(vectors, self.dim, Metric.INNER_PRODUCT)
        longest = _longest(vectors)
        if longest <= self.longest:
            cast(Growing, self.inner).add(lengthened(vectors, self.longest))
            return
        stored = self.stored()
        if stored is None:
            raise BadInput(
                f"a vector of length {longest:g} is longer than all {len(self):,} of the index, "
                "which has only codes of them; build the index again with all vectors"
            )
        every = InMemory(np.concatenate([*stored, vectors]))
        self.inner = self.indexer.build_graph(_Lengthened(every, longest))
        self.longest = longest

    def stored(self) -> Blocks | None:
        """Return the vectors of all rows, or None if the inner index has only codes of them."""
        inner: Fetched | None = cast(Any, self.inner).stored()
        if inner is None:
            return None
        fetch = inner.fetch
        return Fetched(len(self), self.dim, lambda rows: fetch(rows)[:, :-1])

    def save(self, folder: Path) -> None:
        """Write the files of the inner index, and lengthened.json."""
        self.inner.save(folder)
        write_json(folder / LENGTHENED, {"longest": self.longest})

    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        # With queries as long as the rows, float32 keeps most of the differences between distances.
        scaled = unit_vectors(queries) * np.float32(self.longest)
        zeros = np.zeros((len(queries), 1), np.float32)
        hits = self.inner.search(np.hstack([scaled, zeros]), count, among)
        lengths = np.sqrt(squared_lengths(queries))[:, None]
        squares = hits.distances.astype(np.float64) ** 2
        products = (self.longest - squares / (2 * self.longest)) * lengths
        return hits.rows, -products.astype(np.float32)


def build_products(indexer: GraphIndexer, blocks: Blocks) -> Index:
    """Build an index of inner products: the graph that finds more of them in a sample."""
    lengths = _lengths(blocks)
    if not _lengthened_is_better(indexer, blocks, lengths):
        return indexer.build_graph(blocks)
    longest = float(lengths.max())
    longer = _euclidean(indexer, indexer.ef or DEFAULT_EF)
    index = LengthenedIndex(longer, longer.build_graph(_Lengthened(blocks, longest)), longest)
    if indexer.ef is None:
        settle_ef(
            lambda ef: _euclidean(indexer, ef).apply(index.inner),
            index,
            blocks,
            Metric.INNER_PRODUCT,
        )
    return index


def load_products(indexer: GraphIndexer, folder: Path) -> Index:
    """Load the index in the folder, whose vectors may be lengthened.

    Raises BadData for damaged files.
    """
    path = folder / LENGTHENED
    if indexer.metric is not Metric.INNER_PRODUCT or not path.is_file():
        return indexer.load_graph(folder)
    facts = parsed(read_json(path), _LengthenedFacts, path, "index again")
    if not 0 < facts.longest < np.inf:
        raise BadData(f"{path}: the longest vector has length {facts.longest}; index again")
    longer = _euclidean(indexer, indexer.ef)
    return LengthenedIndex(longer, longer.load_graph(folder), facts.longest)


def inside(index: Index) -> Index:
    """Return the index of the graph itself."""
    return index.inner if isinstance(index, LengthenedIndex) else index


def lengthened(vectors: Vectors, longest: float) -> Vectors:
    """Return vectors (n, dim + 1) with the further number; 0 for those longer than `longest`."""
    squares = squared_lengths(vectors)
    further = np.sqrt(np.maximum(longest**2 - squares, 0))
    return np.hstack([vectors, further[:, None].astype(np.float32)])


@dataclass(frozen=True, slots=True)
class _LengthenedFacts:
    """lengthened.json."""

    longest: float


@dataclass(frozen=True, slots=True)
class _Lengthened:
    """Blocks of lengthened vectors."""

    blocks: Blocks
    longest: float

    @property
    def rows(self) -> int:
        return self.blocks.rows

    @property
    def dim(self) -> int:
        return self.blocks.dim + 1

    def __iter__(self) -> Iterator[Vectors]:
        for _, block in checked_blocks(self.blocks, Metric.INNER_PRODUCT):
            yield lengthened(block, self.longest)


def _longest(vectors: Vectors) -> float:
    return sqrt(float(squared_lengths(vectors).max()))


def _lengths(blocks: Blocks) -> NDArray[np.float64]:
    """Return the lengths (rows,) of the vectors. Raises the errors of `checked_blocks`."""
    checked = checked_blocks(blocks, Metric.INNER_PRODUCT)
    return np.concatenate([np.sqrt(squared_lengths(block)) for _, block in checked])


def _euclidean(indexer: GraphIndexer, ef: int | None) -> GraphIndexer:
    return cast(GraphIndexer, replace(cast(Any, indexer), metric=Metric.EUCLIDEAN, ef=ef))


def _lengthened_is_better(
    indexer: GraphIndexer, blocks: Blocks, lengths: NDArray[np.float64]
) -> bool:
    """Return whether the graph of lengthened vectors finds more of a sample's products."""
    if blocks.rows < MIN_ROWS or lengths.min() >= SIMILAR_LENGTHS * lengths.max():
        return False
    drawn = np.random.default_rng(0).permutation(blocks.rows)[: SAMPLE_ROWS + SAMPLE_QUERIES]
    sample = _picked(blocks, np.sort(drawn))[np.argsort(np.argsort(drawn))]
    queries, rows = sample[:SAMPLE_QUERIES], sample[SAMPLE_QUERIES:]
    plain = cast(GraphIndexer, replace(cast(Any, indexer), ef=DEFAULT_EF))
    longer, longest = _euclidean(indexer, DEFAULT_EF), _longest(rows)
    graph = longer.build_graph(_Lengthened(InMemory(rows), longest))
    graphs = (
        (plain, plain.build_graph(InMemory(rows))),
        (longer, LengthenedIndex(longer, graph, longest)),
    )
    true = -np.sort(-(queries @ rows.T), axis=1)[:, :NEIGHBORS]
    for ef in (EF_DEFAULTS[-1], DEFAULT_EF):
        one, other = (_recall(each, index, ef, queries, -true) for each, index in graphs)
        if abs(one - other) > RECALL_MARGIN:
            return other > one
    return False


def _recall(
    indexer: GraphIndexer, index: Index, ef: int, queries: Vectors, true: NDArray[np.float32]
) -> float:
    cast(GraphIndexer, replace(cast(Any, indexer), ef=ef)).apply(inside(index))
    found = index.search(queries, NEIGHBORS).distances
    return float(index_recall_at(found, true, NEIGHBORS, Metric.INNER_PRODUCT).mean())


def _picked(blocks: Blocks, rows: Rows) -> Vectors:
    """Return the vectors of these rows, ascending."""
    found, start = [], 0
    for block in blocks:
        first, last = np.searchsorted(rows, (start, start + len(block)))
        found.append(np.asarray(block[rows[first:last] - start], np.float32))
        start += len(block)
    return np.concatenate(found)
