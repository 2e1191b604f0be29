"""Adapter of any CPU index of faiss to the contract: k rows, masks, distances, files."""

from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from indexers.copies import Copies
from indexers.faiss import bridge
from indexers.faiss.bridge import MAX_COMPARED_ROWS
from retrieval.choices import choice
from retrieval.contracts import Blocks, Hits, Json, Mask, Metric, Vectors
from retrieval.errors import BadInput
from retrieval.hits import BLOCK_ROWS, Found, answer, checked_additions, prepared


class FaissIndex:
    """An index of faiss, with the vectors themselves if it keeps them.

    If it does, in an `IndexFlat` or to refine by, small masks are searched exactly, and so are
    queries for which faiss finds too few rows.

    faiss holds each vector once; `copies` has the rows of each.
    """

    def __init__(
        self, index: faiss.Index, metric: Metric | str, details: Mapping[str, Json], copies: Copies
    ) -> None:
        self.index = index
        self.metric = choice(Metric, metric)
        self.details = {**details, **copies.details}
        self.vectors = _vectors_of(index)
        self.copies = copies

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.index.d)

    def __len__(self) -> int:
        return self.copies.rows

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows that faiss finds; see `Index` and `Hits`.

        With a mask, it searches more lists or keeps more candidates, so that as many matching rows
        are compared as without. Raises BadInput if this kind of index cannot take a mask.
        """
        nearest = self.copies.expanded(self.nearest)
        return answer(nearest, queries, k, among, dim=self.dim, rows=len(self))

    def add(self, vectors: Vectors) -> None:
        """Add rows; see `Growing`. Trained parameters stay as they are.

        If faiss keeps only codes, copies of its vectors are added again.

        Raises BadInput for a kind of index that cannot grow.
        """
        vectors = prepared(checked_additions(vectors, self.dim, self.metric), self.metric)
        copies = self.copies.joined(self._linked(), vectors)
        fresh = vectors[copies.is_first[len(self) :]]
        try:
            for start in range(0, len(fresh), BLOCK_ROWS):
                self.index.add(fresh[start : start + BLOCK_ROWS])
        except RuntimeError as problem:
            raise BadInput(
                f"faiss's {type(bridge.inside(self.index)).__name__} cannot add rows "
                f"({bridge.reason(problem)}); build the index again from all embeddings"
            ) from None
        self.copies = copies
        self.details = {**self.details, **copies.details}

    def stored(self) -> Blocks | None:
        """Return the vectors of all rows; None if there are only codes."""
        if self.vectors is None:
            return None
        return self.copies.fetched(self.dim, bridge.vectors_of(self.vectors).__getitem__)

    def save(self, folder: Path) -> None:
        """Write index.faiss, for `faiss.read_index`; cosine's vectors are of length 1."""
        bridge.save(self.index, folder)
        self.copies.save(folder)

    def nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        """Return the `count` nearest vectors, by their numbers in the library's index.

        queries, count, among: see `retrieval.hits.Nearest`, for vectors instead of rows.
        """
        queries = prepared(queries, self.metric)
        parameters = None
        if among is not None:
            matching = int(np.count_nonzero(among))
            if self.vectors is not None and matching <= MAX_COMPARED_ROWS:
                return self._compared(queries, count, among)
            selector = bridge.selector(among)
            parameters = _filtered(self.index, selector, self.index.ntotal / matching, count)
        elif getattr(self.index, "k_factor", 1) * count > self.index.ntotal:
            parameters = _filtered(self.index, None, 1, count)
        try:
            scores, rows = self.index.search(queries, count, params=parameters)
        except RuntimeError as problem:
            if among is None or "not supported" not in str(problem):
                raise
            raise BadInput(
                f"faiss's {type(self.index).__name__} cannot search with a filter; leave the "
                "filter out, or index with another backend"
            ) from None
        distances = bridge.to_distances(scores, self.metric)
        if self.vectors is not None:
            short = np.flatnonzero((rows < 0).any(axis=1))
            if len(short):
                rows[short], distances[short] = self._compared(queries[short], count, among)
        return rows, distances

    def _linked(self) -> Iterator[Vectors]:
        """Yield faiss's vectors in blocks, or their reconstructions from codes."""
        if self.vectors is not None:
            yield bridge.vectors_of(self.vectors)
            return
        for start in range(0, self.copies.vectors, BLOCK_ROWS):
            yield self.index.reconstruct_n(start, min(BLOCK_ROWS, self.copies.vectors - start))

    def _compared(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        """Return the true neighbors of prepared queries."""
        assert self.vectors is not None
        return bridge.compared(self.vectors, queries, count, among, self.metric)


def _vectors_of(index: Any) -> faiss.IndexFlat | None:
    """Return the part of the index that holds the vectors, if there is one."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.refine_index)
    if isinstance(index, faiss.IndexHNSW):
        index = faiss.downcast_index(index.storage)
    return index if isinstance(index, faiss.IndexFlat) else None


def _filtered(index: Any, selector: Any, more: float, count: int) -> Any:
    """Return faiss's parameters for a search among some rows, with `more` times the effort.

    selector: None for all rows.
    """
    index = faiss.downcast_index(index)
    library: Any = faiss
    if isinstance(index, faiss.IndexRefine):
        # More candidates than rows would waste memory.
        factor = min(index.k_factor, max(1.0, index.ntotal / count))
        base = _filtered(index.base_index, selector, more, count)
        return library.IndexRefineSearchParameters(k_factor=factor, base_index_params=base)
    if isinstance(index, faiss.IndexPreTransform):
        inside = _filtered(index.index, selector, more, count)
        return library.SearchParametersPreTransform(index_params=inside)
    if isinstance(index, faiss.IndexIVF):
        probes = min(index.nlist, ceil(index.nprobe * more))
        return library.SearchParametersIVF(sel=selector, nprobe=probes)
    if isinstance(index, faiss.IndexHNSW):
        ef = min(index.ntotal, ceil(index.hnsw.efSearch * more))
        return library.SearchParametersHNSW(sel=selector, efSearch=ef)
    return library.SearchParameters(sel=selector)
