"""HNSW over short codes of the vectors, built and searched by retr's own compiled code.

`indexers.graph` has its parts: `coding` turns vectors into codes along principal axes, `layers`
links the codes to a graph, and `walk` searches it and ranks the candidates by their vectors.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import cbrt, ceil
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from indexers.copies import Copies
from indexers.faiss import bridge
from indexers.graph import layers_file, walk
from indexers.graph.coding import BITS, DISTANCE_OF_METRIC, Codes, Coding, Neighborhoods
from indexers.graph.distances import COSINE
from indexers.graph.effort import DEFAULT_EF, settle_ef
from indexers.graph.fitting import fitted
from indexers.graph.layers import Layers
from indexers.graph.parallel import spread
from indexers.graph.products import build_products, inside, load_products
from indexers.graph.vectors import CompactVectors, RankedVectors, WholeVectors, blocks_of
from indexers.options import EFFORTS, check_graph, check_range
from retrieval.choices import choice
from retrieval.contracts import Blocks, Hits, Index, Json, Mask, Metric, Rows, Vectors
from retrieval.errors import BadInput
from retrieval.hits import (
    Fetched,
    Found,
    InMemory,
    answer,
    checked_additions,
    checked_blocks,
    prepared,
)
from retrieval.runtime.memory import aligned_empty, give_back, use_large_pages
from retrieval.values import resolve_options

SCANNED_PER_CANDIDATE = 16
"""Number of codes that are compared one after the other in the time in which a walk takes a
candidate. With fewer matching rows, no walk is made."""

SAMPLE_ROWS = 20_000  # for the coding
NO_MASK, NO_ROWS = np.empty(0, np.bool_), np.empty(0, np.int64)
FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class HnswPca:
    """`hnsw-pca`: walk a graph of short codes in retr's own code, and rank by the vectors.

    axes: numbers of a code, rounded up to a multiple of 16 (of 16 bits) or 32 (of 8 bits). They are
    principal axes, or all dimensions if these are fewer. In codes of 8 bits, the last number is the
    length of what the axes leave out. None for the fewest that keep neighbors near; see
    `indexers.graph.fitting`.
    bits: 8 or 16, of each number of a code; None for those that keep more neighbors near.
    m: links per vector and layer, twice as many in the lowest; more cost memory and raise recall.
    ef_construction: candidates kept while a vector is linked; more cost build time.
    ef: candidates kept while a query walks, whose vectors are then compared; more cost time and
    raise recall. None for 128, or for more if the build finds that queries need more; see
    `indexers.graph.effort`.
    compact: round vectors to 8 bits a number: a quarter of their memory, which moves each by about
    1% of its distance from the center, and no vectors to take out of the index again.
    mapped: read vectors from the file when they are compared, so that they may be more than memory.
    build_threads: threads of the build; 0 for all cores. The graph does not depend on them.

    Inner products have the graph that finds more of them in a sample; see
    `indexers.graph.products`.

    Copies of a vector are linked once, and all copies are found; see `indexers.copies`. The first
    use on a machine takes some seconds more, to compile the walk.
    """

    metric: Metric = Metric.COSINE
    axes: int | None = None
    bits: int | None = None
    m: int = 16
    ef_construction: int = 128
    ef: int | None = None
    compact: bool = False
    mapped: bool = False
    build_threads: int = 0
    search_options: ClassVar[frozenset[str]] = frozenset({"ef", "mapped"})

    def __post_init__(self) -> None:
        resolve_options(self)
        if self.metric not in DISTANCE_OF_METRIC:
            raise BadInput(f"hnsw-pca has no {self.metric} distance; use the backend exact or ivf")
        if self.axes is not None:
            check_range("axes", self.axes, 1)
        if self.bits not in (None, *BITS):
            raise BadInput(f"option bits is {self.bits}; give 8 or 16")
        check_graph(self.m, self.ef_construction, self.ef, self.build_threads)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["HnswPca"]:
        """Return graphs with the default number of links, with many, and of compact vectors."""
        metric = choice(Metric, metric)
        if metric not in DISTANCE_OF_METRIC:
            return []
        small, large = cls(metric, ef=EFFORTS[-1]), cls(metric, m=32, ef=EFFORTS[-1])
        return [small, large, replace(small, compact=True)]

    @property
    def saves_memory(self) -> bool:
        """True for an index that is smaller than the vectors; see `retrieval.index.auto`."""
        return self.compact

    def ladders(self) -> list[list["HnswPca"]]:
        """Return one ladder, by ascending `ef`."""
        return [[replace(self, ef=ef) for ef in EFFORTS]]

    def apply(self, index: Index) -> None:
        """Set `ef`; None leaves it as it is. `mapped` is for `load`."""
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
        every = ceil(distinct.rows / SAMPLE_ROWS)
        prepared_rows = checked_blocks(distinct, self.metric)
        sample = np.concatenate([block[-first % every :: every] for first, block in prepared_rows])
        sample = sample[np.random.default_rng(0).permutation(len(sample))]
        neighborhoods = Neighborhoods.of(sample, distinct, self.metric)
        coding = fitted(sample, neighborhoods, self.metric, self.axes, self.bits)
        del sample
        codes = aligned_empty((distinct.rows, coding.width), coding.integer)

        def coded() -> Iterator[Vectors]:
            for start, block in checked_blocks(distinct, self.metric):
                codes[start : start + len(block)] = coding.codes(_placed(block, coding))
                yield block

        vectors: RankedVectors
        if self.compact:
            vectors = CompactVectors.of(coded(), distinct.rows, coding.center)
        else:
            metric = layers_file.graph_metric(self.metric)
            vectors = WholeVectors.of(coded(), distinct.rows, distinct.dim, metric)
        built = HnswPcaIndex(vectors, codes, coding, Layers.empty(self.m), self, copies)
        built.link()
        if self.ef is None:
            settle_ef(partial(setattr, built, "ef"), built, blocks, self.metric)
        give_back()
        return built

    def load(self, folder: Path) -> Index:
        """Load the index saved in the folder, with this `ef`; 128 for None.

        Raises BadData if it is missing or damaged.
        """
        return load_products(self, folder)

    def load_graph(self, folder: Path) -> "HnswPcaIndex":
        """Load the graph of this metric."""
        vectors, codes, coding, layers = layers_file.load(folder, self.metric, self.mapped)
        copies = Copies.load(folder, len(codes))
        give_back()  # faiss's graph
        return HnswPcaIndex(vectors, codes, coding, layers, self, copies)


class HnswPcaIndex:
    """Distinct vectors, their codes, and the graph that links them; `copies` has the rows of each.

    vectors: in the order of their codes; see `indexers.graph.vectors`.
    """

    def __init__(
        self,
        vectors: RankedVectors,
        codes: Codes,
        coding: Coding,
        layers: Layers,
        settings: HnswPca,
        copies: Copies,
    ) -> None:
        self.vectors = vectors
        self.codes = codes
        self.coding = coding
        self.layers = layers
        self.settings = settings
        self.ef = settings.ef or DEFAULT_EF
        self.copies = copies
        self.dim = vectors.dim
        self.tags: list[NDArray[np.uint8]] = []
        self._prepare()

    def __len__(self) -> int:
        return self.copies.rows

    @property
    def details(self) -> Mapping[str, Json]:
        """The number of axes and bits, whether vectors are compact, and the number of distinct
        ones if rows share some.
        """
        coding = self.coding
        compact: dict[str, Json] = {"compact": True} if self.is_compact else {}
        return {"axes": coding.axes, "bits": coding.bits, **compact, **self.copies.details}

    @property
    def is_compact(self) -> bool:
        """True for vectors of 8 bits a number."""
        return isinstance(self.vectors, CompactVectors)

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows that a walk finds; see `Index` and `Hits`.

        With a mask that admits many rows, the walk keeps more candidates, so that enough of them
        match: 2.2 times as many if a tenth of the rows do. With a smaller mask, the codes of all
        matching rows are compared.
        """
        if self._is_plain(queries, k, among):  # a fast path for the most frequent case
            hits = Hits(np.empty((1, k), np.int64), np.empty((1, k), np.float32))
            way = self._way(k, among)
            if not self._search(queries, *way, hits.rows, hits.distances):
                return hits
        nearest = self.copies.expanded(self._nearest)
        return answer(nearest, queries, k, among, dim=self.dim, rows=len(self))

    def add(self, vectors: Vectors) -> None:
        """Add rows, linked as in a build, on the same axes; see `Growing`."""
        metric = self.settings.metric
        vectors = prepared(checked_additions(vectors, self.dim, metric), metric)
        as_kept = self.vectors.rounded(vectors)
        copies = self.copies.joined(blocks_of(self.vectors), as_kept)
        vectors = vectors[copies.is_first[len(self) :]]
        codes = aligned_empty((copies.vectors, self.coding.width), self.coding.integer)
        codes[: len(self.codes)] = self.codes
        codes[len(self.codes) :] = self.coding.codes(_placed(vectors, self.coding))
        self.vectors, self.codes, self.copies = self.vectors.grown(vectors), codes, copies
        self.link()

    def link(self) -> None:
        """Link the rows whose codes the graph does not have yet."""
        settings = self.settings
        self.layers = self.layers.grown(
            self.codes, self.coding, settings.ef_construction, settings.build_threads
        )
        self._prepare()

    def stored(self) -> Fetched | None:
        """Return the vectors of all rows; None if they are compact."""
        return None if self.is_compact else self.copies.fetched(self.dim, self.vectors.fetch)

    def save(self, folder: Path) -> None:
        """Write index.faiss, for `faiss.read_index`, and codes.json; see `layers_file`."""
        metric = bridge.METRICS[layers_file.graph_metric(self.settings.metric)]
        layers_file.save(folder, self.vectors, self.codes, self.coding, self.layers, metric)
        self.copies.save(folder)

    def _prepare(self) -> None:
        """Set what a search needs, for vectors, codes and a graph that have changed."""
        coding, layers = self.coding, self.layers
        self.rows = len(self.vectors)
        self.zero = _zero_vector(self.vectors) if coding.kind == COSINE else None
        matrix, unit, offsets = coding.rounded_turn()
        graph = layers.links, layers.upper, layers.lines
        arrays = matrix, offsets, coding.center, self.codes, *graph, *self.vectors.arrays
        constants = *coding.geometry, coding.has_rest, unit, 1 / coding.step
        fixed = *arrays, layers.entry, layers.top, *constants
        self.walk: Callable[..., int] = partial(cast(Callable[..., int], walk.search), *fixed)
        if not self.vectors.is_mapped:
            use_large_pages(self.vectors.arrays[0])
        self.is_simple = self.copies.vector_of is None and self.zero is None
        self.tags.clear()

    def _is_plain(self, queries: Vectors, k: int, among: Mask | None) -> bool:
        """Return whether this is one query that the walk can take without checks and conversion."""
        rows = self.rows
        if among is not None:
            if type(among) is not np.ndarray or among.dtype != np.bool_ or among.shape != (rows,):
                return False
            rows = int(np.count_nonzero(among))
        return (
            self.is_simple
            and type(queries) is np.ndarray
            and queries.shape == (1, self.dim)
            and queries.dtype is FLOAT32
            and queries.flags.carray
            and 1 <= k <= rows
        )

    def _way(self, count: int, among: Mask | None) -> tuple[int, Mask, Rows]:
        """Return the candidates that a walk keeps and its mask, or the rows to compare instead."""
        if among is None:
            return self.ef, NO_MASK, NO_ROWS
        matching = int(np.count_nonzero(among))
        fewer = self.rows / matching
        wider = ceil(max(self.ef * cbrt(fewer), 1.5 * count * fewer))
        if matching <= SCANNED_PER_CANDIDATE * wider:
            return self.ef, NO_MASK, np.flatnonzero(among)
        return wider, np.require(among, requirements=("C", "W")), NO_ROWS

    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        queries = np.require(queries, requirements=("C", "W"))
        rows = np.empty((len(queries), count), np.int64)
        distances = np.empty(rows.shape, np.float32)
        way = self._way(count, among)

        def search_chunk(chunk: slice) -> None:
            self._search(queries[chunk], *way, rows[chunk], distances[chunk])

        spread(search_chunk, len(queries))
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short):  # the walk met too few rows of the mask, or of the graph
            candidates = np.arange(self.rows) if among is None else np.flatnonzero(among)

            def compare_chunk(chunk: slice) -> None:
                some = short[chunk]
                found, away = rows[some], distances[some]
                self._search(queries[some], self.ef, NO_MASK, candidates, found, away)
                rows[some], distances[some] = found, away

            spread(compare_chunk, len(short))
        if self.zero is not None and (among is None or among[self.zero]):
            missed = (distances[:, -1] > 1) & (rows != self.zero).all(axis=1)
            rows[missed, -1], distances[missed, -1] = self.zero, 1  # orthogonal to everything
        return rows, distances

    def _search(
        self,
        queries: Vectors,
        ef: int,
        among: Mask,
        candidates: Rows,
        rows: NDArray[np.int64],
        distances: NDArray[np.float32],
    ) -> int:
        """Run `walk.search`, which fills rows and distances; return its result."""
        try:
            tags = self.tags.pop()
        except IndexError:  # more concurrent calls than before
            tags = np.zeros(self.rows + 1, np.uint8)
        whole = ef >= (len(candidates) or self.rows)
        margin = np.inf if whole else self.coding.margin
        ef = min(ef, self.rows)
        short = self.walk(queries, among, candidates, tags, margin, ef, rows, distances)
        self.tags.append(tags)
        return short


def _placed(vectors: Vectors, coding: Coding) -> Vectors:
    """Return prepared vectors (n, dim) as the graph has them.

    For cosines, it has zero vectors on the first axis. At the center, a zero vector would be nearer
    to most vectors than they are to each other, and take all of their links.
    """
    zeros = np.flatnonzero(~vectors.any(axis=1)) if coding.kind == COSINE else ()
    if not len(zeros):
        return vectors
    placed = vectors.copy()
    placed[zeros] = coding.turn[0, :-1]
    return placed


def _zero_vector(vectors: RankedVectors) -> int | None:
    """Return the number of the zero vector, up to rounding, among vectors of length 1."""
    start, least = 0, 0.5 / np.sqrt(vectors.dim)
    for block in blocks_of(vectors):
        zeros = np.flatnonzero(~(np.abs(block) > least).any(axis=1))
        if len(zeros):
            return start + int(zeros[0])
        start += len(block)
    return None
