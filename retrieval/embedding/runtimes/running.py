"""An encoder whose exported network a runtime runs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from retrieval.contracts import Encoder, Images, Vectors
from retrieval.embedding.runtimes.contract import Run
from retrieval.images import check_framed
from retrieval.runtime.threads import usable_cores
from retrieval.storage.sets.made_by import MadeBy

Encode = Callable[[Images], Vectors]
Waiting = Callable[[], Vectors]

IMAGES_PER_CALL = 8
"""Images of one call, whose feature maps stay in the caches of a core."""


class Threaded:
    """A network that each core runs on its own few images.

    Threads that decode images meanwhile get their share of the cores, because no core waits for
    another one.
    """

    def __init__(self, run: Run, dim: int) -> None:
        """run: returns the embeddings (n, dim) of up to IMAGES_PER_CALL images."""
        self._run = run
        self._dim = dim
        self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="network")

    def __call__(self, images: Images) -> Vectors:
        """Return the embeddings (n, dim) of any number of images (n, side, side, 3)."""
        return self.started(images)()

    def started(self, images: Images) -> Waiting:
        """Start to encode images (n, side, side, 3); return what waits for their embeddings."""
        starts = range(0, len(images), IMAGES_PER_CALL)
        parts = [images[start : start + IMAGES_PER_CALL] for start in starts]
        running = [self._threads.submit(self._run, part) for part in parts]
        none = np.empty((0, self._dim), np.float32)
        return lambda: np.concatenate([none, *(part.result() for part in running)])


class Running:
    """An encoder, run in the way that was chosen. All but `encode` is that of the encoder."""

    def __init__(self, encoder: Encoder, encode: Encode, made_by: MadeBy) -> None:
        """Run `encode` in place of the encoder's own. made_by: facts about it."""
        self.name = encoder.name
        self.dim = encoder.dim
        self.metric = encoder.metric
        self.framing = encoder.framing
        self.config = encoder.config
        self.fingerprint = encoder.fingerprint
        self.made_by = made_by
        self._encode = encode

    def encode(self, images: Images) -> Vectors:
        """Return embeddings (n, dim) of images (n, side, side, 3). Raises BadInput for others."""
        check_framed(images, self.framing)
        return self._encode(images)

    def started(self, images: Images) -> Waiting:
        """Start to encode images, if that can go on meanwhile; return what waits for the vectors.

        Cores that are done with one batch go on with the next one then.
        """
        if isinstance(self._encode, Threaded):
            check_framed(images, self.framing)
            return self._encode.started(images)
        vectors = self.encode(images)
        return lambda: vectors
