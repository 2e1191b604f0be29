"""Indices of faiss's index factory: https://github.com/facebookresearch/faiss/wiki."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from indexers.copies import Copies
from indexers.faiss import bridge
from indexers.faiss.index import FaissIndex
from indexers.faiss.lists import MIN_DEFAULT_PROBES, list_count, training_rows
from indexers.options import EFFORTS, PROBES, check_range
from retrieval.choices import choice
from retrieval.contracts import Index, Json, Metric, Vectors
from retrieval.errors import BadInput
from retrieval.hits import InMemory, checked_vectors, prepared, prepared_blocks
from retrieval.values import resolve_options

MIN_TRAINING_CLUSTERS = 1024  # k-means' training rows for as many clusters suffice for codes
MIN_LINKS = 2
DEFAULT_EF_SEARCH = 128
INSENSITIVE_TO_COPIES = (faiss.IndexFlat, faiss.IndexIVFFlat)
MANHATTAN_CLASSES = (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexHNSWFlat)


@dataclass(frozen=True)
class Faiss:
    """`faiss`: an index by its factory string, such as `OPQ16_64,IVF1024,PQ16x4fs,RFlat`.

    factory: a string for faiss's index_factory. `{lists}` in it stands for 4·√rows, or fewer so
    that a list has 39 rows on average.
    search: search parameters in the form of faiss's ParameterSpace and of autofaiss, such as
    `nprobe=16,k_factor_rf=4`. Without them, those of the build: `efSearch=128` for a graph of HNSW,
    `nprobe=32` for inverted lists, and otherwise faiss's defaults.
    seed: of the draw of training rows.

    Distances are those of faiss; for codes without refinement (`…,RFlat`) they are approximate. An
    index without the vectors gives fewer than k rows where faiss finds fewer.
    """

    metric: Metric = Metric.COSINE
    factory: str = "HNSW32,Flat"
    search: str = ""
    seed: int = 0
    search_options: ClassVar[frozenset[str]] = frozenset({"search"})
    saves_memory: ClassVar[bool] = True

    def __post_init__(self) -> None:
        resolve_options(self)
        check_range("seed", self.seed, 0, 2**31 - 1)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["Faiss"]:
        """Return indices of codes without vectors, for little memory.

        They are not trained for polysemous codes (`np`): that takes long, and helps another search.
        """
        metric = choice(Metric, metric)
        factories = ("HNSW16_SQ8", "IVF{lists},SQ8", f"IVF{{lists}},PQ{_codes(dim)}np")
        return [
            cls(metric, factory=factory, seed=seed)
            for factory in factories
            if metric is not Metric.MANHATTAN
        ]

    def ladders(self) -> list[list["Faiss"]]:
        """Return one ladder, by `efSearch` of a graph or `nprobe` of lists."""
        efforts = {"HNSW": ("efSearch", EFFORTS), "IVF": ("nprobe", PROBES)}
        for kind, (name, values) in efforts.items():
            if kind in self.factory:
                return [[replace(self, search=f"{name}={value}") for value in values]]
        return [[self]]

    def apply(self, index: Index) -> None:
        """Set the parameters of `search`. Raises BadInput if faiss refuses them."""
        assert isinstance(index, FaissIndex)
        self._set(index.index)

    def build(self, vectors: Vectors) -> FaissIndex:
        """Build an index of vectors (n, dim), n ≥ 1, which are not changed.

        Raises BadInput for other vectors, and for a string that faiss refuses.
        """
        vectors = checked_vectors(vectors, self.metric)
        metric = bridge.METRICS[self.metric]
        try:
            factory = self.factory.replace("{lists}", str(list_count(len(vectors), None)))
            index: Any = faiss.index_factory(vectors.shape[1], factory, metric)
            _check(index, self.metric)
            copies = Copies.none(len(vectors))
            if not isinstance(bridge.inside(index), INSENSITIVE_TO_COPIES):
                copies = Copies.find(InMemory(vectors), self.metric)
            if copies.vector_of is not None:
                vectors = vectors[copies.is_first]
            clusters = _clusters(index)
            wanted = max(clusters, MIN_TRAINING_CLUSTERS)
            sample = training_rows(InMemory(vectors), wanted, self.seed, self.metric)
            if len(sample) < clusters:
                sample = np.resize(sample, (clusters, vectors.shape[1]))  # repeats rows
            index.train(sample)
            for block in _added(index, vectors, self.metric):
                index.add(block)
            _set_effort(index)
        except RuntimeError as problem:
            raise BadInput(
                f"faiss cannot build the {self.metric} index '{self.factory}' of {len(vectors):,} "
                f"vectors of {vectors.shape[1]} dimensions ({bridge.reason(problem)}); "
                "change factory"
            ) from None
        return self._searched(index, copies)

    def load(self, folder: Path) -> FaissIndex:
        """Load the index saved in the folder, with these search parameters.

        Raises BadData if it is missing or damaged, BadInput for parameters that it lacks.
        """
        index: Any = bridge.load(folder, faiss.Index, self.metric)
        return self._searched(index, Copies.load(folder, index.ntotal))

    def _searched(self, index: Any, copies: Copies) -> FaissIndex:
        self._set(index)
        details: dict[str, Json] = {"kind": type(bridge.inside(index)).__name__}
        return FaissIndex(index, self.metric, details, copies)

    def _set(self, index: Any) -> None:
        try:
            if self.search:
                bridge.set_parameters(index, self.search)
            index.search(
                np.zeros((1, index.d), np.float32), 1
            )  # some settings fail only in a search
        except RuntimeError as problem:
            raise BadInput(
                f"faiss does not search '{self.factory}' with '{self.search}' "
                f"({bridge.reason(problem)}); change factory or search"
            ) from None


def _added(index: Any, vectors: Vectors, metric: Metric) -> Iterator[Vectors]:
    """Return the prepared vectors in blocks; in one block for graphs that cannot grow."""
    if isinstance(bridge.inside(index), faiss.IndexNSG):
        yield prepared(vectors, metric)
    else:
        yield from (block for _, block in prepared_blocks(vectors, metric))


def _set_effort(index: Any) -> None:
    """Set more candidates, or more probed lists, than faiss has by default."""
    base = bridge.inside(index)
    if isinstance(base, faiss.IndexHNSW):
        base.hnsw.efSearch = DEFAULT_EF_SEARCH
    elif isinstance(base, faiss.IndexIVF):
        base.nprobe = min(MIN_DEFAULT_PROBES, base.nlist)


def _codes(dim: int) -> int:
    """Return the bytes of a code: one for about four numbers, with equal parts of the vector."""
    return max(codes for codes in range(1, max(1, dim // 4) + 1) if dim % codes == 0)


def _check(index: Any, metric: Metric) -> None:
    """Raise RuntimeError for an index in which faiss would crash."""
    base = bridge.inside(index)
    parts = [base]
    if isinstance(index, faiss.IndexRefine):
        parts.append(faiss.downcast_index(index.refine_index))
    for part in parts:
        if metric is Metric.MANHATTAN and not isinstance(part, MANHATTAN_CLASSES):
            raise RuntimeError(f"{type(part).__name__} does not support the distance")
    links: Any = getattr(base, "hnsw", None)
    if links is not None and links.nb_neighbors(0) < 2 * MIN_LINKS:  # raises for HNSW1
        raise RuntimeError(f"a graph needs at least {MIN_LINKS} links")


def _clusters(index: Any) -> int:
    """Return the number of centroids to train, and silence faiss's warning about few rows."""
    inside = bridge.inside(index)
    codes = getattr(inside, "pq", None)
    for part in (inside, codes):
        if clustering := getattr(part, "cp", None):
            clustering.min_points_per_centroid = 1
    return max(getattr(inside, "nlist", 1), 1 if codes is None else codes.ksub)
