"""Read and decode images in threads, ahead of the network."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np

from retrieval.contracts import Framing, Images
from retrieval.embedding.plan import Origin
from retrieval.errors import BadImage
from retrieval.images import Item, load
from retrieval.images.facts import facts_of, jpeg_facts
from retrieval.images.pixels.decoding import read_item
from retrieval.images.pixels.fast_jpeg import decode_fast
from retrieval.images.pixels.framing import frame
from retrieval.images.pixels.jpeg_header import JpegHeader, jpeg_header
from retrieval.images.pixels.thumbnail import thumbnail
from retrieval.runtime.threads import usable_cores
from retrieval.storage.sets.manifest import THUMBNAIL_SIDE, Skipped
from retrieval.storage.sets.shards import FileFacts

BATCH_IMAGES = 500  # images decoded and handed to the encoder at once
BATCH_BYTES = 64 << 20  # encoded images that fill a batch
PREFETCHED_BATCHES = 3  # decoded before the encoder needs them
_HEADER_COLUMNS = ("taken", "bytes", "width", "height", "camera", "latitude", "longitude")


@dataclass(frozen=True, slots=True)
class ReadImage:
    """An image that was read: its item without the bytes, and facts about its file, if it is one.

    origin: the row to copy the embedding from; None for an image to encode.
    """

    item: Item
    file: FileFacts | None = None
    origin: Origin | None = None

    def with_thumbnail(self, thumbnail: bytes | None) -> Self:
        """Return the image with this thumbnail among the facts about its file."""
        return replace(self, file=self.file and self.file._replace(thumbnail=thumbnail))


@dataclass(frozen=True, slots=True)
class Batch:
    """n decoded images (n, side, side, 3), those to copy from rows, and those that failed."""

    decoded: list[ReadImage]
    images: Images
    copied: list[ReadImage]
    skipped: list[Skipped]

    @property
    def seen(self) -> int:
        """Return the number of the source's images in the batch."""
        return len(self.decoded) + len(self.copied) + len(self.skipped)


class Decoder:
    """Decodes and frames items in threads, a few batches ahead of the consumer."""

    def __init__(
        self,
        framing: Framing,
        threads: int | None = None,
        many: bool = False,
        origin: Callable[[Item, bytes], Origin | None] = lambda item, content: None,
    ) -> None:
        """many: as for `retrieval.images.frame`. origin: returns the row from which the
        embedding of a file can be copied, by the hash of its bytes.
        """
        self.framing = framing
        self.many = many
        self.origin = origin
        self.threads = threads or usable_cores()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batches(self, items: Iterator[Item], size: int = BATCH_IMAGES) -> Iterator[Batch]:
        """Yield the items in order, `size` at a time; those that fail become `skipped`."""
        side = self.framing.side
        waiting: deque[tuple[Images, list[Future[Batch]]]] = deque()
        while chunk := _chunk(items, size):
            piece = -(-len(chunk) // self.threads)
            images = np.empty((len(chunk), side, side, 3), np.uint8)
            pieces = [
                self._pool.submit(
                    self._decoded, chunk[start : start + piece], images[start : start + piece]
                )
                for start in range(0, len(chunk), piece)
            ]
            waiting.append((images, pieces))
            if len(waiting) > PREFETCHED_BATCHES:
                yield _joined(*waiting.popleft())
        while waiting:
            yield _joined(*waiting.popleft())

    def _decoded(self, items: Sequence[Item], images: Images) -> Batch:
        """Write pixels to the first of `images` (len(items), side, side, 3), and return these."""
        batch = Batch([], images, [], [])
        for item in items:
            # Only the last reference keeps the encoded bytes: they are in memory while they are
            # decoded, and no longer.
            bare, placed = replace(item, content=b""), item
            try:
                file = origin = header = None
                if item.stamp is not None:
                    item, content = read_item(item)
                    header = _jpeg_header(item)
                    columns = photo_columns(item, placed, header)
                    file = FileFacts(item.stamp or 0, content, columns)
                    origin = self.origin(bare, content)
                if origin is None:
                    thumbnail = self._frame(item, header, images[len(batch.decoded)])
                    file = file and file._replace(thumbnail=thumbnail)
            except BadImage as error:
                batch.skipped.append(Skipped(error.path, error.reason, bare.stamp))
            else:
                done = batch.decoded if origin is None else batch.copied
                done.append(ReadImage(bare, file, origin))
        return replace(batch, images=images[: len(batch.decoded)])

    def _frame(self, item: Item, header: JpegHeader | None, out: Images) -> bytes | None:
        """Write the pixels of the item to `out`; return its thumbnail if it is a file.

        header: of a JPEG that is a file.
        """
        if isinstance(item.content, np.ndarray):
            out[...] = load(item, self.framing, self.many)
            return None
        if item.stamp is None:
            header = _jpeg_header(item)
        image = decode_fast(item.content, item.path, self.framing, header)
        frame(image, self.framing, self.many, out)
        if item.stamp is None:
            return None
        if self.framing.side < THUMBNAIL_SIDE:  # a JPEG may be smaller than that
            image = decode_fast(item.content, item.path, Framing(THUMBNAIL_SIDE), header)
        return thumbnail(image, self.many).tobytes()


def _jpeg_header(item: Item) -> JpegHeader | None:
    return jpeg_header(item.content) if isinstance(item.content, bytes) else None


def photo_columns(item: Item, file: Item, header: JpegHeader | None = None) -> dict[str, object]:
    """Return the values of PHOTO_FIELDS that are known about an image that is a file.

    item: with the bytes of the file, if they are in memory. file: with its place. header: that
    `jpeg_header` returns for the bytes.
    """
    values: dict[str, object] = {}
    if isinstance(file.content, Path):
        with suppress(OSError, OverflowError, ValueError):
            status = file.content.stat()
            values = {
                "bytes": status.st_size,
                "modified": datetime.fromtimestamp(int(status.st_mtime), UTC),
            }
    with suppress(BadImage):  # an image whose header is damaged or not known may still be decoded
        if header is not None and isinstance(item.content, bytes):
            facts = jpeg_facts(header, len(item.content))
        else:
            facts = facts_of(item.content, item.path)
        values |= {name: getattr(facts, name) for name in _HEADER_COLUMNS}
    return values


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


def _joined(images: Images, pieces: list[Future[Batch]]) -> Batch:
    """Return the batch of all pieces, whose images lie in parts of `images`."""
    batches = [piece.result() for piece in pieces]
    start = 0
    for batch in batches:
        kept = images[start : start + len(batch.images)]
        if kept.ctypes.data != batch.images.ctypes.data:  # images before it failed
            kept[...] = batch.images
        start += len(batch.images)
    return Batch(
        decoded=[read for batch in batches for read in batch.decoded],
        images=images[:start],
        copied=[read for batch in batches for read in batch.copied],
        skipped=[skip for batch in batches for skip in batch.skipped],
    )


@contextmanager
def closed(items: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """Close the iterator at the end, if it is a generator.

    A source may fetch ahead in a thread. If an error left its generator to the garbage collector,
    that could wait for the thread while another one starts, which never ends.
    """
    try:
        yield items
    finally:
        if isinstance(items, Generator):
            items.close()
