"""Indices of faiss on the first GPU, and the limits of a GPU."""

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
MAX_K_OR_PROBES = 2048  # k and n_probe in faiss's GPU kernels
DEVICES = ("auto", "cpu", "cuda")
GROUP_VECTORS = 32  # vectors of a list are stored interleaved, in groups
TEMPORARY_BYTES = 256 * 2**20
"""GPU memory that faiss reserves for the steps of a search; it allocates more if needed."""


def check_device(device: str, metric: Metric | str) -> None:
    """Raise BadInput for an unknown device, or a GPU with a metric that faiss lacks there."""
    metric = choice(Metric, metric)
    if device not in DEVICES:
        raise BadInput(f"option device is '{device}'; give it one of {', '.join(DEVICES)}")
    if device == "cuda" and metric not in METRICS:
        raise BadInput(f"faiss has no {metric} distance on a GPU; set device=cpu")


def on_gpu(device: str, metric: Metric | str) -> bool:
    """Return whether an index of this metric goes to a GPU. Raises BadInput if it cannot."""
    metric = choice(Metric, metric)
    there_is_one = faiss.get_num_gpus() > 0
    if device == "cuda" and not there_is_one:
        raise BadInput("device is cuda, but faiss sees no GPU; set device=cpu")
    return there_is_one and device != "cpu" and metric in METRICS


class Gpu:
    """An index on the first GPU, for one thread at a time."""

    def __init__(self, index: Any, rows: int) -> None:
        """Copy the index to the GPU. rows: final number. Raises BadInput if they do not fit."""
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
        """Raise BadInput if this number of additional rows does not fit."""
        free = free_bytes()
        vector = 4 * self.index.d + (8 if hasattr(self.index, "nlist") else 0)
        if free is not None and rows * vector > free:
            raise BadInput(
                f"{rows:,} additional rows need {rows * vector / 1e6:,.0f} MB of the GPU "
                f"({free / 1e6:,.0f} MB are free); set device=cpu"
            )

    def to_cpu(self) -> Any:
        """Return a copy of the index in CPU memory."""
        return cast(Any, faiss.index_gpu_to_cpu(self.index))

    def search(self, queries: Vectors, count: int, n_probe: int | None = None) -> Found:
        """Return rows and faiss's scores. n_probe: lists to search."""
        with self.lock:
            if n_probe is not None:
                self.index.nprobe = n_probe
            scores, rows = self.index.search(queries, count)
        return rows, scores

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Raise BadInput in place of faiss's error if the GPU runs out of memory."""
        try:
            yield
        except RuntimeError as problem:
            raise self._too_large(bridge.reason(problem)) from None

    def _too_large(self, why: str) -> BadInput:
        wanted = f"{self.planned_bytes / 1e6:,.0f} MB"
        return BadInput(f"the index needs {wanted} of the GPU ({why}); set device=cpu")


def details(there: Gpu | None) -> dict[str, Json]:
    """Return the details of an index about its device."""
    if there is None:
        return {"device": "cpu"}
    return {"device": "cuda", "gpu_bytes": there.planned_bytes}


def planned_bytes(rows: int, dim: int, lists: int = 0) -> int:
    """Return the GPU memory for this number of vectors, and for searches.

    A list has ids, a centroid, and vectors in groups of 32; the last group is padded.
    """
    vector = 4 * dim
    filled_up = lists * (GROUP_VECTORS // 2 + 1) * vector
    return rows * (vector + (8 if lists else 0)) + filled_up + TEMPORARY_BYTES


def free_bytes() -> int | None:
    """Return the free memory of the first GPU; None if CUDA's runtime is not available."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        told = ctypes.CDLL(None).cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    except (AttributeError, OSError, TypeError):  # faiss without CUDA; Windows has no CDLL(None)
        return None
    return None if told else free.value
