"""Read HEIC and HEIF files with pillow-heif."""

from typing import BinaryIO, cast

from PIL import Image
from pillow_heif import HeifImageFile

from retrieval.contracts import Framing
from retrieval.images.optional.formats import DecodeJpeg, PhotoHeader
from retrieval.images.pixels.decoding_limits import check_size


def read(
    stream: BinaryIO, path: str, framing: Framing | None, decode_jpeg: DecodeJpeg
) -> Image.Image:
    """Return the primary image, upright, in 8 bits. Raises BadImage for too many pixels."""
    stream.seek(0)
    image = cast(Image.Image, HeifImageFile(stream, ""))
    check_size(image.width * image.height, path)
    image.load()
    return image


def read_header(stream: BinaryIO) -> PhotoHeader:
    """Return size and EXIF data of the primary image."""
    stream.seek(0)
    image = cast(Image.Image, HeifImageFile(stream, ""))
    return PhotoHeader(image.width, image.height, image.getexif())
