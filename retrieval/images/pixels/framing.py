"""Resize and crop an image to the square that an encoder sees."""

import numpy as np
from PIL import Image

from retrieval.contracts import Framing, Images
from retrieval.errors import BadInput
from retrieval.images.pixels.quiet_pillow import pillow_quiet


def frame(image: Image.Image, framing: Framing, many: bool = False) -> Images:
    """Return the pixels (side, side, 3) of an RGB image, resized and cropped as `Framing` says.

    many: it is one of many, for which it pays to load code that resizes three times as fast; the
    pixels are the same. They equal what torchvision's Resize and CenterCrop make of it, bit by bit.
    Only of an image more than 16 times as long as wide the ends, which are far outside the square,
    are cut off before: resized whole, it could outgrow memory.
    """
    side, shorter = framing.side, shorter_side(framing)
    if framing.squash:
        return _squashed(image, framing, many)
    if min(image.size) != shorter:
        image = _without_ends(image)
        width, height = image.size
        least = min(width, height)
        size = (shorter * width // least, shorter * height // least)
        if many:
            from retrieval.images.pixels.resizing import (
                resized,  # a second, and some more the first time
            )

            return resized(image, size, _corner(size, side), side, framing.resample)
        image = image.resize(size, Image.Resampling[framing.resample.name])
    if image.size != (side, side):
        left, top = _corner(image.size, side)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)


def _squashed(image: Image.Image, framing: Framing, many: bool) -> Images:
    """Return the pixels of the whole image, resized to a square."""
    size = (framing.side, framing.side)
    if image.size != size and many:
        from retrieval.images.pixels.resizing import resized

        return resized(image, size, (0, 0), framing.side, framing.resample)
    if image.size != size:
        image = image.resize(size, Image.Resampling[framing.resample.name])
    return np.asarray(image)


def _corner(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the upper left corner of the central square."""
    return round((size[0] - side) / 2), round((size[1] - side) / 2)


def check_framed(images: Images, framing: Framing) -> None:
    """Raise BadInput unless the images are (n, side, side, 3) uint8, as an encoder wants them."""
    wanted = (framing.side, framing.side, 3)
    if images.ndim != 4 or images.shape[1:] != wanted or images.dtype != np.uint8:
        raise BadInput(
            f"images must be (n, {framing.side}, {framing.side}, 3) uint8, got {images.shape} "
            f"{images.dtype}; frame them with retrieval.images.frame"
        )


def shorter_side(framing: Framing) -> int:
    """Return the length of the shorter side before the crop, in pixels."""
    return round(framing.side / framing.crop)


def _without_ends(image: Image.Image) -> Image.Image:
    """Return the image with its longer side cut to the middle 16 times its shorter side."""
    width, height = image.size
    most = 16 * min(width, height)
    if max(width, height) <= most:
        return image
    x, y = max(0, (width - most) // 2), max(0, (height - most) // 2)
    with pillow_quiet:
        return image.crop((x, y, x + min(width, most), y + min(height, most)))
