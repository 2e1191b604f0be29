"""Decisions of races, kept beside the exported network in the user's cache.

A decision holds for one encoder, precision, processor, number of cores and set of libraries.
docs/formats.md writes the file out.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from retrieval.choices import choice, resolve_choices
from retrieval.embedding.runtimes.contract import Arithmetic, Precision
from retrieval.errors import BadData
from retrieval.runtime.processor import processor
from retrieval.runtime.threads import usable_cores
from retrieval.storage.document import read_document
from retrieval.storage.files import write_sealed

FORMAT = "retr-runtime"
VERSION = 2  # a version 1 has no checksum, see `read_sealed`
TORCH = "torch"  # the encoder's own library


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts that the speed of a network depends on. versions: of each runtime."""

    processor: str
    cores: int
    versions: Mapping[str, str]

    @classmethod
    def here(cls, versions: Mapping[str, str]) -> Self:
        """Return the facts about this machine."""
        return cls(processor(), usable_cores(), dict(versions))


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a race.

    wide: layers that stay in float32. network: the file of the quantized network, and its sha256;
    none unless the arithmetic is int8. images: hash of the images that it was calibrated on.
    noise: see `Deviation`. tried_int8: whether int8 was in the race. rates: images per second of
    each way in the race; none without a race.
    """

    precision: Precision
    runtime: str
    arithmetic: Arithmetic
    machine: Machine
    wide: tuple[str, ...] = ()
    network: str | None = None
    network_sha256: str | None = None
    images: str | None = None
    noise: float = 0.0
    tried_int8: bool = False
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        resolve_choices(self)

    def write(self, folder: Path, runtime: str) -> None:
        """Write the decision into the folder of the exported network.

        runtime: the one that was asked for, or `auto`.
        """
        write_sealed(_file(folder, self.precision, runtime), FORMAT, VERSION, asdict(self))

    @classmethod
    def read(
        cls, folder: Path, precision: Precision | str, runtime: str, machine: Machine
    ) -> Self | None:
        """Return the decision for this machine; None if there is none, or it is damaged."""
        precision = choice(Precision, precision)
        file = _file(folder, precision, runtime)
        if not file.is_file():
            return None
        try:
            found = read_document(file, cls, FORMAT, VERSION, "delete it")
        except BadData:
            return None
        return found if found.machine == machine and found.precision is precision else None


def _file(folder: Path, precision: Precision, runtime: str) -> Path:
    return folder / f"runtime-{precision}-{runtime}.json"
