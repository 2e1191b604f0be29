"""Encodes a source of images into shards: streaming, in parallel, and resumable.

Images are decoded by threads (Pillow lets go of the interpreter while it decodes) a few batches
ahead of the network, so that the network is what the run waits for, and memory holds a few
batches and one shard's embeddings, whatever the number of images.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Encoder, Framing, Images, Vectors
from retrieval.errors import BadData, BadImage, BadSource
from retrieval.images import FAST_RESIZE_IMAGES, Item, Source, load
from retrieval.images.folders.listing import listed
from retrieval.images.source import First
from retrieval.runtime.threads import usable_cores
from retrieval.storage.files import PARTIAL, locked, made_folder, remove
from retrieval.storage.manifest import (
    Dtype,
    EncoderFacts,
    Facts,
    Manifest,
    Shard,
    Skipped,
    SourceFacts,
)
from retrieval.storage.places import Place
from retrieval.storage.shard_writer import SKIPPED, ShardWriter, check_embeddings_folder
from retrieval.storage.shards import shard_name, write_shard

SHARD_IMAGES = 10_000
BATCH_IMAGES = 500  # images decoded and handed to the encoder at once
BATCH_BYTES = 64 << 20  # encoded images that fill a batch
PREFETCHED_BATCHES = 3  # decoded before the encoder needs them
EARLY_FOLDER = f"early{PARTIAL}"  # shards that a cluster finished before earlier ones


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded images (n, side, side, 3), the n items they came from, and those that failed."""

    items: list[Item]
    images: Images
    skipped: list[Skipped]

    @property
    def seen(self) -> int:
        """Return the number of the source's images in the batch."""
        return len(self.items) + len(self.skipped)


def encode_source(
    source: Source,
    encoder: Encoder,
    folder: Place,
    dtype: Dtype | str = Dtype.FLOAT32,
    shard_images: int = SHARD_IMAGES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Encode `source` into `folder`; return the manifest of the complete set.

    If the folder holds the first shards of the same run, encoding continues after them.
    `progress` is called with the number of images done, in this and earlier runs, and the total.

    Raises BadInput if the folder holds something else or cannot be written, Busy if another
    process writes there, BadData if none of the images could be read.
    """
    facts = facts_of(source, encoder, dtype, shard_images)
    check_embeddings_folder(folder)
    made_folder(folder)
    with locked(folder):
        writer = writer_of(source, folder, facts)
        if writer.manifest.complete:
            return writer.manifest
        done = writer.position
        progress(done, len(source))
        items = source.items(done)
        with Decoder(encoder.framing, many=len(source) >= FAST_RESIZE_IMAGES) as decoder:
            while done < len(source):
                encoded = encode_shard(facts, decoder, encoder, items, done, progress)
                check_root(source, encoded)
                shard = encoded.write(folder / shard_name(len(writer.manifest.shards)), facts)
                writer.record(shard, encoded.skipped)
                done = writer.position
        return finished(writer)


def writer_of(source: Source, folder: Place, facts: Facts) -> ShardWriter:
    """Return the writer of the embeddings of this source. Raises the errors of `ShardWriter`."""
    found = listed(source)
    if found is None:
        return ShardWriter(folder, facts)
    return ShardWriter(folder, facts, found.left_out.passed_over, found.left_out.folders)


def check_root(source: Source, encoded: "EncodedShard") -> None:
    """Raise BadSource if images could not be read because the whole folder disappeared."""
    found = listed(source)
    if found is not None and encoded.skipped:
        found.check_root()


def facts_of(source: Source, encoder: Encoder, dtype: Dtype | str, shard_images: int) -> Facts:
    """Return the facts of the embeddings of this source by this encoder."""
    dtype = choice(Dtype, dtype)
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
        ),
        shard_images=shard_images,
    )


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """Result of encoding one shard: n items, their embeddings (n, dim), and skipped images."""

    items: list[Item]
    vectors: Vectors
    skipped: list[Skipped]

    def write(self, file: Place, facts: Facts) -> Shard:
        """Write the shard; return its manifest entry. Raises the errors of `write_shard`."""
        return write_shard(
            file,
            facts,
            ids=[item.id for item in self.items],
            labels=[item.label for item in self.items],
            paths=[item.path for item in self.items],
            vectors=self.vectors,
            skipped=self.skipped,
        )


def encode_shard(
    facts: Facts,
    decoder: "Decoder",
    encoder: Encoder,
    items: Iterator[Item],
    start: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncodedShard:
    """Encode the shard that begins at image `start`, the next of `items`.

    Raises BadSource if the items end before it does.
    """
    done, end = start, min(start + facts.shard_images, facts.source.images)
    good: list[Item] = []
    skipped: list[Skipped] = []
    parts: list[Vectors] = [np.empty((0, encoder.dim), np.float32)]
    for batch in decoder.batches(islice(items, end - start)):
        if batch.items:
            parts.append(encoder.encode(batch.images))
        good += batch.items
        skipped += batch.skipped
        done += batch.seen
        progress(done, facts.source.images)
    if done < end:
        raise BadSource(
            f"{facts.source.name} has changed: it ended after {done:,} of "
            f"{facts.source.images:,} images; encode it again"
        )
    return EncodedShard(good, np.concatenate(parts), skipped)


def finished(writer: ShardWriter) -> Manifest:
    """Mark the set, which has all its shards, as complete; return its manifest.

    Raises BadData if no image at all could be read.
    """
    if writer.manifest.rows == 0:
        first = writer.skipped[0]
        raise BadData(
            f"cannot read any of the {writer.facts.source.images:,} images of "
            f"{writer.facts.source.name} (the first, {first.path}: {first.reason}); see "
            f"{writer.folder / SKIPPED}"
        )
    if (writer.folder / EARLY_FOLDER).is_dir():
        remove(writer.folder / EARLY_FOLDER)
    return writer.finish()


class Decoder:
    """Decodes and frames items in threads, a few batches ahead of the consumer."""

    def __init__(self, framing: Framing, threads: int | None = None, many: bool = False) -> None:
        """many: as for `retrieval.images.frame`."""
        self.framing = framing
        self.many = many
        self.threads = threads or usable_cores()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batches(self, items: Iterator[Item], size: int = BATCH_IMAGES) -> Iterator[Batch]:
        """Yield the items in order, `size` at a time; those that fail become `skipped`."""
        waiting: deque[list[Future[Batch]]] = deque()
        while chunk := _chunk(items, size):
            piece = -(-len(chunk) // self.threads)
            waiting.append(
                [
                    self._pool.submit(
                        _decoded, chunk[start : start + piece], self.framing, self.many
                    )
                    for start in range(0, len(chunk), piece)
                ]
            )
            if len(waiting) > PREFETCHED_BATCHES:
                yield _joined(waiting.popleft())
        while waiting:
            yield _joined(waiting.popleft())


def _chunk(items: Iterator[Item], size: int) -> list[Item]:
    """Return the next `size` items, or fewer if they fill `BATCH_BYTES`."""
    chunk: list[Item] = []
    n_bytes = 0
    while len(chunk) < size and n_bytes < BATCH_BYTES:
        item = next(items, None)
        if item is None:
            break
        chunk.append(item)
        n_bytes += len(item.content) if isinstance(item.content, bytes) else 0
    return chunk


def _decoded(items: Sequence[Item], framing: Framing, many: bool) -> Batch:
    images = np.empty((len(items), framing.side, framing.side, 3), np.uint8)
    good: list[Item] = []
    skipped: list[Skipped] = []
    for item in items:
        try:
            images[len(good)] = load(item, framing, many)
        except BadImage as error:
            skipped.append(Skipped(error.path, error.reason))
        else:
            # The encoded bytes have done their work: let go of them.
            good.append(Item(item.id, item.label, item.path, b""))
    return Batch(good, images[: len(good)], skipped)


def _joined(pieces: list[Future[Batch]]) -> Batch:
    batches = [piece.result() for piece in pieces]
    return Batch(
        items=[item for batch in batches for item in batch.items],
        images=np.concatenate([batch.images for batch in batches]),
        skipped=[skip for batch in batches for skip in batch.skipped],
    )
