"""Arrays in whole cache lines and in large pages."""

import mmap
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.runtime.memory import CACHE_LINE_BYTES, aligned_empty, use_large_pages


@pytest.mark.parametrize("shape", [(1,), (3, 7), (1000, 64), (0, 4)])
@pytest.mark.parametrize("kind", [np.int8, np.int32, np.float64])
def test_arrays_begin_with_a_cache_line(shape: tuple[int, ...], kind: type[np.generic]) -> None:
    array = aligned_empty(shape, kind)
    assert array.shape == shape and array.dtype == kind and array.flags.c_contiguous
    assert array.ctypes.data % CACHE_LINE_BYTES == 0 or array.size == 0
    array[:] = 1
    assert array.sum() == array.size


@pytest.mark.parametrize("numbers", [10, 5_000_000])
def test_large_pages_keep_the_numbers(numbers: int) -> None:
    array = np.arange(numbers, dtype=np.float32)
    use_large_pages(array)
    np.testing.assert_array_equal(array, np.arange(numbers, dtype=np.float32))


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file(),
    reason="this kernel has no large pages",
)
def test_large_pages_are_asked_for() -> None:
    memory = mmap.mmap(-1, 8 << 20)
    array = np.frombuffer(memory, np.uint8)
    assert not has_large_pages(array)
    use_large_pages(array)
    assert has_large_pages(array)


def has_large_pages(array: NDArray[np.uint8]) -> bool:
    """Return whether the kernel was asked for them at the middle of the array."""
    middle, inside = array.ctypes.data + array.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= middle < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("the array is in no mapping")
