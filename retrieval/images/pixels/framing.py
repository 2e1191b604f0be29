"""Resize and crop an image to the square that an encoder sees."""

import numpy as np
from PIL import Image

from retrieval.contracts import Framing, Images
from retrieval.errors import BadInput
from retrieval.images.pixels.quiet_pillow import pillow_quiet


def frame(
    image: Image.Image | Images,
    framing: Framing,
    many: bool = False,
    out: Images | None = None,
) -> Images:
    """Return the pixels (side, side, 3) of an RGB image, resized and cropped as `Framing` says.

    image: of Pillow, or an array (height, width, 3). many: it is one of many, for which it pays to
    load code that resizes three times as fast; the pixels are the same. They equal what
    torchvision's Resize and CenterCrop make of it, bit by bit. Only of an image more than 16 times
    as long as wide the ends, which are far outside the square, are cut off before: resized whole,
    it could outgrow memory. out: contiguous array that the pixels are written to, and that is
    returned.
    """
    side, shorter = framing.side, shorter_side(framing)
    if not framing.squash and min(_size(image)) != shorter:
        image = _without_ends(image)
    size = _resized_size(_size(image), framing)
    corner = _corner(size, side)
    if size != _size(image) and many:
        from retrieval.images.pixels.resizing import (
            resized,  # a second, and some more the first time
        )

        return resized(image, size, corner, side, framing.resample, out)
    if size != _size(image):
        image = _pillow(image).resize(size, Image.Resampling[framing.resample.name])
    if size != (side, side):
        left, top = corner
        image = _pillow(image).crop((left, top, left + side, top + side))
    pixels = np.asarray(image)
    if out is None:
        return pixels
    out[...] = pixels
    return out


def _resized_size(size: tuple[int, int], framing: Framing) -> tuple[int, int]:
    """Return (width, height) of an image of this size after it is resized."""
    if framing.squash:
        return framing.side, framing.side
    shorter, least = shorter_side(framing), min(size)
    return shorter * size[0] // least, shorter * size[1] // least


def _size(image: Image.Image | Images) -> tuple[int, int]:
    return (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size


def _pillow(image: Image.Image | Images) -> Image.Image:
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


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


def _without_ends(image: Image.Image | Images) -> Image.Image | Images:
    """Return the image with its longer side cut to the middle 16 times its shorter side."""
    width, height = _size(image)
    most = 16 * min(width, height)
    if max(width, height) <= most:
        return image
    x, y = max(0, (width - most) // 2), max(0, (height - most) // 2)
    with pillow_quiet:
        return _pillow(image).crop((x, y, x + min(width, most), y + min(height, most)))
