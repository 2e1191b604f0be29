"""Encode a source of images into shards: streaming, in parallel, resumable, and up to date.

The run waits for the network only, because threads decode the images ahead of it. Memory holds a
few batches and the embeddings of one shard, whatever the number of images.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Encoder, Images, Vectors
from retrieval.embedding.decoder import BATCH_IMAGES, Decoder, ReadImage, closed
from retrieval.embedding.plan import Copier, Plan, plan_of
from retrieval.embedding.runtimes.choice import RunBy
from retrieval.embedding.runtimes.running import Running, Waiting
from retrieval.errors import BadData, BadSource
from retrieval.images import FAST_RESIZE_IMAGES, Item, Source
from retrieval.images.described import described, has_same_columns
from retrieval.images.folders.listing import listed
from retrieval.images.source import First
from retrieval.storage.files import PARTIAL, locked, made_folder, remove
from retrieval.storage.names import storable
from retrieval.storage.places import Place
from retrieval.storage.sets.columns import FurtherColumns
from retrieval.storage.sets.made_by import MadeBy
from retrieval.storage.sets.manifest import (
    Dtype,
    EncoderFacts,
    Facts,
    Manifest,
    Shard,
    Skipped,
    SourceFacts,
)
from retrieval.storage.sets.shard_writer import ShardWriter, check_embeddings_folder
from retrieval.storage.sets.shards import shard_name, write_shard
from retrieval.storage.sets.skipped import SKIPPED

SHARD_IMAGES = 10_000
SMALL_SIDE = 64  # pixels
LARGE_BATCH_IMAGES = 128  # number of larger images to encode at once
EARLY_FOLDER = f"early{PARTIAL}"  # shards that a cluster finished before earlier ones

Progress = Callable[[int, int], None]
"""Is called with the number of images done, in this and earlier runs, and the total."""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The complete set after a run, and what the run did.

    encoded: images that the network embedded. kept: rows that stayed, those of touched files
    included. removed: rows whose file is gone. renamed: rows whose file has another path now.
    notes: sentences about tables beside the images, and what was not taken from them.
    """

    manifest: Manifest
    encoded: int = 0
    kept: int = 0
    removed: int = 0
    renamed: int = 0
    notes: tuple[str, ...] = ()


def encode_source(
    source: Source,
    encoder: Encoder,
    folder: Place,
    dtype: Dtype | str = Dtype.FLOAT32,
    shard_images: int = SHARD_IMAGES,
    progress: Progress = no_progress,
) -> Manifest:
    """Encode `source` into `folder`, as `bring_up_to_date` does; return the manifest."""
    return bring_up_to_date(source, encoder, folder, dtype, shard_images, progress).manifest


def bring_up_to_date(
    source: Source,
    encoder: Encoder,
    folder: Place,
    dtype: Dtype | str = Dtype.FLOAT32,
    shard_images: int = SHARD_IMAGES,
    progress: Progress = no_progress,
    check_content: bool = False,
    run_by: RunBy | None = None,
) -> Outcome:
    """Encode the images of `source` that are new or changed, and drop the rows of those gone.

    If the folder holds the first shards of the same run, encoding continues after them. If it holds
    an earlier state of the same files, that state can be read until the new one is complete.
    check_content: compare the bytes of all files, not only of those whose size or time changed.
    run_by: what chooses the runtime, once it is known how many images there are to encode; None to
    run the encoder by itself.

    Raises BadInput if the folder holds something else or cannot be written, Busy if another
    process writes there, BadData if none of the images could be read, BadSource for a table beside
    the images that cannot be read.
    """
    if run_by is not None:
        run_by.check(encoder)
    facts = facts_of(source, encoder, dtype, shard_images)
    check_embeddings_folder(folder)
    made_folder(folder)
    with locked(folder):
        writer = writer_of(source, folder, facts, check_content)
        further = Further.of(source, writer)
        if writer.manifest.complete:
            return further.unchanged(writer)
        plan = plan_of(source, writer, check_content, progress)
        if run_by is not None and len(plan.positions):
            encoder = run_by.runner(encoder, source, len(plan.positions))
        tally = Tally(plan)
        done = len(source) - len(plan.positions)
        progress(done, len(source))
        many = len(source) >= FAST_RESIZE_IMAGES
        with (
            Decoder(encoder.framing, many=many, origin=plan.origin) as decoder,
            closed(plan.items(source, plan.first)) as items,
        ):
            encoder_of_shards = ShardEncoder(plan, encoder, decoder, Copier(folder, writer.facts))
            for number in plan.numbers:
                encoded = encoder_of_shards.encode(number, items, done, progress)
                check_root(source, encoded)
                shard = encoded.write(folder / shard_name(number), writer.facts)
                writer.record(shard, encoded.skipped)
                tally.add(encoded.encoded, encoded.copied)
                done += len(plan.positions_of(number))
        return tally.outcome(finished(writer, further), further)


def writer_of(
    source: Source, folder: Place, facts: Facts, check_content: bool = False
) -> ShardWriter:
    """Return the writer of the embeddings of this source. Raises the errors of `ShardWriter`.

    check_content: as `bring_up_to_date` takes it.
    """
    found = listed(source)
    if found is None:
        return ShardWriter(folder, facts)
    left_out = found.left_out
    return ShardWriter(folder, facts, left_out.passed_over, left_out.folders, check_content)


@dataclass(frozen=True, slots=True)
class Further:
    """The further columns of a source, read before its images are encoded.

    is_new: whether they differ from those of the embeddings.
    """

    columns: FurtherColumns | None
    is_new: bool

    @classmethod
    def of(cls, source: Source, writer: ShardWriter) -> "Further":
        """Read them, unless the embeddings are complete and have them already.

        Raises BadSource for a table that cannot be read.
        """
        there = writer.manifest
        if there.complete and has_same_columns(source, there.columns_source):
            return cls(None, is_new=False)
        found = described(source)
        return cls(None if found is None else found.further_columns(), is_new=True)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return sentences about what was not taken."""
        return () if self.columns is None else self.columns.notes

    def unchanged(self, writer: ShardWriter) -> Outcome:
        """Return the outcome for embeddings that are complete, after writing new columns."""
        if self.is_new:
            writer.describe(self.columns)
        return Outcome(writer.manifest, kept=writer.manifest.rows, notes=self.notes)


@dataclass(slots=True)
class Tally:
    """Counts of what a run did. copied: pairs of ids, of the image and of the row it came from."""

    plan: Plan
    encoded: int = 0
    copied: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, encoded: int, copied: Sequence[tuple[str, ...]]) -> None:
        """Count the images of a shard."""
        self.encoded += encoded
        self.copied += copied

    def outcome(self, manifest: Manifest, further: Further) -> Outcome:
        """Return the counts, with the manifest."""
        renamed = [origin for image, origin in self.copied if image != origin]
        touched = len(self.copied) - len(renamed)
        removed = len(self.plan.gone - {*renamed})
        kept = self.plan.kept + touched
        return Outcome(manifest, self.encoded, kept, removed, len(renamed), further.notes)


def check_root(source: Source, encoded: "EncodedShard") -> None:
    """Raise BadSource if images could not be read because the whole folder disappeared."""
    found = listed(source)
    if found is not None and encoded.skipped:
        found.check_root()


def facts_of(source: Source, encoder: Encoder, dtype: Dtype | str, shard_images: int) -> Facts:
    """Return the facts of the embeddings of this source by this encoder."""
    dtype = choice(Dtype, dtype)
    found = listed(source)
    return Facts(
        encoder=EncoderFacts.of(encoder),
        dim=encoder.dim,
        dtype=dtype,
        metric=encoder.metric,
        source=SourceFacts(
            source.name,
            source.fingerprint,
            len(source),
            source.source.fingerprint if isinstance(source, First) else None,
            root=None if found is None else storable(str(found.root)),
        ),
        shard_images=shard_images,
    )


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """Result of encoding one shard: n images, their embeddings (n, dim), and skipped images.

    encoded: the number of images that the network embedded.
    """

    read: list[ReadImage]
    vectors: Vectors
    skipped: list[Skipped]
    encoded: int
    made_by: MadeBy | None = None

    @property
    def copied(self) -> tuple[tuple[str, str], ...]:
        """Return the ids of images that were not encoded, each with that of the row it is from."""
        return tuple((each.item.id, each.origin.id) for each in self.read if each.origin)

    def write(self, file: Place, facts: Facts) -> Shard:
        """Write the shard; return its manifest entry. Raises the errors of `write_shard`."""
        items = [each.item for each in self.read]
        shard = write_shard(
            file,
            facts,
            ids=[item.id for item in items],
            labels=[item.label for item in items],
            paths=[item.path for item in items],
            vectors=self.vectors,
            skipped=self.skipped,
            files=[each.file for each in self.read if each.file],
        )
        return replace(shard, made_by=self.made_by if self.encoded else None)


@dataclass(frozen=True, slots=True)
class ShardEncoder:
    """Encodes the shards of a plan."""

    plan: Plan
    encoder: Encoder
    decoder: Decoder
    copier: Copier

    def encode(
        self, number: int, items: Iterator[Item], done: int = 0, progress: Progress = no_progress
    ) -> EncodedShard:
        """Encode shard `number`, whose first item is the next of `items`.

        done: images of the source that are done. Raises BadSource if the items end too early.
        """
        facts = self.plan.facts
        end = done + len(self.plan.positions_of(number))
        encoded: list[ReadImage] = []
        copied: list[ReadImage] = []
        skipped: list[Skipped] = []
        vectors: list[Vectors] = []
        started: deque[tuple[Waiting, int]] = deque()

        def finish() -> None:
            nonlocal done
            waiting, seen = started.popleft()
            vectors.append(waiting())
            done += seen
            progress(done, facts.source.images)

        size = batch_size(self.encoder.framing.side)
        for batch in self.decoder.batches(islice(items, end - done), size):
            started.append((self._started(batch.images), batch.seen))
            encoded += batch.decoded
            copied += batch.copied
            skipped += batch.skipped
            if len(started) > 1:
                finish()
        while started:
            finish()
        if done < end:
            raise BadSource(
                f"{facts.source.name} has changed: it ended after {done:,} of "
                f"{facts.source.images:,} images; encode it again"
            )
        known, thumbnails = self.copier.copied([each.origin for each in copied if each.origin])
        vectors.append(known)
        read = [*encoded, *map(ReadImage.with_thumbnail, copied, thumbnails)]
        made_by = self.encoder.made_by if isinstance(self.encoder, Running) else None
        return EncodedShard(read, np.concatenate(vectors), skipped, len(encoded), made_by)

    def _started(self, images: Images) -> Waiting:
        """Start to encode images; return what waits for their vectors."""
        if isinstance(self.encoder, Running):
            return self.encoder.started(images)
        vectors = self.encoder.encode(images)
        return lambda: vectors


def batch_size(side: int) -> int:
    """Return the number of images of side × side pixels to encode at once: a second or so."""
    return BATCH_IMAGES if side <= SMALL_SIDE else LARGE_BATCH_IMAGES


NOTHING_FURTHER = Further(None, is_new=False)


def finished(writer: ShardWriter, further: Further = NOTHING_FURTHER) -> Manifest:
    """Mark the set, which has all its shards, as complete; return its manifest.

    Raises BadData if no image at all could be read.
    """
    if writer.rows == 0:
        first = writer.skipped[0]
        raise BadData(
            f"cannot read any of the {writer.facts.source.images:,} images of "
            f"{writer.facts.source.name} (the first, {first.path}: {first.reason}); see "
            f"{writer.folder / SKIPPED}"
        )
    if (writer.folder / EARLY_FOLDER).is_dir():
        remove(writer.folder / EARLY_FOLDER)
    writer.describe(further.columns)
    return writer.finish()
