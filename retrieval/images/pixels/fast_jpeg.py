"""Decode ordinary JPEGs in memory straight to arrays, with the pixels that Pillow makes of them.

simplejpeg and Pillow both use libjpeg-turbo with its exact DCT. simplejpeg takes the whole file at
once and writes three bytes a pixel; Pillow reads pieces of 64 KB and copies each row to four. It
is used for what `jpeg_header` calls ordinary. It refuses files about which libjpeg has a warning.
`decode` reads all others, and decides about damaged ones.
"""

import io
from math import ceil

import simplejpeg
from PIL import Image

from retrieval.contracts import Framing, Images
from retrieval.errors import BadImage
from retrieval.images.optional.formats import HEAD_BYTES, format_of
from retrieval.images.pixels.color_profiles import is_converted, to_srgb
from retrieval.images.pixels.decoding import decode
from retrieval.images.pixels.decoding_limits import check_jpeg, jpeg_divisor, scans_in
from retrieval.images.pixels.jpeg_header import JpegHeader
from retrieval.images.pixels.quiet_pillow import pillow_quiet
from retrieval.storage.places import Place

MIN_FAST_SIDE = 16
"""Shortest side, in pixels, of JPEGs for simplejpeg. The sizes of smaller ones do not tell apart
the scales at which it can decode."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""


def decode_fast(
    content: bytes | Place | Images | Image.Image | BadImage,
    path: str,
    framing: Framing,
    header: JpegHeader | None,
) -> Images | Image.Image:
    """Return the pixels of `decode`, of an ordinary JPEG as an array (height, width, 3) if it is
    upright and in sRGB.

    header: of a JPEG, from `jpeg_header`. Raises BadImage as `decode` does.
    """
    if header is not None and isinstance(content, bytes):
        pixels = _pixels(content, path, framing, header)
        if pixels is not None:
            return _upright_srgb(pixels, header, framing)
    return decode(content, path, framing)


def _pixels(content: bytes, path: str, framing: Framing, header: JpegHeader) -> Images | None:
    """Return the pixels as they are stored; None if Pillow has to decode them."""
    frame = header.frame
    is_small = min(frame.width, frame.height) < MIN_FAST_SIDE
    if is_small or format_of(io.BytesIO(content[:HEAD_BYTES]), path) is not None:
        return None
    divisor = jpeg_divisor(frame, framing)
    check_jpeg(frame, divisor, lambda: scans_in(content), path)
    height, width = ceil(frame.height / divisor), ceil(frame.width / divisor)
    try:
        pixels: Images = simplejpeg.decode_jpeg(content, min_height=height, min_width=width)
    except (ValueError, RuntimeError):
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _upright_srgb(pixels: Images, header: JpegHeader, framing: Framing) -> Images | Image.Image:
    turn = _TURNS.get(header.orientation)
    space = "GRAY" if len(header.frame.sampling) == 1 else "RGB"
    has_profile = is_converted(header.profile, space, "RGB")
    if turn is None and not has_profile:
        return pixels
    # Pillow turns pixels of four bytes six times as fast as numpy turns those of three.
    with pillow_quiet:
        image = Image.fromarray(pixels)
        image = image if turn is None else image.transpose(turn)
        return to_srgb(image, header.profile, space, framing) if has_profile else image
