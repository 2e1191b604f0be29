"""Any CPU index of faiss behind the contract: full answers, masks, distances, files."""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from indexers import faiss_bridge
from retrieval.contracts import Hits, Json, Mask, Metric, Vectors
from retrieval.errors import BadInput
from retrieval.hits import Found, answer, checked_additions, prepared, prepared_blocks

COMPARED = 10_000  # rows that a mask may admit to be compared one by one: a third of a millisecond


class FaissIndex:
    """An index of faiss, with the vectors themselves where it keeps them.

    Where it does, in an `IndexFlat` of its own or to refine by, small masks are searched exactly,
    and so are queries to which the library finds fewer rows than it might.
    """

    def __init__(self, index: faiss.Index, metric: Metric, details: Mapping[str, Json]) -> None:
        self.index = index
        self.metric = metric
        self.details = details
        self.vectors = _vectors_of(index)

    @property
    def dim(self) -> int:
        """How many numbers a vector has."""
        return int(self.index.d)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """The k nearest rows that the library finds, as `Index` and `Hits` say.

        With a mask, more lists or candidates are looked at, so that as many rows that may be found
        are compared as without. Raises BadInput for a mask that this kind of index cannot take.
        """
        return answer(self._nearest, queries, k, among, dim=self.dim, rows=len(self))

    def add(self, vectors: Vectors) -> None:
        """Add rows, as `Growing` says: what was trained stays as it is."""
        for _, block in prepared_blocks(checked_additions(vectors, self.dim), self.metric):
            self.index.add(block)

    def save(self, folder: Path) -> None:
        """Write index.faiss, for `faiss.read_index`; cosine's vectors are of length 1."""
        faiss_bridge.save(self.index, folder)

    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        queries = prepared(queries, self.metric)
        parameters = None
        if among is not None:
            matching = int(np.count_nonzero(among))
            if self.vectors is not None and matching <= COMPARED:
                return self._compared(queries, count, among)
            parameters = _filtered(self.index, faiss_bridge.selector(among), len(self) / matching)
        try:
            scores, rows = self.index.search(queries, count, params=parameters)
        except RuntimeError as problem:
            if among is None or "not supported" not in str(problem):
                raise
            raise BadInput(
                f"faiss's {type(self.index).__name__} cannot search among some of its rows; leave "
                "the filter away, or index with another backend"
            ) from None
        distances = faiss_bridge.to_distances(scores, self.metric)
        if self.vectors is not None:
            short = np.flatnonzero((rows < 0).any(axis=1))
            if len(short):
                rows[short], distances[short] = self._compared(queries[short], count, among)
        return rows, distances

    def _compared(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        """The true neighbors of prepared queries."""
        assert self.vectors is not None
        parameters = None
        if among is not None:
            parameters = faiss.SearchParameters(sel=faiss_bridge.selector(among))  # type: ignore[call-arg]
        scores, rows = self.vectors.search(queries, count, params=parameters)
        return rows, faiss_bridge.to_distances(scores, self.metric)


def _vectors_of(index: Any) -> faiss.IndexFlat | None:
    """The part of the index that holds the vectors as they are, where there is one."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.refine_index)
    if isinstance(index, faiss.IndexHNSW):
        index = faiss.downcast_index(index.storage)
    return index if isinstance(index, faiss.IndexFlat) else None


def _filtered(index: Any, selector: Any, more: float) -> Any:
    """faiss's parameters for a search among some rows, with `more` times the usual effort."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        base = _filtered(index.base_index, selector, more)
        return _made(
            faiss.IndexRefineSearchParameters, k_factor=index.k_factor, base_index_params=base
        )
    if isinstance(index, faiss.IndexPreTransform):
        return _made(
            faiss.SearchParametersPreTransform, index_params=_filtered(index.index, selector, more)
        )
    if isinstance(index, faiss.IndexIVF):
        probes = min(index.nlist, ceil(index.nprobe * more))
        return _made(faiss.SearchParametersIVF, sel=selector, nprobe=probes)
    if isinstance(index, faiss.IndexHNSW):
        ef = min(index.ntotal, ceil(index.hnsw.efSearch * more))
        return _made(faiss.SearchParametersHNSW, sel=selector, efSearch=ef)  # type: ignore[attr-defined]
    return _made(faiss.SearchParameters, sel=selector)


def _made(kind: Any, **settings: Any) -> Any:
    """faiss's parameters, which do not keep alive by themselves what they point at."""
    parameters = kind()
    for name, value in settings.items():
        setattr(parameters, name, value)
    parameters.kept = settings
    return parameters
