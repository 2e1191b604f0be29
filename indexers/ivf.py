"""Inverted lists: the vectors are clustered, and a query is compared with the nearest clusters.

Sivic & Zisserman, Video Google (ICCV 2003); Jégou, Douze & Schmid, Product Quantization for
Nearest Neighbor Search (TPAMI 2011), section IV, without the quantization: faiss's IVFFlat.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from indexers.faiss import bridge, gpu
from indexers.faiss.lists import (
    NEIGHBORS,
    drawn_rows,
    list_count,
    probes_needed,
    training_rows,
)
from indexers.faiss.uncoded import UncodedIndex
from indexers.options import PROBES, check_range
from retrieval.choices import choice
from retrieval.contracts import Blocks, Hits, Index, Json, Mask, Metric, Rows, Vectors
from retrieval.hits import (
    Fetched,
    Found,
    InMemory,
    checked_blocks,
    prepared,
    without_own,
)
from retrieval.values import resolve_options


@dataclass(frozen=True)
class Ivf:
    """`ivf`: compare a query with the vectors of the `n_probe` nearest of `n_lists` clusters.

    n_lists: None for 4·√rows, or fewer so that a list has 39 rows on average; never more than rows.
    n_probe: lists searched per query; more cost time and raise recall. None for 32, or for more
    if the 10 nearest neighbors of a sample of the rows lie in more lists.
    seed: of the draw of training rows and first centroids.
    device: auto trains and searches on a GPU if faiss sees one, and on the CPU otherwise. A GPU's
    index is saved in CPU form. Manhattan distance runs on the CPU only.
    """

    metric: Metric = Metric.COSINE
    n_lists: int | None = None
    n_probe: int | None = None
    seed: int = 0
    device: str = "auto"
    search_options: ClassVar[frozenset[str]] = frozenset({"n_probe", "device"})

    def __post_init__(self) -> None:
        resolve_options(self)
        if self.n_lists is not None:
            check_range("n_lists", self.n_lists, 1)
        if self.n_probe is not None:
            check_range("n_probe", self.n_probe, 1)
        check_range("seed", self.seed, 0, 2**31 - 1)
        gpu.check_device(self.device, self.metric)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["Ivf"]:
        """Return one candidate, with the default number of lists."""
        return [cls(choice(Metric, metric), n_probe=PROBES[-1], seed=seed)]

    def ladders(self) -> list[list["Ivf"]]:
        """Return one ladder, by ascending `n_probe`."""
        return [[replace(self, n_probe=n_probe) for n_probe in PROBES]]

    def apply(self, index: Index) -> None:
        """Set `n_probe` of the index, unless it is None."""
        assert isinstance(index, IvfIndex)
        if self.n_probe is not None:
            index.n_probe = index.index.nprobe = min(self.n_probe, index.index.nlist)

    def settled(self, index: Index) -> "Ivf":
        """Return these options, with the `n_probe` that the build chose if it is None here."""
        assert isinstance(index, IvfIndex)
        return self if self.n_probe is not None else replace(self, n_probe=index.n_probe)

    def build(self, vectors: Vectors) -> "IvfIndex":
        """Build an index of a copy of vectors (n, dim), n ≥ 1.

        Raises BadInput for other vectors, and for device=cuda without a GPU.
        """
        return self.build_from(InMemory(vectors))

    def build_from(self, blocks: Blocks) -> "IvfIndex":
        """Build an index from blocks of vectors; see `Streaming`."""
        lists = list_count(blocks.rows, self.n_lists)
        metric = bridge.METRICS[self.metric]
        index = faiss.IndexIVFFlat(faiss.IndexFlat(blocks.dim, metric), blocks.dim, lists, metric)
        sample = training_rows(blocks, lists, self.seed, self.metric)
        there = None
        if gpu.on_gpu(self.device, self.metric):
            index = self._trained_there(index, sample, blocks.rows)
            centroids = gpu.Gpu(index.quantizer, lists)
            of_rows = _fill(index, blocks, self.metric, lambda block: centroids.search(block, 1)[0])
            del centroids
            there = gpu.Gpu(index, blocks.rows)
        else:
            self._train(index, sample)
            of_rows = _fill(
                index, blocks, self.metric, lambda block: index.quantizer.search(block, 1)[1]
            )
        probes = self.n_probe or _probes(
            index, of_rows, *drawn_rows(blocks, self.seed, self.metric)
        )
        return IvfIndex(index, self.metric, probes, there)

    def load(self, folder: Path) -> "IvfIndex":
        """Load the index saved in the folder, with this `n_probe`, or the saved one if it is None.

        Raises BadData if it is missing or damaged, BadInput for device=cuda without a GPU.
        """
        index = bridge.load(folder, faiss.IndexIVFFlat, self.metric)
        there = gpu.Gpu(index, index.ntotal) if gpu.on_gpu(self.device, self.metric) else None
        return IvfIndex(index, self.metric, self.n_probe or max(1, index.nprobe), there)

    def _train(self, index: Any, sample: Vectors) -> None:
        """Train the centroids of an index of faiss, on its device."""
        index.cp.seed = self.seed
        index.cp.min_points_per_centroid = 1  # no warning: the caller chose fewer than 39
        index.train(sample)

    def _trained_there(self, index: Any, sample: Vectors, rows: int) -> Any:
        """Train a copy on a GPU with room for this number of rows, and return it in CPU memory."""
        there = gpu.Gpu(index, rows)
        with there.fitting():
            self._train(there.index, sample)
        return there.to_cpu()


def _fill(
    index: faiss.IndexIVFFlat,
    blocks: Blocks,
    metric: Metric,
    nearest_list: Callable[[Vectors], Rows],
) -> Rows:
    """Reserve the lists' memory, add the vectors, and return the list (n,) of each.

    Lists that grow are moved many times and end with up to twice the memory that they need, also on
    a GPU. So a GPU's lists are filled on the CPU and then copied.
    """
    nearest = np.empty(blocks.rows, np.int64)
    for start, block in checked_blocks(blocks, metric):
        nearest[start : start + len(block)] = nearest_list(block)[:, 0]
    bridge.reserve_lists(index.invlists, np.bincount(nearest, minlength=index.nlist))
    for start, block in checked_blocks(blocks, metric):
        lists = nearest[start : start + len(block)]
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(lists))
    return nearest


def _probes(index: faiss.IndexIVFFlat, of_rows: Rows, rows: Rows, queries: Vectors) -> int:
    """Return the default number of lists that a search of the full index probes.

    of_rows: (n,), the list of each row. rows, queries: a sample of rows and their vectors.
    """
    all_lists = faiss.SearchParametersIVF(nprobe=index.nlist)  # type: ignore[call-arg]
    count = min(NEIGHBORS + 1, index.ntotal)
    scores, found = index.search(queries, count, params=all_lists)
    neighbors = without_own(Hits(found, scores), rows).rows
    lists = np.where(neighbors >= 0, of_rows[neighbors], -1)
    return probes_needed(index.quantizer, queries, lists)


class IvfIndex(UncodedIndex):
    """faiss's inverted lists.

    With a mask, a search probes more lists, so that it compares as many vectors as without. Queries
    whose lists hold fewer than k rows that may be found are searched again in twice as many lists,
    and so on: a line is padded only if no more rows may be found.

    With a GPU, searches with a mask, with k or n_probe above 2048, and of further lists run on the
    CPU, with the same lists.
    """

    def __init__(
        self, index: faiss.IndexIVFFlat, metric: Metric | str, n_probe: int, there: gpu.Gpu | None
    ) -> None:
        super().__init__(index, metric, there)
        self.n_probe = index.nprobe = min(n_probe, index.nlist)

    @property
    def details(self) -> Mapping[str, Json]:
        """The number of lists, the device of the index, and the GPU memory planned for it."""
        return {"lists": self.index.nlist, **super().details}

    def stored(self) -> Blocks:
        """Return the vectors of all rows."""

        def fetch(rows: Rows) -> Vectors:
            vectors: Vectors = self.index.reconstruct_n(int(rows[0]), len(rows))
            return vectors

        return Fetched(len(self), self.dim, fetch)

    def _remove(self, rows: Rows) -> None:
        kept = np.ones(len(self), np.bool_)
        kept[rows] = False
        super()._remove(rows)
        bridge.renumber(self.index.invlists, np.cumsum(kept) - 1)

    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        queries = prepared(queries, self.metric)
        selector = bridge.selector(among)
        lists, probes = self.index.nlist, self.n_probe
        if among is not None:
            probes = min(lists, ceil(probes * len(self) / np.count_nonzero(among)))

        def on_cpu(queries: Vectors, probes: int) -> Found:
            parameters = None  # making them would take longer than a small search
            if selector is not None or probes != self.n_probe:
                parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)  # type: ignore[call-arg]
            scores, rows = self.index.search(queries, count, params=parameters)
            return rows, scores

        if self.gpu is not None and among is None and max(count, probes) <= gpu.MAX_K_OR_PROBES:
            rows, scores = self.gpu.search(queries, count, probes)
        else:
            rows, scores = on_cpu(queries, probes)
        while probes < lists:
            short = np.flatnonzero(rows[:, -1] < 0)
            if len(short) == 0:
                break
            probes = min(2 * probes, lists)
            rows[short], scores[short] = on_cpu(queries[short], probes)
        return rows, bridge.to_distances(scores, self.metric)
