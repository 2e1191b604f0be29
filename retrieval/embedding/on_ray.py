"""Encodes a source on a Ray cluster: the same shards as on one machine, made by many.

Workers write whole shards into `early.partial/`, a folder inside the embeddings folder, which all
nodes share. The driver alone moves them out, in their order, and names them in the manifest: a
worker that was given up for lost and comes back has nowhere to do harm. What a run that was
killed left there is used by the next one of the same facts.

    early.partial/RUN                                           empty: these nodes share the folder
    early.partial/part-00007.parquet/ATTEMPT/begun
                                             part-00007.parquet
                                             outcome.json       written last: facts, shard, skipped
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from retrieval.contracts import Encoder, Json
from retrieval.embedding.encode import (
    EARLY,
    SHARD_IMAGES,
    Decoder,
    Stretch,
    check_root,
    encode_stretch,
    facts_of,
    finished,
    writer_of,
)
from retrieval.embedding.onnx_cache import EXPORT
from retrieval.errors import BadData, Mismatch, RetrError, WorkerFailed
from retrieval.images import MANY, Item, Source, open_source
from retrieval.images.datasets.catalog import DATA_DIR_VARIABLE
from retrieval.images.folders.listing import Listed, listed
from retrieval.images.megapixels import DEFAULT_MEGAPIXELS, limit_megapixels, max_megapixels
from retrieval.images.opening import absolute_source
from retrieval.images.tables.columns import NO_CHOICE, Columns
from retrieval.registry import encoder_names, open_encoder
from retrieval.runtime.ray import connected, crew_here, map_on_workers
from retrieval.runtime.threads import limit_threads
from retrieval.storage.cards import is_trained
from retrieval.storage.files import (
    locked,
    made_folder,
    moved,
    read_json,
    remove,
    sha256_of,
    write_json,
)
from retrieval.storage.manifest import MANIFEST, Dtype, Facts, Manifest, Shard, Skipped
from retrieval.storage.places import Place
from retrieval.storage.shard_writer import ShardWriter, check_free
from retrieval.storage.shards import shard_name

BEGUN = "begun"
OUTCOME = "outcome.json"
ATTEMPTS = 5  # at one shard, before it is held to be what kills its workers
SETTLED = 10.0  # seconds in which a shared folder shows everywhere what was put there


@dataclass(frozen=True, slots=True)
class Names:
    """What a source and an encoder are opened by, as `open_source` and `open_encoder` take it."""

    source: str
    encoder: str
    split: str | None = None
    data_dir: Path | None = None
    limit: int | None = None
    device: str = "auto"
    columns: Columns = NO_CHOICE

    def absolute(self) -> Self:
        """The names, as they may be given to a process in another folder, with other variables."""
        data_dir = self.data_dir or os.environ.get(DATA_DIR_VARIABLE)
        return replace(
            self,
            source=absolute_source(self.source),
            encoder=_absolute_encoder(self.encoder),
            data_dir=Path(data_dir).expanduser().absolute() if data_dir else None,
        )


def encode_on_cluster(
    names: Names,
    source: Source,
    encoder: Encoder,
    folder: Place,
    dtype: Dtype | str = Dtype.FLOAT32,
    shard_images: int = SHARD_IMAGES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    address: str | None = None,
    attempts: int = ATTEMPTS,
) -> Manifest:
    """The manifest of the complete set of embeddings, as `encode_source` would have written it.

    Every node opens source and encoder by `names`; here they are `source` and `encoder`, which
    may be on the CPU. A folder is listed here alone, and the nodes are told its files. `folder` is
    one that all nodes share. `address` is as for `connected`. `progress` is called as by
    `encode_source`, shard by shard.

    Raises what `encode_source` and `connected` raise, Mismatch where a node sees other images,
    another encoder or another folder than we do, WorkerFailed for what nobody foresaw, and for a
    shard at which workers died `attempts` times.
    """
    folder = folder.absolute()
    facts = facts_of(source, encoder, dtype, shard_images)
    check_free(folder, MANIFEST)
    fresh = not folder.exists()
    made_folder(folder)
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        writer = writer_of(source, folder, facts)
        if writer.manifest.complete:
            return writer.manifest
        try:
            stack.enter_context(connected(address))
        except RetrError:
            if fresh and folder.is_dir():
                remove(folder)
            raise
        crew = crew_here(names.device)
        queue = Queue(writer, progress, listed(source))
        run = queue.folder / uuid4().hex
        run.touch()
        task = Task(
            names=replace(names.absolute(), device="cuda" if crew.gpus else "cpu"),
            facts=facts,
            source=source if listed(source) else None,
            first=_first_path(source),
            folder=queue.folder,
            run=run,
            threads=crew.cpus,
            attempts=attempts,
            version=version("retr"),
            megapixels=max_megapixels(),
        )
        if missing := queue.missing():
            for outcome in map_on_workers(ShardMaker(task), missing, crew):
                queue.add(Outcome.of_json(json.loads(outcome)))
        return finished(writer)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt at a shard left: its number, its entry for the manifest, what was skipped."""

    number: int
    attempt: str
    shard: Shard
    skipped: tuple[Skipped, ...]
    differing: tuple[int, ...] = ()  # positions of images that the worker met other than listed

    @property
    def place(self) -> Path:
        """Where the attempt's files are, below the folder of early shards."""
        return Path(shard_name(self.number), self.attempt)

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Self:
        """The outcome in the document. Raises KeyError or TypeError if it holds none."""
        return cls(
            document["number"],
            document["attempt"],
            Shard(**document["shard"]),
            tuple(Skipped(**skipped) for skipped in document["skipped"]),
            tuple(document.get("differing", ())),
        )


class Queue:
    """Shards that were made, waiting for those before them to be recorded in the manifest."""

    def __init__(
        self,
        writer: ShardWriter,
        progress: Callable[[int, int], None],
        source: Listed | None = None,
    ) -> None:
        """The queue holds what an earlier run of the same facts left whole.

        source: whose files the workers are told.
        """
        self.writer = writer
        self.source = source
        self.facts = writer.facts
        self.folder = made_folder(writer.folder / EARLY)
        self.progress = progress
        self._waiting: dict[int, Outcome] = {}
        of_shards = [each for each in self.folder.iterdir() if each.is_dir()]
        for attempt in [each for of_shard in of_shards for each in of_shard.iterdir()]:
            outcome = _whole(attempt, self.facts)
            if outcome and self._is_missing(outcome.number):
                self._waiting[outcome.number] = outcome
            else:
                remove(attempt)
        for file in [*self.folder.iterdir()]:
            if file.is_file():  # of an earlier run
                file.unlink()
        self._record()

    def missing(self) -> list[int]:
        """The numbers of the shards that are neither recorded nor waiting."""
        wanted = -(-self.facts.source.images // self.facts.shard_images)
        return [number for number in range(wanted) if self._is_missing(number)]

    def _is_missing(self, number: int) -> bool:
        return number >= len(self.writer.manifest.shards) and number not in self._waiting

    def add(self, outcome: Outcome) -> None:
        """Take in a shard.

        Raises Mismatch if its file isn't there, or if the worker met other images than are here.
        """
        if not _appears(self.folder / outcome.place / outcome.shard.file):
            raise Mismatch(
                f"what a node wrote into {self.folder} is not seen here; name a folder with --out "
                "that all nodes share"
            )
        self._check_same_files(outcome)
        if self._is_missing(outcome.number):
            self._waiting[outcome.number] = outcome
        self._record()

    def _check_same_files(self, outcome: Outcome) -> None:
        """Raise Mismatch where a file that the worker met other than listed is as listed here."""
        if not outcome.differing or self.source is None:
            return
        first, last = min(outcome.differing), max(outcome.differing)
        end = time.monotonic() + SETTLED
        while not {*outcome.differing} <= {*self.source.differing(first, last + 1)}:
            if time.monotonic() > end:
                name = self.facts.source.name
                raise Mismatch(
                    f"{name} holds other images on a node than where the run was started; let all "
                    "nodes see the same files"
                )
            time.sleep(0.2)

    def _record(self) -> None:
        """Record the shards whose turn it is."""
        while outcome := self._waiting.pop(len(self.writer.manifest.shards), None):
            made = self.folder / outcome.place / outcome.shard.file
            moved(made, self.writer.folder / outcome.shard.file)
            self.writer.record(outcome.shard, outcome.skipped)
        early = sum(
            outcome.shard.rows + outcome.shard.skipped for outcome in self._waiting.values()
        )
        self.progress(self.writer.position + early, self.facts.source.images)


def _whole(attempt: Place, facts: Facts) -> Outcome | None:
    """The outcome of an attempt that ended well, for these facts; None for others."""
    try:
        document: dict[str, Any] = read_json(attempt / OUTCOME)
        outcome = Outcome.of_json(document)
        file = attempt / outcome.shard.file
        if document["facts"] == facts.to_json() and sha256_of(file) == outcome.shard.sha256:
            return outcome
    except (BadData, KeyError, TypeError, OSError):
        pass  # it was killed on the way
    return None


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is told."""

    names: Names
    facts: Facts
    first: str | None  # the path of the first image
    folder: Place  # of early shards
    run: Place  # a file in it
    threads: int
    attempts: int
    version: str  # of retr
    source: Source | None = None  # as the driver listed it; None where a worker opens it by name
    megapixels: int = DEFAULT_MEGAPIXELS  # of the largest image that is decoded


class ShardMaker:
    """Makes shards of a task, by number; what it opens for the first it keeps."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._opened: _Opened | None = None

    def __call__(self, number: int) -> str:
        """Make the shard; its outcome as JSON. Raises what `encode_on_cluster` raises."""
        place = self.task.folder / shard_name(number)
        if self._opened is None:
            self._opened = _Opened.of(self.task)
        place.mkdir(exist_ok=True)
        former = len(list(place.iterdir()))
        facts = self.task.facts
        if former >= self.task.attempts:
            start = number * facts.shard_images
            end = min(start + facts.shard_images, facts.source.images)
            raise WorkerFailed(
                f"workers died at {former} attempts at the images {start:,} to {end - 1:,} of "
                f"{facts.source.name}; see their node's memory and Ray's logs, and leave out the "
                "image that kills them"
            )
        attempt = place / uuid4().hex
        attempt.mkdir()
        (attempt / BEGUN).touch()  # a store knows of no folder without a file
        differing = self._opened.differing(number)
        stretch = self._opened.encode(number)
        shard = stretch.write(attempt / shard_name(number), facts)
        document: dict[str, Json] = {
            "facts": facts.to_json(),
            "number": number,
            "attempt": attempt.name,
            "shard": asdict(shard),
            "skipped": [asdict(skipped) for skipped in stretch.skipped],
            "differing": [*differing],
        }
        write_json(attempt / OUTCOME, document)
        return json.dumps(document)


class _Opened:
    """A task's source and encoder, as a node has them."""

    def __init__(self, facts: Facts, source: Source, encoder: Encoder) -> None:
        self.facts = facts
        self.source = source
        self.encoder = encoder
        self.decoder = Decoder(encoder.framing, many=len(source) >= MANY)
        self._items: Iterator[Item] = iter(())
        self._position = -1  # of the items; -1: nowhere

    @classmethod
    def of(cls, task: Task) -> Self:
        """Open them. Raises Mismatch where they are not what they are to the driver."""
        limit_threads(task.threads)  # before the libraries are loaded that it holds for
        limit_megapixels(task.megapixels)
        if version("retr") != task.version:
            raise Mismatch(
                f"retr is of version {version('retr')}, not {task.version}; install the same on "
                "every node"
            )
        if not _appears(task.run):
            raise Mismatch(
                f"{task.folder.parent} is not the folder that the run was started on; name one "
                "with --out that all nodes share"
            )
        names = task.names
        source = task.source or open_source(
            names.source, names.split, names.data_dir, names.limit, columns=names.columns
        )
        encoder = open_encoder(names.encoder, names.device)
        met, wanted = (
            facts_of(source, encoder, task.facts.dtype, task.facts.shard_images),
            task.facts,
        )
        if met.source != wanted.source:
            raise Mismatch(
                f"{wanted.source.name} holds other images than where the run was started; let all "
                "nodes see the same files"
            )
        if (first := _first_path(source)) != task.first:
            raise Mismatch(
                f"{wanted.source.name} is read from {first}, not from {task.first}; name a folder "
                "with --data that all nodes share"
            )
        if met != wanted:
            raise Mismatch(
                f"the encoder {wanted.encoder.name} is another than where the run was started; "
                "install the same retr and the same plug-ins on every node"
            )
        return cls(wanted, source, encoder)

    def encode(self, number: int) -> Stretch:
        """The stretch of this shard."""
        start = number * self.facts.shard_images
        items = self._items_from(start)
        self._position = -1
        stretch = encode_stretch(self.facts, self.decoder, self.encoder, items, start)
        check_root(self.source, stretch)
        self._position = start + len(stretch.items) + len(stretch.skipped)
        return stretch

    def differing(self, number: int) -> list[int]:
        """The positions of the shard's images that are not as the driver listed them."""
        found = listed(self.source)
        start = number * self.facts.shard_images
        end = min(start + self.facts.shard_images, self.facts.source.images)
        return [] if found is None else found.differing(start, end)

    def _items_from(self, start: int) -> Iterator[Item]:
        """The items from this position on."""
        if self._position != start:
            self._items = self.source.items(start)
        return self._items


def _absolute_encoder(spec: str) -> str:
    """The spec for a process in another folder: the path of a folder in it made absolute."""
    name, _, argument = spec.partition(":")
    if name not in encoder_names():
        return str(Path(spec).expanduser().absolute())
    folder = Path(argument).expanduser()
    # A model may have the name of a folder that happens to be here.
    ours = argument and (is_trained(folder) or (folder / EXPORT).is_file())
    return f"{name}:{folder.absolute()}" if ours else spec


def _first_path(source: Source) -> str | None:
    """The path of the first image: the same wherever the source is read from the same place."""
    first = next(source.items(), None)
    return first.path if first else None


def _appears(file: Place) -> bool:
    """Whether the file is there, or comes into sight soon."""
    end = time.monotonic() + SETTLED
    while not file.is_file():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
