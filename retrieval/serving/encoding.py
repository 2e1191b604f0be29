"""The encoder of one or several indices that are served."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from retrieval.contracts import Encoder, TextEncoder, Vectors
from retrieval.embedding.embed import Embedder
from retrieval.embedding.onnx_cache import ExportFacts, export_folder
from retrieval.errors import BadData, BadImage, BadInput, RetrError


class BadUpload(BadImage):
    """An uploaded image that cannot be read."""

    def __init__(self, reason: str) -> None:
        super().__init__("that was sent", reason)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Vectors of pictures and of words, (n, dim) each.

    milliseconds: time to decode and encode. notes: sentences about texts that are too long.
    """

    pictures: Vectors
    words: Vectors
    milliseconds: float
    notes: list[str]


class Encoding:
    """An encoder, opened once. It encodes one query at a time, as that uses all cores."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.takes_words: bool | None = None
        """Whether the encoder takes words; None until it was opened."""

    def open(self) -> Encoder:
        """Return the encoder, opened. Its text tower, if it has one, is open too.

        Raises the errors of `Embedder.encoder`.
        """
        with self.embedder.lock:
            encoder = self.embedder.encoder
            if self.takes_words is None:
                takes_words = isinstance(encoder, TextEncoder) or _exports_words(encoder)
                if takes_words:
                    self.embedder.embed_texts([])
                self.takes_words = takes_words
            return encoder

    def encoded(self, pictures: Sequence[BinaryIO | str], words: Sequence[str]) -> Encoded:
        """Return the vectors of pictures, uploads or paths, and of words.

        Raises BadUpload for an upload that cannot be read, BadImage for a path, BadInput for words
        that the encoder does not take, and RetrError, a failure of the service, if the encoder
        cannot be opened.
        """
        notes: list[str] = []
        with self.embedder.lock:  # the wait for it is not part of the time
            began = time.perf_counter()
            try:
                encoder = self.open()
            except BadInput as error:
                raise RetrError(str(error)) from error
            # An export without words knows that it takes none; opening by name would import torch.
            embedder = self.embedder if self.takes_words else Embedder.of(encoder)
            of_words = embedder.embed_texts(words, notes.append) if words else None
            embedded = self.embedder.embed(pictures)
            for position, bad in embedded.errors.items():
                raise bad if isinstance(pictures[position], str) else BadUpload(bad.reason)
            milliseconds = 1000 * (time.perf_counter() - began)
        none = embedded.vectors[:0]
        return Encoded(
            embedded.vectors, none if of_words is None else of_words, milliseconds, notes
        )


def _exports_words(encoder: Encoder) -> bool:
    """Return whether the export of this encoder in the user's cache has a text tower."""
    try:
        return ExportFacts.read(export_folder(encoder.fingerprint)).text is not None
    except BadData:
        return False
