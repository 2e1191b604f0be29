"""Indices of faiss on the first GPU, and what it can do."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, cast

import faiss

from indexers import faiss_bridge
from retrieval.contracts import Json, Metric, Vectors
from retrieval.errors import BadInput
from retrieval.hits import Found

METRICS = frozenset({Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT})
LIMIT = 2048  # the greatest k and the greatest n_probe of faiss's GPU kernels
DEVICES = ("auto", "cpu", "cuda")
TEMPORARY_BYTES = 256 * 2**20
"""What faiss keeps on the GPU for the steps of a search; it takes more where that is too little."""


def check_device(device: str, metric: Metric) -> None:
    """Raise BadInput for a device that is none, or that lacks the metric."""
    if device not in DEVICES:
        raise BadInput(f"option device is '{device}'; give it one of {', '.join(DEVICES)}")
    if device == "cuda" and metric not in METRICS:
        raise BadInput(f"faiss has no {metric} distance on a GPU; set device=cpu")


def on_gpu(device: str, metric: Metric) -> bool:
    """Whether an index of this metric is to be on a GPU. Raises BadInput where it cannot be."""
    there_is_one = faiss.get_num_gpus() > 0
    if device == "cuda" and not there_is_one:
        raise BadInput("device is cuda, but faiss sees no GPU; set device=cpu")
    return there_is_one and device != "cpu" and metric in METRICS


class Gpu:
    """An index on the first GPU, for one thread at a time."""

    def __init__(self, index: Any, rows: int) -> None:
        """rows: how many it will have. Raises BadInput where it does not fit."""
        self.planned_bytes = planned_bytes(rows, index.d, hasattr(index, "nlist"))
        self.resources = faiss.StandardGpuResources()  # must outlive the index
        self.resources.setTempMemory(TEMPORARY_BYTES)
        self.lock = Lock()
        with self._fitting():
            self.index: Any = faiss.index_cpu_to_gpu(self.resources, 0, index)

    def to_cpu(self) -> Any:
        """The same index in the CPU's memory."""
        return cast(Any, faiss.index_gpu_to_cpu(self.index))

    def train(self, vectors: Vectors) -> None:
        """Find the centroids of lists. Raises BadInput where there is no room."""
        with self._fitting():
            self.index.train(vectors)

    def add(self, vectors: Vectors) -> None:
        """Add rows. Raises BadInput where there is no room."""
        with self._fitting():
            self.index.add(vectors)

    def search(self, queries: Vectors, count: int, n_probe: int | None = None) -> Found:
        """Rows and what faiss measured; n_probe: of the lists that are nearest to each query."""
        with self.lock:
            if n_probe is not None:
                self.index.nprobe = n_probe
            scores, rows = self.index.search(queries, count)
        return rows, scores

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as problem:
            raise BadInput(
                f"the index wants {self.planned_bytes / 1e6:,.0f} MB of the GPU "
                f"({faiss_bridge.reason(problem)}); set device=cpu"
            ) from None


def details(there: Gpu | None) -> dict[str, Json]:
    """What an index says of the device that it was made for."""
    if there is None:
        return {"device": "cpu"}
    return {"device": "cuda", "gpu_bytes": there.planned_bytes}


def planned_bytes(rows: int, dim: int, lists: bool) -> int:
    """What so many vectors take of a GPU's memory, with their ids in lists, and the searches."""
    return rows * (4 * dim + (8 if lists else 0)) + TEMPORARY_BYTES
