"""Race the ways to run a network on the first images of a source.

A way is a library and an arithmetic. Ways that break the promise of the precision are left out; in
bfloat16 and int8, the layers that rounding hurts stay in float32. The others take turns, so that a
slow phase of the machine affects all.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Images, Metric, Vectors
from retrieval.embedding.runtimes.agreement import MAX_NOISE, Deviation, deviation
from retrieval.embedding.runtimes.contract import (
    Arithmetic,
    Calibrated,
    Precision,
    Quantizer,
    Runtime,
)
from retrieval.embedding.runtimes.mixed import Layer, rounded_layers
from retrieval.embedding.runtimes.running import IMAGES_PER_CALL, Encode, Threaded
from retrieval.errors import BadData
from retrieval.runtime.threads import usable_cores

RACE_ROUNDS = 3
ROUND_SECONDS = 0.4  # of each way
SEARCH_IMAGES = 64
SEARCH_SECONDS = 15.0  # at most, for the layers that rounding hurts, see `rounded_layers`


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run the network. wide: operators in float32. network: the quantized network."""

    runtime: str
    arithmetic: Arithmetic
    encode: Encode
    wide: tuple[str, ...] = ()
    network: Path | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        resolve_choices(self)

    @property
    def title(self) -> str:
        """The name of the way in a report."""
        return f"{self.runtime} {self.arithmetic}"


class Ways:
    """The ways to run an exported network that keep the promise of a precision."""

    def __init__(
        self,
        network: Path,
        metric: Metric,
        dim: int,
        runtimes: Mapping[str, Runtime],
        quantizer: Quantizer,
        images: Images,
        folder: Path,
    ) -> None:
        """Compute the reference, in float32 by the first of the runtimes.

        images: int8 is calibrated on the first half, and all ways are compared on the second.
        folder: for quantized networks.
        """
        metric = choice(Metric, metric)
        middle = len(images) // 2
        self.network = network
        self.metric = metric
        self.dim = dim
        self.runtimes = runtimes
        self.quantizer = quantizer
        self.calibration = images[:middle] if middle else images
        self.images = images[middle:]
        self.folder = folder
        first = next(iter(runtimes.values()))
        self.reference: Vectors = self._opened(first, Arithmetic.FLOAT32)(self.images)

    def found(
        self, precision: Precision, with_int8: bool, seconds: float = SEARCH_SECONDS
    ) -> Iterator[Way]:
        """Yield the ways that keep the promise.

        seconds: for each search for the layers that rounding hurts.
        """
        precision = choice(Precision, precision)
        for name, runtime in self.runtimes.items():
            encode = self._opened(runtime, Arithmetic.FLOAT32)
            off = self.deviation_of(encode)
            if off.keeps(precision):
                yield Way(name, Arithmetic.FLOAT32, encode, noise=off.noise)
        if precision is Precision.EXACT:
            return
        for name, runtime in self.runtimes.items():
            if Arithmetic.BFLOAT16 in runtime.arithmetics():
                yield from self._in_bfloat16(name, runtime, precision, seconds)
        if with_int8:
            yield from self._in_int8(precision, seconds)

    def deviation_of(self, encode: Encode) -> Deviation:
        """Return the deviation from the reference."""
        return deviation(self.reference, encode(self.images), self.metric)

    def _in_bfloat16(
        self, name: str, runtime: Runtime, precision: Precision, seconds: float
    ) -> Iterator[Way]:
        def opened(rounded: Sequence[Layer]) -> Threaded:
            return self._opened(runtime, Arithmetic.BFLOAT16, wide=self._others(rounded))

        def noise_of(rounded: Sequence[Layer]) -> float:
            try:
                return self.deviation_of(opened(rounded)).noise
            except BadData:  # the runtime has no such mixture
                return math.inf

        chosen = rounded_layers(self._layers, noise_of, MAX_NOISE[precision], seconds)
        if chosen is not None:
            wide = tuple(self._others(chosen.layers))
            encode = opened(chosen.layers)
            yield Way(name, Arithmetic.BFLOAT16, encode, wide, noise=chosen.noise)

    def _in_int8(self, precision: Precision, seconds: float) -> Iterator[Way]:
        """Yield the ways in int8. The layers are chosen once: the arithmetic is the same in all."""
        able = {n: r for n, r in self.runtimes.items() if Arithmetic.INT8 in r.arithmetics()}
        if not able:
            return
        calibrated = self.quantizer.calibrated(self.network, self.calibration, self.folder)
        judge = next(iter(able.values()))
        tried = self.folder / "tried.onnx"

        def noise_of(rounded: Sequence[Layer]) -> float:
            self._write(calibrated, rounded, tried)
            encode = self._opened(judge, Arithmetic.INT8, tried)
            few = self.reference[:SEARCH_IMAGES], encode(self.images[:SEARCH_IMAGES])
            return deviation(*few, self.metric).noise

        chosen = rounded_layers(self._layers, noise_of, MAX_NOISE[precision], seconds)
        if chosen is None:
            return
        network = self.folder / "int8.onnx"
        self._write(calibrated, chosen.layers, network)
        wide = tuple(self._others(chosen.layers))
        for name, runtime in able.items():
            encode = self._opened(runtime, Arithmetic.INT8, network)
            off = self.deviation_of(encode)
            if off.keeps(precision):
                yield Way(name, Arithmetic.INT8, encode, wide, network, off.noise)

    def _write(self, calibrated: Calibrated, rounded: Sequence[Layer], target: Path) -> None:
        calibrated.write(self._others(rounded), target)

    @cached_property
    def _layers(self) -> Sequence[Layer]:
        return self.quantizer.layers(self.network)

    def _others(self, rounded: Sequence[Layer]) -> list[str]:
        """Return the operators of the layers that are not rounded."""
        names = {name for layer in rounded for name in layer}
        return [name for layer in self._layers for name in layer if name not in names]

    def _opened(
        self,
        runtime: Runtime,
        arithmetic: Arithmetic,
        network: Path | None = None,
        wide: Sequence[str] = (),
    ) -> Threaded:
        run = runtime.open(network or self.network, arithmetic, usable_cores(), wide)
        return Threaded(run, self.dim)


def raced(ways: Collection[Way], images: Images) -> dict[str, float]:
    """Return the images per second of each way, by its title: medians of RACE_ROUNDS turns."""
    rates: dict[str, list[float]] = {way.title: [] for way in ways}
    for _ in range(RACE_ROUNDS):
        for way in ways:
            rates[way.title].append(rate_of(way.encode, images))
    return {title: median(found) for title, found in rates.items()}


def rate_of(encode: Encode, images: Images, seconds: float = ROUND_SECONDS) -> float:
    """Return images per second, over at least this time."""
    step = IMAGES_PER_CALL * usable_cores()
    done = 0
    started = time.perf_counter()
    while True:
        start = done % len(images)
        part = images[start : start + step]
        encode(part)
        done += len(part)
        taken = time.perf_counter() - started
        if taken >= seconds:
            return done / taken
