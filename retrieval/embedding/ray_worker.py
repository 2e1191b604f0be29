"""Make shards on a worker of a Ray cluster."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Self
from uuid import uuid4

from retrieval.choices import resolve_choices
from retrieval.contracts import Encoder, Json
from retrieval.embedding.decoder import Decoder
from retrieval.embedding.early_shards import OUTCOME, appears
from retrieval.embedding.encode import EncodedShard, ShardEncoder, check_root, facts_of
from retrieval.embedding.onnx_cache import EXPORT
from retrieval.embedding.plan import Copier, Plan
from retrieval.embedding.runtimes.choice import AUTO, RunBy
from retrieval.embedding.runtimes.contract import Precision
from retrieval.errors import Mismatch, WorkerFailed
from retrieval.images import FAST_RESIZE_IMAGES, Item, Source, open_source
from retrieval.images.datasets.catalog import DATA_DIR_VARIABLE
from retrieval.images.folders.listing import listed
from retrieval.images.opening import absolute_source
from retrieval.images.pixels.megapixels import DEFAULT_MEGAPIXELS, limit_megapixels
from retrieval.images.tables.choice import NO_CHOICE, Columns
from retrieval.registry import encoder_names, open_encoder
from retrieval.runtime.threads import limit_threads
from retrieval.storage.cards import is_trained
from retrieval.storage.files import (
    write_json,
)
from retrieval.storage.places import Place
from retrieval.storage.sets.shards import shard_name

ATTEMPT_MARKER = "begun"


@dataclass(frozen=True, slots=True)
class Names:
    """Names of a source and an encoder, as `open_source` and `open_encoder` take them.

    runtime, precision: as for `RunBy`; no race is held on a cluster.
    """

    source: str
    encoder: str
    split: str | None = None
    data_dir: Path | None = None
    limit: int | None = None
    device: str = "auto"
    columns: Columns = NO_CHOICE
    runtime: str = AUTO
    precision: Precision = Precision.BALANCED

    def __post_init__(self) -> None:
        resolve_choices(self)

    def absolute(self) -> Self:
        """Return the names, as they may be given to a process in another folder, with other
        variables.
        """
        data_dir = self.data_dir or os.environ.get(DATA_DIR_VARIABLE)
        return replace(
            self,
            source=absolute_source(self.source),
            encoder=_absolute_encoder(self.encoder),
            data_dir=Path(data_dir).expanduser().absolute() if data_dir else None,
        )


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Instructions for a worker."""

    names: Names
    plan: Plan
    first: str | None  # the path of the first image
    folder: Place  # of early shards
    run: Place  # a file in it
    threads: int
    attempts: int
    version: str  # of retr
    source: Source | None = None  # the driver's listing; None: the worker opens it by name
    megapixels: int = DEFAULT_MEGAPIXELS  # limit on decoded images


class ShardMaker:
    """Writes shards of a task, by number. It keeps source and encoder open."""

    def __init__(self, task: ShardTask) -> None:
        self.task = task
        self._opened: _Opened | None = None

    def __call__(self, number: int) -> str:
        """Write the shard; return its outcome as JSON. Raises errors of `encode_on_cluster`."""
        place = self.task.folder / shard_name(number)
        if self._opened is None:
            self._opened = _Opened.of(self.task)
        place.mkdir(exist_ok=True)
        former = len(list(place.iterdir()))
        plan, facts = self.task.plan, self.task.plan.facts
        if former >= self.task.attempts:
            positions = plan.positions_of(number)
            raise WorkerFailed(
                f"workers died in {former} attempts to encode images {positions[0]:,} to "
                f"{positions[-1]:,} of "
                f"{facts.source.name}; check their node's memory and Ray's logs, and remove the "
                "image that crashes them"
            )
        attempt = place / uuid4().hex
        attempt.mkdir()
        (attempt / ATTEMPT_MARKER).touch()  # a store has no folders without files
        differing = self._opened.differing(number)
        encoded = self._opened.encode(number)
        shard = encoded.write(attempt / shard_name(number), facts)
        document: dict[str, Json] = {
            "facts": facts.to_json(),
            "number": number,
            "attempt": attempt.name,
            "shard": asdict(shard),
            "skipped": [asdict(skipped) for skipped in encoded.skipped],
            "encoded": encoded.encoded,
            "copied": [[*pair] for pair in encoded.copied],
            "differing": [*differing],
        }
        write_json(attempt / OUTCOME, document)
        return json.dumps(document)


class _Opened:
    """Source and encoder of a task, opened on a node."""

    def __init__(self, plan: Plan, source: Source, encoder: Encoder, folder: Place) -> None:
        """folder: of the embeddings."""
        self.plan = plan
        self.source = source
        many = len(source) >= FAST_RESIZE_IMAGES
        decoder = Decoder(encoder.framing, many=many, origin=plan.origin)
        self.encoder = ShardEncoder(plan, encoder, decoder, Copier(folder, plan.facts))
        self._items: Iterator[Item] = iter(())
        self._next = -1  # the shard that the next item belongs to; -1: unknown

    @classmethod
    def of(cls, task: ShardTask) -> Self:
        """Open source and encoder. Raises Mismatch if they differ from the driver's."""
        limit_threads(task.threads)  # before the libraries that it limits are loaded
        limit_megapixels(task.megapixels)
        if version("retr") != task.version:
            raise Mismatch(
                f"retr has version {version('retr')}, not {task.version}; install the same version "
                "on every node"
            )
        if not appears(task.run):
            raise Mismatch(
                f"{task.folder.parent} is not the run's output folder; name a folder with --out "
                "that all nodes share"
            )
        names = task.names
        source = task.source or open_source(
            names.source, names.split, names.data_dir, names.limit, columns=names.columns
        )
        encoder = open_encoder(names.encoder, names.device)
        wanted = task.plan.facts
        met = facts_of(source, encoder, wanted.dtype, wanted.shard_images)
        if met.source != wanted.source:
            raise Mismatch(
                f"{wanted.source.name} has other images than on the machine that started the run; "
                "give all nodes the same files"
            )
        if (first := first_path(source)) != task.first:
            raise Mismatch(
                f"{wanted.source.name} is read from {first}, not from {task.first}; name a folder "
                "with --data that all nodes share"
            )
        if met != wanted:
            raise Mismatch(
                f"encoder {wanted.encoder.name} differs from that of the run; "
                "install the same retr and the same plug-ins on every node"
            )
        runner = RunBy(names.precision, names.runtime, races=False).runner(encoder, source)
        return cls(task.plan, source, runner, task.folder.parent)

    def encode(self, number: int) -> EncodedShard:
        """Return the shard of this number, encoded."""
        if self._next != number:
            self._items = self.plan.items(self.source, number)
        self._next = -1
        encoded = self.encoder.encode(number, self._items)
        check_root(self.source, encoded)
        self._next = number + 1
        return encoded

    def differing(self, number: int) -> list[int]:
        """Return the positions of the shard's images that are not as the driver listed them."""
        found = listed(self.source)
        return [] if found is None else found.differing(self.plan.positions_of(number))


def _absolute_encoder(spec: str) -> str:
    """Return the spec with its folder absolute, for a process in another folder."""
    name, _, argument = spec.partition(":")
    if name not in encoder_names():
        return str(Path(spec).expanduser().absolute())
    folder = Path(argument).expanduser()
    # A model may have the name of a folder that happens to be here.
    ours = argument and (is_trained(folder) or (folder / EXPORT).is_file())
    return f"{name}:{folder.absolute()}" if ours else spec


def first_path(source: Source) -> str | None:
    """Return the path of the first image: the same wherever the source is read from the same
    place.
    """
    first = next(source.items(), None)
    return first.path if first else None
