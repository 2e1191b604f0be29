"""Indices of faiss on the first GPU, and what it can do."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, cast

import faiss

from indexers.faiss import bridge
from retrieval.choices import choice
from retrieval.contracts import Json, Metric, Vectors
from retrieval.errors import BadInput
from retrieval.hits import Found

METRICS = frozenset({Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT})
LIMIT = 2048  # the greatest k and the greatest n_probe of faiss's GPU kernels
DEVICES = ("auto", "cpu", "cuda")
GROUP = 32  # vectors of a list that lie interleaved
TEMPORARY_BYTES = 256 * 2**20
"""What faiss keeps on the GPU for the steps of a search; it takes more where that is too little."""


def check_device(device: str, metric: Metric | str) -> None:
    """Raise BadInput for a device that is none, or that lacks the metric."""
    metric = choice(Metric, metric)
    if device not in DEVICES:
        raise BadInput(f"option device is '{device}'; give it one of {', '.join(DEVICES)}")
    if device == "cuda" and metric not in METRICS:
        raise BadInput(f"faiss has no {metric} distance on a GPU; set device=cpu")


def on_gpu(device: str, metric: Metric | str) -> bool:
    """Whether an index of this metric is to be on a GPU. Raises BadInput where it cannot be."""
    metric = choice(Metric, metric)
    there_is_one = faiss.get_num_gpus() > 0
    if device == "cuda" and not there_is_one:
        raise BadInput("device is cuda, but faiss sees no GPU; set device=cpu")
    return there_is_one and device != "cpu" and metric in METRICS


class Gpu:
    """An index on the first GPU, for one thread at a time."""

    def __init__(self, index: Any, rows: int) -> None:
        """rows: how many it will have. Raises BadInput where they do not fit."""
        self.planned_bytes = planned_bytes(rows, index.d, getattr(index, "nlist", 0))
        free = free_bytes()
        if free is not None and self.planned_bytes > free:
            raise self._too_large(f"{free / 1e6:,.0f} MB are free")
        self.resources = faiss.StandardGpuResources()  # must outlive the index
        self.resources.setTempMemory(TEMPORARY_BYTES)
        self.lock = Lock()
        with self.fitting():
            self.index: Any = faiss.index_cpu_to_gpu(self.resources, 0, index)

    def check_room(self, rows: int) -> None:
        """Raise BadInput where so many further rows would not fit, in the place of these."""
        free = free_bytes()
        vector = 4 * self.index.d + (8 if hasattr(self.index, "nlist") else 0)
        if free is not None and rows * vector > free:
            raise BadInput(
                f"{rows:,} further rows want {rows * vector / 1e6:,.0f} MB of the GPU "
                f"({free / 1e6:,.0f} MB are free); set device=cpu"
            )

    def to_cpu(self) -> Any:
        """The same index in the CPU's memory."""
        return cast(Any, faiss.index_gpu_to_cpu(self.index))

    def search(self, queries: Vectors, count: int, n_probe: int | None = None) -> Found:
        """Rows and what faiss measured; n_probe: of the lists that are nearest to each query."""
        with self.lock:
            if n_probe is not None:
                self.index.nprobe = n_probe
            scores, rows = self.index.search(queries, count)
        return rows, scores

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Raise BadInput in place of faiss's error, where there is no room for a step."""
        try:
            yield
        except RuntimeError as problem:
            raise self._too_large(bridge.reason(problem)) from None

    def _too_large(self, why: str) -> BadInput:
        wanted = f"{self.planned_bytes / 1e6:,.0f} MB"
        return BadInput(f"the index wants {wanted} of the GPU ({why}); set device=cpu")


def details(there: Gpu | None) -> dict[str, Json]:
    """What an index says of the device that it was made for."""
    if there is None:
        return {"device": "cpu"}
    return {"device": "cuda", "gpu_bytes": there.planned_bytes}


def planned_bytes(rows: int, dim: int, lists: int = 0) -> int:
    """What so many vectors take of a GPU's memory, and the searches.

    With lists, each has the ids, a centroid, and vectors in groups of 32, the last filled up.
    """
    vector = 4 * dim
    filled_up = lists * (GROUP // 2 + 1) * vector
    return rows * (vector + (8 if lists else 0)) + filled_up + TEMPORARY_BYTES


def free_bytes() -> int | None:
    """What is free of the first GPU's memory; None where CUDA's runtime does not say."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        told = ctypes.CDLL(None).cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    except (AttributeError, OSError, TypeError):  # faiss came without it; Windows has no CDLL(None)
        return None
    return None if told else free.value
