"""Small thumbnails of whole images, which sets of embeddings store.

The search for duplicates compares them, and so reads only images that may have a duplicate.
"""

import numpy as np
from PIL import Image

from retrieval.contracts import Images, Resample
from retrieval.storage.sets.manifest import THUMBNAIL_SIDE

REDUCING_GAP = 2.0
"""Pillow averages blocks of pixels first, to this many times the size, which takes less time."""


MIN_REDUCED_SIDE = int(2 * REDUCING_GAP * THUMBNAIL_SIDE)
"""Shortest side of images whose blocks of pixels, of 2 × 2 and more, are averaged first."""


def thumbnail(image: Image.Image | Images, many: bool = False) -> Images:
    """Return the whole RGB image scaled to (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3).

    image: of Pillow, or an array (height, width, 3). many: it is one of many, for which it pays to
    load faster code; the thumbnail is the same.
    """
    size, resample = (THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR
    if isinstance(image, np.ndarray) and many and min(image.shape[:2]) >= MIN_REDUCED_SIDE:
        from retrieval.images.pixels.reducing import reduced

        height, width, _ = image.shape
        across, down = (int(length / THUMBNAIL_SIDE / REDUCING_GAP) for length in (width, height))
        small = Image.fromarray(reduced(image, across, down))
        return np.asarray(small.resize(size, resample, (0, 0, width / across, height / down)))
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return np.asarray(image.resize(size, resample, reducing_gap=REDUCING_GAP))


def stretched(image: Image.Image, side: int) -> Images:
    """Return the whole image scaled to (side, side, 3)."""
    resample = Image.Resampling[Resample.BILINEAR.name]
    return np.asarray(image.resize((side, side), resample))
