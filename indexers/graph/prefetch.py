"""Prefetch rows of a matrix, in functions that numba compiles.

Numba's cache of `indexers.graph.walk` does not notice a change of this file: delete `__pycache__`.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from indexers.graph.distances import INLINE
from retrieval.runtime.memory import CACHE_LINE_BYTES


def _prefetching(context: Any, array: Any, index: Any) -> Any:
    """Generate code that fetches the cache line of a number of the flat array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(values.data, [arguments[1]])
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, word, word, word])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # Arguments of llvm.prefetch: read, highest locality, data cache.
        builder.call(call, [place, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


_prefetch: Any = intrinsic(_prefetching)


@njit(inline=INLINE, boundscheck=False)
def prefetch_row(values: Any, row: int) -> None:
    """Fetch a row of the matrix into the processor's cache."""
    width, step = values.shape[1], CACHE_LINE_BYTES // values.itemsize
    start = row * width
    # Most rows have one or two lines. A loop over these would take longer than the distance.
    _prefetch(values, start)
    _prefetch(values, start + width - 1)
    for column in range(step, width - step, step):
        _prefetch(values, start + column)
