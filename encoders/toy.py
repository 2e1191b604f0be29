"""The toy encoder: an image's mean color, readable by eye, for tests and first steps.

It takes words, too: the names of colors.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import ImageColor

from retrieval.contracts import Framing, Images, Json, Metric, Vectors
from retrieval.errors import BadInput

GRAY = (128, 128, 128)


class Toy:
    """`toy`: mean red, green and blue from 0 to 1, for the Euclidean distance."""

    name = "toy"
    dim = 3
    metric = Metric.EUCLIDEAN
    framing = Framing(side=8)
    config: ClassVar[dict[str, Json]] = {}
    fingerprint = hashlib.sha256(b"toy 1: mean RGB of 8 x 8 pixels").hexdigest()

    def __init__(self, device: str = "auto") -> None:
        """Create the encoder; the device is ignored."""

    def encode(self, images: Images) -> Vectors:
        """Return the mean colors (n, 3) of images (n, 8, 8, 3)."""
        side = self.framing.side
        if images.shape[1:] != (side, side, 3):
            raise BadInput(f"images must be (n, {side}, {side}, 3), got {images.shape}")
        means: Vectors = images.reshape(len(images), side * side, 3).mean(axis=1, dtype=np.float32)
        return means / np.float32(255)

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Return the mean (n, 3) of the colors that each text names, as CSS does; else gray."""
        colors = [_colors(text) or [GRAY] for text in texts]
        means = [np.mean(of_text, axis=0, dtype=np.float32) for of_text in colors]
        return np.array(means, np.float32).reshape(-1, 3) / np.float32(255)


def _colors(text: str) -> list[tuple[int, ...]]:
    words = re.findall("[a-z]+", text.lower())
    return [ImageColor.getrgb(word) for word in words if word in ImageColor.colormap]
