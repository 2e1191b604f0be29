"""Choose the library and the arithmetic that run an encoder's network on a source of images."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Encoder, Exportable, Images
from retrieval.embedding.decoder import Decoder, closed
from retrieval.embedding.onnx_cache import NETWORK, checked, export_folder, keep_export
from retrieval.embedding.runtimes.contract import Arithmetic, Precision, Rounding, Runtime
from retrieval.embedding.runtimes.decision import TORCH, Decision, Machine
from retrieval.embedding.runtimes.race import SEARCH_SECONDS, Way, Ways, raced, rate_of
from retrieval.embedding.runtimes.running import Encode, Running, Threaded
from retrieval.errors import BadData, BadInput, Busy, Mismatch, RetrError, UnknownName
from retrieval.images import FAST_RESIZE_IMAGES, Source
from retrieval.images.source import Note, no_note
from retrieval.registry import open_encoder, open_quantizer, open_runtime, runtime_names
from retrieval.runtime.processor import processor
from retrieval.runtime.threads import usable_cores
from retrieval.storage.files import locked, moved, sha256_of
from retrieval.storage.sets.made_by import MadeBy

AUTO = "auto"
RACE_IMAGES = 2_000
"""Number of images from which a race pays: it takes some seconds."""

COMPILING = {"openvino"}
COMPILED_IMAGES = 200
"""Without a race: number of images from which a runtime that compiles networks is taken. That takes
a second, and the network is faster then."""

SAMPLE_IMAGES = 256
"""First images of a source, on which the ways are compared and int8 is calibrated."""

MIN_SAMPLE_IMAGES = 64
SAMPLE_SECONDS = 6  # for one pass over the sample: fewer images for a slow network

INT8_SECONDS = 30
"""Time that encoding takes in float32, from which the search for layers that permit int8 pays."""

SEARCH_SHARE = 0.1  # a search for layers takes this share of the time of encoding in float32
MIN_SEARCH_SECONDS = 2.0

NO_CALIBRATION = (
    "precision fast is calibrated by one process; give --precision balanced, or encode with "
    "--engine local"
)


@dataclass(frozen=True, slots=True)
class RunBy:
    """The runtime and the precision that a user asks for.

    precision: see `retrieval.embedding.runtimes.agreement`. runtime: torch, onnx, openvino or
    another plug-in; auto for the fastest, found by a race if there are RACE_IMAGES or more, and
    remembered. note: is called with a sentence about the outcome of a race. races: False for one of
    several processes on this machine, whose races would disturb each other; auto is then torch.

    Raises UnknownName for a precision or runtime that is not there.
    """

    precision: Precision = Precision.BALANCED
    runtime: str = AUTO
    note: Note = no_note
    races: bool = True

    def __post_init__(self) -> None:
        resolve_choices(self)
        if self.runtime not in (known := [AUTO, TORCH, *runtime_names()]):
            raise UnknownName("runtime", self.runtime, known)

    def check(self, encoder: Encoder) -> None:
        """Raise BadInput for a runtime that is not installed or cannot run the encoder."""
        if self.runtime in (AUTO, TORCH):
            return
        known = _network_of(encoder).is_file()
        if _is_on_gpu(encoder) or not (known or isinstance(encoder, Exportable)):
            problem = "runs on a GPU" if _is_on_gpu(encoder) else "cannot be exported"
            raise BadInput(f"encoder {encoder.name} {problem}; give --runtime auto or torch")
        open_runtime(self.runtime)

    def runner(self, encoder: Encoder, source: Source, images: int | None = None) -> Encoder:
        """Return the encoder, run in the fastest way on this machine that keeps the promise.

        images: number of images to encode; None for all of the source.

        Raises BadInput for a runtime that cannot run the encoder, and for `fast` without a race.
        """
        self.check(encoder)
        on_gpu = _is_on_gpu(encoder)
        by_itself = self.runtime == TORCH or (self.runtime == AUTO and not self.races)
        folder = None if by_itself or on_gpu else _exported(encoder, self.runtime)
        if folder is None:
            if self.precision is Precision.FAST and by_itself and self.runtime == AUTO:
                raise BadInput(NO_CALIBRATION)
            return _own(_with_torch(encoder), self.precision)
        images = len(source) if images is None else images
        return _Choice(encoder, source, images, self, folder).made()


def runner_for(
    encoder: Encoder,
    source: Source,
    precision: Precision | str = Precision.BALANCED,
    runtime: str = AUTO,
) -> Encoder:
    """Return the encoder, run in the fastest way for this source, see `RunBy`."""
    return RunBy(choice(Precision, precision), runtime).runner(encoder, source)


def _is_on_gpu(encoder: Encoder) -> bool:
    return isinstance(encoder, Rounding) and encoder.gpu is not None


def _exported(encoder: Encoder, runtime: str) -> Path | None:
    """Return the folder with the encoder's exported network; None if it has none.

    Raises BadInput if this runtime was asked for, and the network cannot be exported.
    """
    folder = export_folder(encoder.fingerprint)
    if isinstance(encoder, Exportable):
        try:
            keep_export(encoder)
        except (RetrError, OSError) as error:
            if runtime != AUTO:
                raise BadInput(f"{error}; give --runtime torch") from error
            return None
    return folder if _network_of(encoder).is_file() else None


def _with_torch(encoder: Encoder) -> Encoder:
    """Return the encoder in its own library, if it is an exported network.

    Raises Mismatch if its name stands for another encoder now.
    """
    is_export = not isinstance(encoder, Exportable) and _network_of(encoder).is_file()
    if not is_export:
        return encoder
    found = open_encoder(encoder.name, "cpu")
    if found.fingerprint != encoder.fingerprint:
        raise Mismatch(
            f"encoder {found.name} has changed since its network was exported; encode again"
        )
    return found


def _network_of(encoder: Encoder) -> Path:
    """Return the file of the encoder's exported network; it may not exist."""
    return export_folder(encoder.fingerprint) / NETWORK


def _own(encoder: Encoder, precision: Precision) -> Encoder:
    """Return the encoder, run by its own library."""
    if not isinstance(encoder, Rounding):
        return encoder
    rounding = encoder.with_precision(precision)
    where = rounding.gpu or processor()
    facts = MadeBy(rounding.library, rounding.arithmetic, precision, where)
    return Running(encoder, rounding.encode, facts)


class _Choice:
    """The choice for one encoder with an exported network, and one source."""

    def __init__(
        self, encoder: Encoder, source: Source, images: int, asked: RunBy, folder: Path
    ) -> None:
        """images: number of images to encode."""
        self.encoder = encoder
        self.source = source
        self.images = images
        self.asked = asked
        self.precision = asked.precision
        self.runtime = asked.runtime
        self.folder = folder
        self.runtimes = _opened(asked.runtime)
        self.machine = Machine.here({name: each.version for name, each in self.runtimes.items()})

    def made(self) -> Encoder:
        """Return the encoder, run in the way chosen."""
        known = Decision.read(self.folder, self.precision, self.runtime, self.machine)
        if known is not None and not self._is_outgrown(known):
            found = self._remembered(known)
            if found is not None:
                return found
        if self.precision is Precision.FAST and not self.asked.races:
            raise BadInput(NO_CALIBRATION)
        small = self.images < RACE_IMAGES and self.precision is not Precision.FAST
        if small or not self.asked.races:
            return self._without_race()
        return self._by_race()

    def _is_outgrown(self, decision: Decision) -> bool:
        """Return whether a race pays now: there was none, or one without int8."""
        if not decision.rates:
            return self.images >= RACE_IMAGES and self.asked.races
        if decision.tried_int8 or self.precision is not Precision.BALANCED:
            return False
        return self.images / max(decision.rates.values()) >= INT8_SECONDS

    def _remembered(self, decision: Decision) -> Encoder | None:
        """Return the encoder, run as it was decided; None if that is no longer possible."""
        if decision.runtime == TORCH:
            return _own(_with_torch(self.encoder), self.precision)
        file = self.folder / NETWORK
        if decision.network is not None:
            assert decision.network_sha256 is not None
            if decision.images != _hash(self._sample()):
                return None
            file = self.folder / decision.network
        try:
            if decision.network_sha256 is not None:
                checked(file, decision.network_sha256)
            return self._running(decision.runtime, decision.arithmetic, file, decision.wide)
        except (BadData, KeyError):
            return None

    def _without_race(self) -> Encoder:
        """Return the encoder, run in float32, or by its own library where that rounds."""
        if self.runtime == AUTO and isinstance(self.encoder, Rounding):
            own = self.encoder.with_precision(self.precision)
            if own.arithmetic is not Arithmetic.FLOAT32:
                # A run that continues this one starts without torch, and must choose the same.
                Decision(self.precision, TORCH, own.arithmetic, self.machine).write(
                    self.folder, self.runtime
                )
                return _own(self.encoder, self.precision)
        few = len(self.source) < COMPILED_IMAGES
        names = sorted(self.runtimes, key=lambda name: (name in COMPILING) == few)
        return self._running(names[0], Arithmetic.FLOAT32, self.folder / NETWORK, ())

    def _running(
        self, name: str, arithmetic: Arithmetic, file: Path, wide: tuple[str, ...]
    ) -> Encoder:
        run = self.runtimes[name].open(file, arithmetic, usable_cores(), wide)
        return self._with_facts(name, arithmetic, Threaded(run, self.encoder.dim))

    def _with_facts(self, name: str, arithmetic: Arithmetic, encode: Encode) -> Encoder:
        library = f"{name} {self.machine.versions[name]}"
        return Running(
            self.encoder, encode, MadeBy(library, arithmetic, self.precision, processor())
        )

    def _sample(self) -> Images:
        """Return the first images of the source that can be read."""
        many = len(self.source) >= FAST_RESIZE_IMAGES
        with (
            Decoder(self.encoder.framing, many=many) as decoder,
            closed(islice(self.source.items(), SAMPLE_IMAGES)) as items,
        ):
            return np.concatenate([batch.images for batch in decoder.batches(items)])

    def _by_race(self) -> Encoder:
        """Return the encoder, run in the fastest way, and remember the way."""
        images = self._sample()
        if not len(images):
            return self._without_race()
        self.asked.note(
            f"comparing runtimes for {self.encoder.name} on {len(images)} images; this takes some "
            "seconds, and the outcome is remembered"
        )
        try:
            with locked(self.folder), TemporaryDirectory(dir=self.folder) as place:
                rate = self._rate(images)
                tries_int8 = self._tries_int8(rate)
                tried_on = images[: max(MIN_SAMPLE_IMAGES, int(rate * SAMPLE_SECONDS))]
                ways = self._ways(tried_on, Path(place), tries_int8, self._search_seconds(rate))
                rates = raced(ways, tried_on)
                best = max(ways, key=lambda way: rates[way.title])
                self._remember(best, rates, images, tries_int8)
        except Busy:  # another process races now
            return self._without_race()
        self.asked.note(_sentence(best, rates))
        if best.runtime == TORCH:
            return _own(_with_torch(self.encoder), self.precision)
        return self._with_facts(best.runtime, best.arithmetic, best.encode)

    def _ways(
        self, images: Images, place: Path, tries_int8: bool, search_seconds: float
    ) -> list[Way]:
        """Return the ways that keep the promise. Raises BadInput if none does."""
        ways = Ways(
            self.folder / NETWORK,
            self.encoder.metric,
            self.encoder.dim,
            self.runtimes,
            open_quantizer(),
            images,
            place,
        )
        found = [*ways.found(self.precision, tries_int8, search_seconds)]
        if self.runtime == AUTO:
            own = _own(_with_torch(self.encoder), self.precision)
            off = ways.deviation_of(own.encode)
            if off.keeps(self.precision) and isinstance(own, Running):
                found.append(Way(TORCH, own.made_by.arithmetic, own.encode, noise=off.noise))
        if not found:
            raise BadInput(
                f"runtime {self.runtime} gives other embeddings of {self.encoder.name} than "
                "float32; give --runtime torch"
            )
        return found

    def _rate(self, images: Images) -> float:
        """Return the images per second of the first runtime in float32."""
        name = next(iter(self.runtimes))
        run = self.runtimes[name].open(self.folder / NETWORK, Arithmetic.FLOAT32, usable_cores())
        return rate_of(Threaded(run, self.encoder.dim), images)

    def _tries_int8(self, rate: float) -> bool:
        """Return whether to search for layers that permit int8: if the source is large enough."""
        if self.precision is not Precision.BALANCED:
            return self.precision is Precision.FAST
        return self.images / rate >= INT8_SECONDS

    def _search_seconds(self, rate: float) -> float:
        """Return how long to search for the layers that rounding hurts."""
        if self.precision is Precision.FAST:
            return SEARCH_SECONDS
        gained = self.images / rate * SEARCH_SHARE
        return min(max(gained, MIN_SEARCH_SECONDS), SEARCH_SECONDS)

    def _remember(
        self, best: Way, rates: Mapping[str, float], images: Images, tried_int8: bool
    ) -> None:
        """Write the decision, and keep the quantized network."""
        name = sha256 = calibrated_on = None
        if best.network is not None:
            name = f"network-{best.arithmetic}.onnx"
            sha256, calibrated_on = sha256_of(best.network), _hash(images)
            moved(best.network, self.folder / name)
        Decision(
            self.precision,
            best.runtime,
            best.arithmetic,
            self.machine,
            best.wide,
            name,
            sha256,
            calibrated_on,
            best.noise,
            tried_int8,
            rates,
        ).write(self.folder, self.runtime)


def _opened(runtime: str) -> dict[str, Runtime]:
    """Return the runtime that was asked for, or all that are installed, by name.

    Raises BadInput if the one that was asked for is not installed.
    """
    found = {}
    for name in runtime_names() if runtime == AUTO else [runtime]:
        try:
            found[name] = open_runtime(name)
        except BadInput:
            if runtime != AUTO:
                raise
    return found


def _hash(images: Images) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def _sentence(best: Way, rates: Mapping[str, float]) -> str:
    others = [f"{title} {rate:,.0f}" for title, rate in rates.items() if title != best.title]
    beside = f" ({', '.join(others)})" if others else ""
    layers = f", {len(best.wide)} operators in float32" if best.wide else ""
    return f"runtime {best.title}{layers}: {rates[best.title]:,.0f} images/s{beside}"
