"""Memory of this process."""

import ctypes
import sys
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

CACHE_LINE_BYTES = 64
LARGE_PAGE_BYTES = 1 << 21
MAX_COLLAPSED_BYTES = 1 << 29
"""The kernel moves larger arrays in the background: waiting for it would take seconds."""

_HUGEPAGE, _COLLAPSE = 14, 25  # of madvise(2)


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an uninitialized array that begins with a line of the processor's cache.

    A row of 64 bytes then lies in one line, and not in two.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)


def use_large_pages(array: NDArray[Any]) -> None:
    """Move an array's memory to pages of 2 MiB, where the kernel has them (Linux).

    Reads of random rows then seldom miss in the processor's table of pages.
    """
    library = _library()
    if not hasattr(library, "madvise") or not sys.platform.startswith("linux"):
        return
    first, last = array.ctypes.data, array.ctypes.data + array.nbytes
    start = -(-first // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES
    size = last // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES - start
    if size <= 0:
        return
    library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _HUGEPAGE)
    if size <= MAX_COLLAPSED_BYTES:  # an older kernel refuses
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _COLLAPSE)


def give_back() -> None:
    """Return free memory to the system: that of pyarrow, and of the C library if it can (glibc).

    Both keep it. Large arrays that were freed leave holes among smaller ones.
    """
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    library = _library()
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@cache
def _library() -> Any:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
