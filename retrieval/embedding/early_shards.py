"""Shards that workers of a cluster wrote, before the driver records them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from retrieval.embedding.encode import EARLY_FOLDER, Tally
from retrieval.embedding.plan import Plan
from retrieval.errors import BadData, Mismatch
from retrieval.images.folders.listing import Listed
from retrieval.storage.document import fields_of, parsed
from retrieval.storage.files import (
    made_folder,
    moved,
    read_json,
    remove,
    sha256_of,
)
from retrieval.storage.places import Place
from retrieval.storage.sets.manifest import Facts, Shard, Skipped
from retrieval.storage.sets.shard_writer import ShardWriter
from retrieval.storage.sets.shards import shard_name

OUTCOME = "outcome.json"
SETTLE_SECONDS = 10.0  # until all nodes see a new file of a shared folder


@dataclass(frozen=True, slots=True)
class EarlyShard:
    """Result of an attempt at a shard: its number, its manifest entry, and the skipped images."""

    number: int
    attempt: str
    shard: Shard
    skipped: tuple[Skipped, ...]
    encoded: int = 0
    copied: tuple[tuple[str, ...], ...] = ()  # ids of images, each with that of the row it is from
    differing: tuple[int, ...] = ()  # positions of images that the worker met other than listed

    @property
    def place(self) -> Path:
        """Return the folder of the attempt's files, relative to the folder of early shards."""
        return Path(shard_name(self.number), self.attempt)

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the shard of the document. Raises BadData if the document is damaged."""
        return parsed(fields_of(document, cls), cls, OUTCOME, "encode again")


class Queue:
    """Finished shards that wait until earlier ones are recorded in the manifest."""

    def __init__(
        self,
        writer: ShardWriter,
        plan: Plan,
        progress: Callable[[int, int], None],
        source: Listed | None = None,
    ) -> None:
        """Open the queue, with the complete shards of an earlier run of the same facts.

        source: the source whose list of files is sent to the workers.
        """
        self.writer = writer
        self.plan = plan
        self.tally = Tally(plan)
        self.source = source
        self.facts = writer.facts
        self.folder = made_folder(writer.folder / EARLY_FOLDER)
        self.progress = progress
        self._waiting: dict[int, EarlyShard] = {}
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
        """Return the numbers of the shards that are neither recorded nor waiting."""
        return [number for number in self.plan.numbers if self._is_missing(number)]

    def _is_missing(self, number: int) -> bool:
        return (
            number in self.plan.numbers
            and number >= self.writer.next_number
            and number not in self._waiting
        )

    def add(self, outcome: EarlyShard) -> None:
        """Add a shard.

        Raises Mismatch if its file is missing, or if the worker read other images than are here.
        """
        if not appears(self.folder / outcome.place / outcome.shard.file):
            raise Mismatch(
                f"a file that a node wrote into {self.folder} is not visible on this machine; name "
                "a folder with --out that all nodes share"
            )
        self._check_same_files(outcome)
        if self._is_missing(outcome.number):
            self._waiting[outcome.number] = outcome
        self._record()

    def _check_same_files(self, outcome: EarlyShard) -> None:
        """Raise Mismatch if a file that changed for the worker is unchanged on this machine."""
        if not outcome.differing or self.source is None:
            return
        end = time.monotonic() + SETTLE_SECONDS
        while not {*outcome.differing} <= {*self.source.differing(outcome.differing)}:
            if time.monotonic() > end:
                name = self.facts.source.name
                raise Mismatch(
                    f"{name} has other images on a node than on this machine; give all nodes the "
                    "same files"
                )
            time.sleep(0.2)

    def _record(self) -> None:
        """Record the shards whose turn it is."""
        while outcome := self._waiting.pop(self.writer.next_number, None):
            made = self.folder / outcome.place / outcome.shard.file
            moved(made, self.writer.folder / outcome.shard.file)
            self.writer.record(outcome.shard, outcome.skipped)
            self.tally.add(outcome.encoded, outcome.copied)
        missing = sum(len(self.plan.positions_of(number)) for number in self.missing())
        self.progress(self.facts.source.images - missing, self.facts.source.images)


def _whole(attempt: Place, facts: Facts) -> EarlyShard | None:
    """Return the shard of an attempt that succeeded for these facts; None for others."""
    try:
        document: dict[str, Any] = read_json(attempt / OUTCOME)
        outcome = EarlyShard.of_json(document)
        file = attempt / outcome.shard.file
        if document["facts"] == facts.to_json() and sha256_of(file) == outcome.shard.sha256:
            return outcome
    except (BadData, KeyError, OSError):
        pass  # it was killed on the way
    return None


def appears(file: Place) -> bool:
    """Return whether the file is there, or appears within SETTLE_SECONDS."""
    end = time.monotonic() + SETTLE_SECONDS
    while not file.is_file():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
