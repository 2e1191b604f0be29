"""The common part of `exact` and `ivf`: faiss indices of the vectors themselves, on CPU and GPU."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indexers.faiss import bridge, gpu
from retrieval.choices import choice
from retrieval.contracts import Blocks, Hits, Json, Mask, Metric, Rows, Vectors
from retrieval.hits import Found, answer, checked_additions, prepared_blocks


class UncodedIndex(ABC):
    """An index of faiss that keeps the vectors as they are.

    index: its CPU form, which changes are made to and which is saved. gpu: a copy of it on a GPU,
    or None.
    """

    def __init__(self, index: Any, metric: Metric | str, on_gpu: gpu.Gpu | None) -> None:
        self.index = index
        self.metric = choice(Metric, metric)
        self.gpu = on_gpu

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.index.d)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def details(self) -> Mapping[str, Json]:
        """The device of the index, and the GPU memory that was planned for it."""
        return gpu.details(self.gpu)

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows; see `Index` and `Hits`."""
        return answer(self._nearest, queries, k, among, dim=self.dim, rows=len(self))

    @abstractmethod
    def stored(self) -> Blocks:
        """Return the vectors of all rows."""

    def add(self, vectors: Vectors) -> None:
        """Add rows; see `Growing`. Lists and centroids stay as they are."""
        vectors = checked_additions(vectors, self.dim, self.metric)
        if self.gpu is not None:
            self.gpu.check_room(len(vectors))
        for _, block in prepared_blocks(vectors, self.metric):
            self.index.add(block)
        self._copy_to_gpu()

    def delete(self, rows: Rows) -> None:
        """Delete rows; see `Shrinking`."""
        self._remove(rows)
        self._copy_to_gpu()

    def save(self, folder: Path) -> None:
        """Write index.faiss, for `faiss.read_index`; cosine's vectors are of length 1."""
        bridge.save(self.index, folder)

    @abstractmethod
    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        """Return the `count` nearest rows; see `retrieval.hits.Nearest`."""

    def _remove(self, rows: Rows) -> None:
        self.index.remove_ids(rows)

    def _copy_to_gpu(self) -> None:
        if self.gpu is not None:
            self.gpu = None  # free the old copy first: both may not fit
            self.gpu = gpu.Gpu(self.index, len(self))
