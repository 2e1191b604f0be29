"""Contracts of runtimes, which run exported networks, and of what rounds in them."""

from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from retrieval.contracts import Encoder, Images, Vectors


class Precision(StrEnum):
    """Permitted deviation of embeddings from those in float32, for faster arithmetic.

    docs/results.md measures each. `retrieval.embedding.runtimes.agreement` states the limits.
    """

    EXACT = "exact"  # rounding of float32 only
    BALANCED = "balanced"  # no loss of retrieval that matters
    FAST = "fast"  # integers of 8 bits where they hurt little


class Arithmetic(StrEnum):
    """Numbers that a network computes with."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


Run = Callable[[Images], Vectors]
"""Return the embeddings (n, dim) of images (n, side, side, 3). Threads may call it at once."""


@runtime_checkable
class Rounding(Encoder, Protocol):
    """An encoder that chooses the arithmetic of its own library."""

    @property
    def library(self) -> str:
        """Name and version of the library that runs the network."""

    @property
    def arithmetic(self) -> Arithmetic:
        """The numbers that most of its network computes with."""

    @property
    def gpu(self) -> str | None:
        """The name of the GPU that runs the network; None on a CPU."""

    def with_precision(self, precision: Precision) -> Self:
        """Return the same encoder, with the arithmetic that it has for this precision."""


@runtime_checkable
class Runtime(Protocol):
    """A library that runs exported networks on the CPU.

    It is a plug-in of the group `retr.runtimes`.
    """

    @property
    def version(self) -> str:
        """The version of the library."""

    def arithmetics(self) -> frozenset[Arithmetic]:
        """Return the arithmetics that this processor has instructions for."""

    def open(
        self, network: Path, arithmetic: Arithmetic, calls: int, wide: Collection[str] = ()
    ) -> Run:
        """Open a network that `Exportable.export` or `Calibrated.write` wrote.

        calls: number of threads that will call the result at once; each call runs on one core.
        wide: names of operators to compute in float32, for bfloat16.

        Raises BadData for a file that cannot be read.
        """


class Calibrated(Protocol):
    """An exported network with the ranges of the numbers inside it."""

    def write(self, wide: Collection[str], target: Path) -> None:
        """Write the network in integers of 8 bits to `target`; operators in `wide` keep float32."""


@runtime_checkable
class Quantizer(Protocol):
    """Rewrites exported networks to compute in integers of 8 bits.

    It is a plug-in of the group `retr.quantizers`.
    """

    def layers(self, network: Path) -> Sequence[tuple[str, ...]]:
        """Return the layers that it can quantize, first to last.

        Each is the names of the operators that share one set of weights.
        """

    def calibrated(self, network: Path, images: Images, folder: Path) -> Calibrated:
        """Measure the ranges of numbers on images (n, side, side, 3).

        folder: an existing folder for files that the result needs.
        """
