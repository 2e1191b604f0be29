"""Small thumbnails of whole images, which sets of embeddings store.

The search for duplicates compares them, and so reads only images that may have a duplicate.
"""

import numpy as np
from PIL import Image

from retrieval.contracts import Images, Resample
from retrieval.storage.sets.manifest import THUMBNAIL_SIDE

REDUCING_GAP = 2.0
"""Pillow averages blocks of pixels first, to this many times the size, which takes less time."""


def thumbnail(image: Image.Image) -> Images:
    """Return the whole RGB image scaled to (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)."""
    size, resample = (THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR
    return np.asarray(image.resize(size, resample, reducing_gap=REDUCING_GAP))


def stretched(image: Image.Image, side: int) -> Images:
    """Return the whole image scaled to (side, side, 3)."""
    resample = Image.Resampling[Resample.BILINEAR.name]
    return np.asarray(image.resize((side, side), resample))
