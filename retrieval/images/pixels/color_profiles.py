"""Conversion of images with an ICC profile to sRGB, which encoders expect.

A profile is taken as sRGB if it moves no color by more than MAX_SRGB_DEVIATION. Such an image, and
one without a profile, keeps its pixels. A profile that is damaged, or is not for the image's color
space, is ignored.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from retrieval.contracts import Framing
from retrieval.images.pixels.framing import shorter_side

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

MAX_SRGB_DEVIATION = 3
"""Levels of 255 by which a profile that is called sRGB may differ from it. Vendors round the curve
and the primaries of sRGB in different ways."""

MAX_PROFILE_BYTES = 4 << 20  # the largest, for CMYK, have 3 MB
MAX_CACHED_PROFILES = 32
_GRID_LEVELS = 17  # levels of each channel at which a profile is compared with sRGB

_SPACES = {"L": "GRAY", "LA": "GRAY", "La": "GRAY", "1": "GRAY", "CMYK": "CMYK"}
_PROFILE = "icc_profile"

Conversion = Callable[[Image.Image], Image.Image]


def color_space(mode: str) -> str:
    """Return the color space of an image by its mode, as ICC profiles name it."""
    return "GRAY" if mode.startswith("I;16") else _SPACES.get(mode, "RGB ").strip()


def to_srgb(
    image: Image.Image, profile: object, space: str, framing: Framing | None = None
) -> Image.Image:
    """Return the image in sRGB, without a profile; or the same image if there is nothing to do.

    image: of mode RGB, RGBA or CMYK, which may be changed in place. profile: the bytes of an ICC
    profile. space: the color space of the file's pixels; gray ones may have become RGB. framing:
    that the image will get. What is converted is reduced first, to at least twice the size needed:
    the conversion of 12 megapixels takes longer than their decoding.
    """
    convert = _conversion_of(profile, space, image.mode)
    if convert is None:
        return image
    if framing is not None:
        factor = min(image.size) // (2 * shorter_side(framing))
        image = image.reduce(factor) if factor > 1 else image
    converted = convert(image)
    converted.info.pop(_PROFILE, None)
    return converted


def is_converted(profile: object, space: str, mode: str) -> bool:
    """Return whether `to_srgb` changes an image of this mode with this profile."""
    return _conversion_of(profile, space, mode) is not None


def _conversion_of(profile: object, space: str, mode: str) -> Conversion | None:
    if not isinstance(profile, bytes) or not 0 < len(profile) <= MAX_PROFILE_BYTES:
        return None
    return _conversion(profile, space, mode)


@lru_cache(MAX_CACHED_PROFILES)
def _conversion(profile: bytes, space: str, mode: str) -> Conversion | None:
    """Return the conversion to sRGB; None if the image stays as it is.

    It may be used in several threads at once.
    """
    if not features.check("littlecms2"):
        return None
    from PIL import ImageCms  # most images have no profile

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if opened.profile.xcolor_space.strip() != space:
            return None

        def transform(given: str, wanted: str) -> ImageCmsTransform:
            return ImageCms.buildTransform(
                opened, ImageCms.createProfile("sRGB"), given, wanted, ImageCms.Intent.PERCEPTUAL
            )

        if space == "GRAY":
            return _gray_conversion(transform("L", "RGB"), mode)
        if space == "CMYK":
            return transform("CMYK", "RGB").apply
        if _is_identity(transform("RGB", "RGB")):
            return None
        return transform(mode, mode).apply_in_place
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError):
        return None


def _is_identity(transform: ImageCmsTransform) -> bool:
    """Return whether the transform of RGB moves no color by more than MAX_SRGB_DEVIATION."""
    levels = np.linspace(0, 255, _GRID_LEVELS).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(_GRID_LEVELS, -1, 3)
    return _deviation(transform.apply(Image.fromarray(grid)), grid) <= MAX_SRGB_DEVIATION


def _gray_conversion(transform: ImageCmsTransform, mode: str) -> Conversion | None:
    """Return the conversion of a gray image that has become RGB or RGBA."""
    levels = np.arange(256, dtype=np.uint8)[None]
    grays = transform.apply(Image.fromarray(levels)).convert("L")
    if _deviation(grays, levels) <= MAX_SRGB_DEVIATION:
        return None
    table = np.asarray(grays).ravel().tolist()
    whole = 3 * table + ([*range(256)] if mode == "RGBA" else [])
    return lambda image: image.point(whole)


def _deviation(image: Image.Image, pixels: NDArray[np.uint8]) -> int:
    return int(np.abs(np.asarray(image).astype(int) - pixels).max())
