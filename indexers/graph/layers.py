"""A graph in layers: each row is linked to near rows, and a few rows also on higher layers.

Malkov & Yashunin, Efficient and robust approximate nearest neighbor search using Hierarchical
Navigable Small World graphs (TPAMI 2020). Rows are inserted in batches, as in Manohar et al.
(ParlayANN, PPoPP 2024): the rows of a batch find their neighbors in the graph before it, and are
then linked back. So a graph does not depend on the number of threads.
"""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from math import log
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexers.graph import linking
from indexers.graph.coding import Codes, Coding
from retrieval.contracts import Rows
from retrieval.runtime.memory import aligned_empty
from retrieval.runtime.threads import usable_cores

BATCH_SHARE = 8  # the graph has at least this number of rows for each row of a batch
MAX_BATCH_SHARE = 50  # a batch has at most this fraction of the rows in the finished graph
MIN_PARALLEL_ROWS = 64  # smaller batches are linked by one thread
CHUNKS_PER_THREAD = 4
LEAST_SHARE = 1e-9  # smallest expected share of rows in a layer; faiss has no higher layers

Links = NDArray[np.int32]

NO_LINKS = np.empty((0, 0), np.int32)
NO_LINES = np.empty(0, np.int32)


@dataclass(eq=False)
class Layers:
    """Links of all rows.

    links: (n, 2 m) neighbors in the lowest layer, then -1.
    levels: (n,) the highest layer of each row; 0 is the lowest.
    upper: (u, m) neighbors in the higher layers, then -1: for each row, a line for each of these.
    lines: (n,) the line of the row in the layer above the lowest; -1 for none.
    entry: the row where walks begin, on the highest layer.
    """

    links: Links
    levels: NDArray[np.uint8]
    upper: Links
    lines: NDArray[np.int32]
    entry: int

    @classmethod
    def empty(cls, m: int) -> Self:
        """Return a graph without rows."""
        return cls(
            np.empty((0, 2 * m), np.int32),
            np.empty(0, np.uint8),
            np.empty((0, m), np.int32),
            np.empty(0, np.int32),
            0,
        )

    @property
    def m(self) -> int:
        """Links of a row in a higher layer, and half of those in the lowest."""
        return int(self.upper.shape[1])

    @property
    def top(self) -> int:
        """The highest layer."""
        return int(self.levels[self.entry]) if len(self.levels) else 0

    def grown(self, codes: Codes, coding: Coding, ef: int, threads: int, seed: int = 0) -> "Layers":
        """Return the graph with further rows: those of codes (n, width) that it does not have.

        ef: candidates kept while a row is linked. threads: 0 for all cores. seed: of the layers
        that rows are in, and of the order of their insertion.
        """
        old = len(self.levels)
        grown = self._with_room(len(codes), seed)
        order = old + np.random.default_rng((seed, old, 1)).permutation(len(codes) - old)
        threads = threads or usable_cores()
        with ThreadPoolExecutor(threads) as pool:
            builder = _Builder(coding, self.m, min(ef, len(codes)), threads, pool)
            for level in range(grown.top, 0, -1):
                grown._link_higher(codes, order, old, level, builder)
            grown._link_lowest(codes, order, old, builder)
        return grown

    def _with_room(self, rows: int, seed: int) -> "Layers":
        """Return a copy with lines for new rows, which have no links yet."""
        old, new = len(self.levels), rows - len(self.levels)
        draw = np.random.default_rng((seed, old))
        drawn = np.floor(-np.log(1 - draw.random(new)) / log(self.m))
        rarest = LEAST_SHARE / (1 - 1 / self.m)
        highest = self.top if old else int(-log(rarest) / log(self.m))
        drawn = np.minimum(drawn, highest).astype(np.uint8)
        firsts = len(self.upper) + np.cumsum(drawn, dtype=np.int64) - drawn
        lines = np.where(drawn > 0, firsts, -1).astype(np.int32)
        links = aligned_empty((rows, self.links.shape[1]), np.int32)
        links[:old], links[old:] = self.links, -1
        upper = np.full((len(self.upper) + int(drawn.sum(dtype=np.int64)), self.m), -1, np.int32)
        upper[: len(self.upper)] = self.upper
        return Layers(
            links,
            np.concatenate([self.levels, drawn]),
            upper,
            np.concatenate([self.lines, lines]),
            self.entry if old else int(np.argmax(drawn)),
        )

    def _link_higher(
        self, codes: Codes, order: Rows, old: int, level: int, builder: "_Builder"
    ) -> None:
        """Insert the new rows into a higher layer, in which rows have numbers of its own."""
        here = np.concatenate([np.flatnonzero(self.levels[:old] >= level), order])
        here = here[self.levels[here] >= level]
        present = int(np.count_nonzero(here < old))
        if not present:
            here, present = _first(here, self.entry), 1
        numbers = np.full(len(codes), -1, np.int32)
        numbers[here] = np.arange(len(here), dtype=np.int32)
        lines = self.lines[here] + level - 1
        links = self.upper[lines]
        links = np.where(links >= 0, numbers[links], -1).astype(np.int32)
        layer = _Layer(
            np.ascontiguousarray(codes[here]),
            links,
            np.arange(len(here)) < present,
            int(numbers[self.entry]),
            NO_LINKS,
            NO_LINES,
            0,
        )
        builder.insert(layer, np.arange(present, len(here)))
        self.upper[lines] = np.where(links >= 0, here[links], -1)

    def _link_lowest(self, codes: Codes, order: Rows, old: int, builder: "_Builder") -> None:
        """Insert the new rows into the lowest layer, those first that the higher ones lead to."""
        order = order[np.argsort(-self.levels[order].astype(np.int16), kind="stable")]
        known = np.arange(len(codes)) < old
        if not old:
            order = _first(order, self.entry)[1:]
            known[self.entry] = True

        layer = _Layer(codes, self.links, known, self.entry, self.upper, self.lines, self.top)
        builder.insert(layer, order)


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer of a graph, and those above it that lead to it.

    codes: (n, width). links: (n, degree). known: (n,) whether a row is in the layer. entry: a row
    that is. upper, lines, levels: see `Layers`; none above a higher layer.
    """

    codes: Codes
    links: Links
    known: NDArray[np.bool_]
    entry: int
    upper: Links
    lines: NDArray[np.int32]
    levels: int


@dataclass(frozen=True, slots=True)
class _Builder:
    """Insertion of rows into one layer, in batches.

    m: links that a new row gets. ef: candidates of a walk.
    """

    coding: Coding
    m: int
    ef: int
    threads: int
    pool: Executor

    def insert(self, layer: _Layer, order: Rows) -> None:
        """Insert rows in this order into the layer, whose links and `known` change."""
        tags = [np.zeros(len(layer.codes) + 1, np.uint8) for _ in range(self.threads)]
        present = int(np.count_nonzero(layer.known))
        most = (present + len(order)) // MAX_BATCH_SHARE
        while len(order):
            size = max(1, min(present // BATCH_SHARE, most))
            rows, order = order[:size], order[size:]
            layer.links[rows, : self.m] = found = self._found(layer, rows, tags)
            self._link_back(layer, rows, found)
            layer.known[rows] = True
            present += size

    def _found(self, layer: _Layer, rows: Rows, tags: list[NDArray[np.uint8]]) -> Links:
        """Return the links (b, m) of new rows (b,) to rows of the layer."""
        found = np.empty((len(rows), self.m), np.int32)

        def find(part: slice, thread: int) -> None:
            linking.find_links(
                layer.codes,
                layer.links,
                layer.upper,
                layer.lines,
                layer.known,
                layer.entry,
                layer.levels,
                tags[thread],
                *self.coding.geometry,
                self.ef,
                rows[part],
                found[part],
            )

        self.spread(find, len(rows))
        return found

    def _link_back(self, layer: _Layer, rows: Rows, found: Links) -> None:
        """Link the rows that were found (b, m) to the new rows (b,)."""
        sources, targets = np.repeat(rows.astype(np.int32), self.m), found.ravel()
        by_target = np.argsort(targets, kind="stable")
        by_target = by_target[np.count_nonzero(targets < 0) :]
        linked, starts = np.unique(targets[by_target], return_index=True)
        starts = np.append(starts, len(by_target))
        sources = sources[by_target]

        def link(part: slice, _: int) -> None:
            linking.link_back(
                layer.codes,
                layer.links,
                *self.coding.geometry,
                linked[part],
                starts[part.start : part.stop + 1],
                sources,
            )

        self.spread(link, len(linked))

    def spread(self, call: Callable[[slice, int], object], count: int) -> None:
        """Call with slices of `count` items and the number of a thread, on all threads."""
        if count < MIN_PARALLEL_ROWS or self.threads == 1:
            call(slice(0, count), 0)
            return
        size = -(-count // (self.threads * CHUNKS_PER_THREAD))
        chunks = iter([slice(i, min(i + size, count)) for i in range(0, count, size)])

        def work(thread: int) -> None:
            for chunk in chunks:
                call(chunk, thread)

        list(self.pool.map(work, range(self.threads)))  # raises the error of a call


def _first(rows: Rows, row: int) -> Rows:
    """Return the rows with this one at the front."""
    return np.concatenate([[row], rows[rows != row]])
