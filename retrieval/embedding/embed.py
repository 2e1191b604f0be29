"""From queries to vectors: the one place that opens an index's encoder and hands it queries.

`Searcher`, `retr search`, `retr serve` and `retr compare` all embed through an `Embedder`. It
decides which runtime opens the encoder, decodes images in threads, and keeps the errors of images
that cannot be read apart from the vectors of the others.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from threading import RLock
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import (
    Encoder,
    Framing,
    Images,
    Metric,
    Prompted,
    Prompts,
    TextEncoder,
    Tokenizing,
    Vectors,
)
from retrieval.embedding.onnx_cache import open_export
from retrieval.embedding.query import Query, checked_texts
from retrieval.errors import BadImage, BadInput, Mismatch, TakesNoWords
from retrieval.images import Given, Item, as_images, frame_given
from retrieval.images.source import Note, no_note
from retrieval.registry import open_encoder
from retrieval.runtime.threads import usable_cores
from retrieval.storage.sets.manifest import EncoderFacts
from retrieval.values import shown

CHUNK_IMAGES = 256
"""Number of images that are decoded, then encoded, at a time, to bound memory."""

MAX_ONNX_IMAGES = 200
"""Beyond this, torch pays: it takes 2 s to import, and saves 10 ms an image (`siamese`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """The vectors of the images that could be read, and the errors of the others.

    vectors: (n, dim), in the order of the images.
    positions: (n,), the position of each among the images that were given, from 0.
    errors: BadImage by position.
    """

    vectors: Vectors
    positions: NDArray[np.int64]
    errors: Mapping[int, BadImage]


class Embedder:
    """Embeds queries with one encoder. Threads may share it; one at a time encodes.

    lock: held while the encoder opens or runs. Take it to time a call without its wait.
    """

    def __init__(
        self,
        wanted: EncoderFacts,
        device: str = "auto",
        encoder: Encoder | None = None,
        owner: str = "the index",
    ) -> None:
        """Embed with `encoder`, or open the wanted one when the first query comes.

        wanted: the encoder that the vectors to compare with came from.
        device: auto, cpu or cuda.
        owner: whose vectors those are, for errors.

        Raises Mismatch if `encoder` is another one than wanted.
        """
        self.lock = RLock()
        self._wanted = wanted
        self._device = device
        self._owner = owner
        self._registered = None if encoder is None else self._checked(encoder)
        self._without_torch: Encoder | None = None
        self._text_without_torch: Encoder | None = None

    @classmethod
    def of(cls, encoder: Encoder) -> Self:
        """Return an embedder of an open encoder, without a check against an index."""
        return cls(EncoderFacts.of(encoder), encoder=encoder)

    @property
    def encoder(self) -> Encoder:
        """The open encoder; without torch, if it is in the ONNX cache.

        Raises Mismatch if the installed encoder is another version than the wanted one, and the
        errors of `open_encoder`.
        """
        return self._opened(many=False)

    @property
    def opened_by_name(self) -> Encoder | None:
        """The encoder that was given or opened by its name; None if exports did all so far."""
        return self._registered

    def embed_images(self, images: Given | Iterable[Given]) -> Vectors:
        """Return the vectors (n, dim) of one or several images, in the order given.

        images: as `retrieval.images.as_images` takes them.

        Raises BadImage for the first that cannot be read, BadInput for what is not an image.
        """
        return self._embedded(as_images(images))

    def _embedded(self, images: Sequence[Given | Item]) -> Vectors:
        """Return the vectors of all images. Raises BadImage for the first that cannot be read."""
        embedded = self.embed(images)
        for error in embedded.errors.values():
            raise error
        return embedded.vectors

    def embed(self, images: Iterable[Given | Item]) -> Embedded:
        """Return the vectors of the images that can be read, and the errors of the others.

        Raises BadInput for what is not an image.
        """
        with self.lock:
            stream = iter(images)
            first = [*islice(stream, MAX_ONNX_IMAGES + 1)]
            encoder = self._opened(many=len(first) > MAX_ONNX_IMAGES)
            vectors: list[Vectors] = [np.empty((0, encoder.dim), np.float32)]
            positions: list[int] = []
            errors: dict[int, BadImage] = {}
            for start, chunk in _chunks(chain(first, stream)):
                readable = []
                framed = _framed(chunk, start, encoder.framing)
                for position, pixels in enumerate(framed, start):
                    if isinstance(pixels, BadImage):
                        errors[position] = pixels
                    else:
                        readable.append(pixels)
                        positions.append(position)
                if readable:
                    vectors.append(encoder.encode(np.stack(readable)))
            return Embedded(np.concatenate(vectors), np.array(positions, np.int64), errors)

    def embed_texts(self, texts: str | Iterable[str], note: Note = no_note) -> Vectors:
        """Return the vectors (n, dim) of one or several texts, in the space of the images.

        note: is told of a text that is too long to be read to its end.

        Raises BadInput for an empty text, and if the encoder cannot embed text.
        """
        given = checked_texts(texts)
        with self.lock:
            encoder = self._opened_for_text()
            if isinstance(encoder, Tokenizing):
                for text, count in zip(given, encoder.count_tokens(given), strict=True):
                    if count > encoder.max_tokens:
                        note(
                            f"the text {shown(text)} has {count:,} tokens, and {encoder.name} "
                            f"reads {encoder.max_tokens}: the rest is ignored"
                        )
            return encoder.encode_text(given)

    @property
    def prompts(self) -> Prompts:
        """The encoder's prompts for names of classes. Raises BadInput if it takes no text."""
        encoder = self._opened_for_text()
        return encoder.prompts if isinstance(encoder, Prompted) else Prompts()

    def embed_query(
        self, query: Query, metric: Metric | str | None = None, note: Note = no_note
    ) -> Vectors:
        """Return the vector (1, dim) of a query of pictures and words.

        metric: that the vector is compared by; None for the encoder's. note: as for `embed_texts`.

        Raises BadImage for an image that cannot be read, BadInput for words if the encoder cannot
        embed text, and for parts that cancel each other out.
        """
        chosen = None if metric is None else choice(Metric, metric)
        with self.lock:
            pictures = self._embedded(query.pictures) if query.pictures else None
            words = self.embed_texts(query.words, note) if query.words else None
            if pictures is None:
                assert words is not None, "a query has one or the other"
                pictures = words[:0]
            if words is None:
                words = pictures[:0]
            return query.joined(chosen or self.encoder.metric, pictures, words)

    def _opened(self, many: bool) -> Encoder:
        """Return the encoder in the runtime that suits a few images, or many."""
        with self.lock:
            if self._registered is None and not many:
                self._without_torch = self._without_torch or open_export(
                    self._wanted.fingerprint, self._device
                )
                if self._without_torch is not None:
                    return self._without_torch
            return self._opened_by_name()

    def _opened_for_text(self) -> TextEncoder:
        """Return the encoder with its text tower. Raises BadInput if it has none."""
        with self.lock:
            if self._registered is None and self._text_without_torch is None:
                self._text_without_torch = open_export(
                    self._wanted.fingerprint, self._device, text=True
                )
            return checked_words(self._text_without_torch or self._opened_by_name())

    def _opened_by_name(self) -> Encoder:
        if self._registered is None:
            self._registered = self._checked(open_encoder(self._wanted.name, self._device))
        return self._registered

    def _checked(self, encoder: Encoder) -> Encoder:
        if not isinstance(encoder, Encoder):
            raise BadInput(f"the encoder is {shown(encoder)}; open one with open_encoder")
        wanted = self._wanted
        if encoder.fingerprint != wanted.fingerprint:
            raise Mismatch(
                f"{self._owner} was built with encoder {wanted.name} "
                f"({wanted.fingerprint[:8]}), not with {encoder.name} "
                f"({encoder.fingerprint[:8]}); use that encoder, or encode and index again"
            )
        return encoder


def checked_words(encoder: Encoder) -> TextEncoder:
    """Return the encoder. Raises TakesNoWords if it embeds images only."""
    if isinstance(encoder, TextEncoder):
        return encoder
    from retrieval.embedding.default_encoder import WORDS_ENCODER  # imports sources

    raise TakesNoWords(
        f"encoder {encoder.name} cannot embed text; search by image, or encode the images with "
        f"--encoder {WORDS_ENCODER} or another that can"
    )


def _chunks(images: Iterator[Given | Item]) -> Iterator[tuple[int, list[Given | Item]]]:
    """Yield the images in chunks, each with the position of its first."""
    start = 0
    while chunk := [*islice(images, CHUNK_IMAGES)]:
        yield start, chunk
        start += len(chunk)


def _framed(
    images: Sequence[Given | Item], start: int, framing: Framing
) -> Iterable[Images | BadImage]:
    """Return each image's pixels (side, side, 3), or its error; read by threads."""

    def read(position: int, image: Given | Item) -> Images | BadImage:
        try:
            return frame_given(image, framing, f"{position + 1} of those given")
        except BadImage as error:
            return error

    if len(images) == 1:
        return [read(start, images[0])]
    with ThreadPoolExecutor(usable_cores()) as threads:
        return [*threads.map(read, range(start, start + len(images)), images)]
