"""Damaged copies of a file, for tests of decoders."""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from retrieval.contracts import Framing
from retrieval.errors import BadImage
from retrieval.images import decode, frame

FRAMING = Framing(16)


def damaged(content: bytes, copies: int = 60, seed: int = 0) -> Iterator[bytes]:
    """Yield truncated copies, and as many in which a few bytes are replaced."""
    random = np.random.default_rng(seed)
    for number in range(copies):
        yield content[: len(content) * number // copies]
        changed = bytearray(content)
        end = len(content) if number % 2 else min(len(content), 600)  # headers are at the start
        for position in random.integers(end, size=1 + number % 7):
            changed[position] = random.choice((0, 127, 128, 255, random.integers(256)))
        yield bytes(changed)


def refused(content: bytes, name: str, copies: int = 60) -> int:
    """Return how many damaged copies are refused with BadImage. Any other exception is raised."""
    count = 0
    for copy in damaged(content, copies):
        count += 1
        with suppress(BadImage):
            assert frame(decode(copy, name, FRAMING), FRAMING).shape == (16, 16, 3)
            count -= 1
    return count
