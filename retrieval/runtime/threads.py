"""How many cores there are to share work among."""

import os

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def available_cores() -> int:
    """How many cores the system lets this process use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cores() -> int:
    """How many cores this process is to use: those available, or fewer by OMP_NUM_THREADS.

    torch, faiss and the libraries of linear algebra begin as many threads as that variable says,
    so retr's own threads, and those of hnswlib, svs and ONNX Runtime, do as well.
    """
    limit, cores = thread_limit(), available_cores()
    return min(limit, cores) if limit else cores


def thread_limit() -> int | None:
    """How many threads OMP_NUM_THREADS allows, also where there are fewer cores; None: any."""
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(limit) if limit.isdecimal() and int(limit) else None


def limit_threads(count: int) -> None:
    """So many threads, for this process's libraries that aren't loaded yet and its children's."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
