"""Numbers of cores and threads."""

import os

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def available_cores() -> int:
    """Return the number of cores that the system lets this process use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cores() -> int:
    """Return the number of cores to use: those available, or fewer by OMP_NUM_THREADS.

    torch, faiss and the libraries of linear algebra obey this variable. So do retr's own threads,
    and those of hnswlib, SVS and ONNX Runtime.
    """
    limit, cores = thread_limit(), available_cores()
    return min(limit, cores) if limit else cores


def thread_limit() -> int | None:
    """Return the limit that OMP_NUM_THREADS sets; None for no limit."""
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(limit) if limit.isdecimal() and int(limit) else None


def limit_threads(count: int) -> None:
    """Limit the threads of child processes, and of libraries that are not loaded yet."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
