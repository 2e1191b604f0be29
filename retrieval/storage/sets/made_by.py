"""The library, arithmetic and processor that computed embeddings."""

from dataclasses import dataclass

from retrieval.choices import resolve_choices
from retrieval.embedding.runtimes.contract import Arithmetic, Precision


@dataclass(frozen=True, slots=True)
class MadeBy:
    """Facts about a computation. Embeddings of one encoder may be mixed whatever made them.

    runtime: library and version. precision: what was asked for. arithmetic: what was used.
    """

    runtime: str
    arithmetic: Arithmetic
    precision: Precision
    processor: str

    def __post_init__(self) -> None:
        resolve_choices(self)

    def __str__(self) -> str:
        """Return the facts in one line: `openvino 2026.4.1 in float32 (balanced) on AMD EPYC`."""
        return f"{self.runtime} in {self.arithmetic} ({self.precision}) on {self.processor}"
