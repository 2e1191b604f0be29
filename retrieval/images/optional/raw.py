"""Read camera RAW files with rawpy: the preview in them, or the sensor's pixels at half size."""

import io
import struct
from typing import Any, BinaryIO

import numpy as np
import rawpy
from PIL import Image

from retrieval.contracts import Framing
from retrieval.errors import BadImage
from retrieval.images.optional.formats import DecodeJpeg, PhotoHeader
from retrieval.images.pixels.decoding_limits import check_size

MIN_PREVIEW_SIDE = 1024
"""Pixels of the longer side that a preview must have where the image gets no framing."""

_TURNS = {
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.ROTATE_90,
    6: Image.Transpose.ROTATE_270,
}
"""LibRaw's `flip`, and the turn that makes the picture upright."""
_NO_EXIF = (OSError, ValueError, struct.error)
_BACK = {5: Image.Transpose.ROTATE_270, 6: Image.Transpose.ROTATE_90}


def read(
    stream: BinaryIO, path: str, framing: Framing | None, decode_jpeg: DecodeJpeg
) -> Image.Image:
    """Return the photo in sRGB, upright.

    It is the preview if its longer side has at least twice the side of the framing, or
    MIN_PREVIEW_SIDE pixels without a framing; else the sensor's pixels at half size. The limit on
    pixels applies to what is decoded. Raises BadImage.
    """
    stream.seek(0)
    try:
        with rawpy.RawPy() as raw:
            raw.open_buffer(stream)
            side = MIN_PREVIEW_SIDE if framing is None else 2 * framing.side
            image = _preview(raw, side, decode_jpeg)
            return _developed(raw, path) if image is None else image
    except (rawpy.LibRawError, rawpy.NotSupportedError, MemoryError) as error:
        raise BadImage(path, "truncated or damaged") from error


def read_header(stream: BinaryIO) -> PhotoHeader:
    """Return the size of the sensor's picture, and EXIF data.

    Most files are built as a TIFF, whose tags are the EXIF data. Those of others are in the
    preview, into which LibRaw writes them. Raises RuntimeError for a damaged file.
    """
    stream.seek(0)
    try:
        with rawpy.RawPy() as raw:
            raw.open_buffer(stream)
            width, height = _sensor_size(raw)
            if raw.sizes.flip in _BACK:
                width, height = height, width
            stream.seek(0)
            exif = Image.Exif()
            try:
                exif.load_from_fp(stream)
            except (SyntaxError, *_NO_EXIF):
                exif = _exif_of_preview(raw)
            return PhotoHeader(width, height, exif)
    except (rawpy.LibRawError, rawpy.NotSupportedError, MemoryError) as error:
        raise RuntimeError("damaged") from error


def _exif_of_preview(raw: Any) -> Image.Exif:
    try:
        with Image.open(io.BytesIO(raw.extract_thumb().data), formats=["JPEG"]) as image:
            return image.getexif()
    except (rawpy.LibRawError, rawpy.NotSupportedError, SyntaxError, TypeError, *_NO_EXIF):
        return Image.Exif()


def _preview(raw: Any, side: int, decode_jpeg: DecodeJpeg) -> Image.Image | None:
    """Return the preview, upright; None if it is missing, damaged or too small."""
    try:
        preview = raw.extract_thumb()
    except (rawpy.LibRawError, rawpy.NotSupportedError):
        return None
    flip = raw.sizes.flip
    if preview.format == rawpy.ThumbFormat.BITMAP:
        pixels = np.asarray(preview.data)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or max(pixels.shape[:2]) < side:
            return None
        image = Image.fromarray(pixels)
        is_turned = _is_portrait(image.size) != _is_portrait(_sensor_size(raw))
        return image if flip not in _TURNS or is_turned else image.transpose(_TURNS[flip])
    if preview.format != rawpy.ThumbFormat.JPEG:
        return None
    try:
        with Image.open(io.BytesIO(preview.data), formats=["JPEG"]) as opened:
            if max(opened.size) < side:
                return None
        # LibRaw writes the orientation into the EXIF data of a preview that has none.
        image = decode_jpeg(preview.data)
    except (BadImage, OSError, Image.DecompressionBombError):
        return None
    return _turned_once(image, _sensor_size(raw), flip)


def _turned_once(image: Image.Image, sensor: tuple[int, int], flip: int) -> Image.Image:
    """Undo the turn of a preview that was upright before it was turned by its orientation."""
    is_upright = _is_portrait(image.size) == (_is_portrait(sensor) != (flip in _BACK))
    return image if flip not in _BACK or is_upright else image.transpose(_BACK[flip])


def _sensor_size(raw: Any) -> tuple[int, int]:
    """Return (width, height) of the picture on the sensor, which is not upright."""
    return raw.sizes.width, raw.sizes.height


def _is_portrait(size: tuple[int, int]) -> bool:
    return size[1] > size[0]


def _developed(raw: Any, path: str) -> Image.Image:
    """Return the picture of the sensor, at half size and upright."""
    check_size(raw.sizes.raw_width * raw.sizes.raw_height, path)
    return Image.fromarray(raw.postprocess(half_size=True, use_camera_wb=True, output_bps=8))
