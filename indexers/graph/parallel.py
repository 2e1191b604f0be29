"""Run a search for many queries on all cores."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import ceil

from retrieval.runtime.threads import usable_cores

MIN_QUERIES_PER_CHUNK = 64
CHUNKS_PER_THREAD = 4  # more chunks let threads finish at about the same time


def spread(call: Callable[[slice], object], queries: int) -> None:
    """Call with slices of the queries, on all cores if there are many queries."""
    if queries <= MIN_QUERIES_PER_CHUNK:
        call(slice(0, queries))
        return
    cores = usable_cores()
    chunk_size = max(MIN_QUERIES_PER_CHUNK, ceil(queries / (CHUNKS_PER_THREAD * cores)))
    chunks = [slice(first, first + chunk_size) for first in range(0, queries, chunk_size)]
    threads = min(cores, len(chunks))
    if threads <= 1:
        call(slice(0, queries))
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, chunks))  # raises the error of a call
