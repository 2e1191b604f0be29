"""Functions that numba compiles for this processor, and caches.

Numba takes a second to import: what is compiled lies in modules that are imported when needed.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import binding
from numba import njit
from numba.core import event

Function = TypeVar("Function", bound=Callable[..., Any])


# LLVM else chooses the width of a loop by its largest type: sums of 32 bits. By the smallest type,
# codes of 8 and 16 bits fill whole registers.
binding.set_option("retr", "-vectorizer-maximize-bandwidth")

_COMPILING = event.TimingListener()
event.register("numba:compile", _COMPILING)


def compile_seconds() -> float:
    """Return the seconds that this process has spent compiling; taking from a cache is free."""
    return float(_COMPILING.duration) if _COMPILING.done else 0.0


def compiled(signature: str | None = None, **options: Any) -> Callable[[Function], Function]:
    """Compile the decorated function for these types, or take it from numba's cache.

    Without a signature, it is compiled at its first call with each combination of types. It runs
    without the GIL and without bounds checks. options: options of `numba.njit`.
    """

    def made(function: Function) -> Function:
        fast: dict[str, Any] = {"nogil": True, "boundscheck": False, **options}
        try:
            done: Any = njit(signature, cache=True, **fast)(function)
        except RuntimeError:  # no folder that a cache can be written to: each process for itself
            done = njit(signature, **fast)(function)
        return cast(Function, done)

    return made
