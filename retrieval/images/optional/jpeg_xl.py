"""Read JPEG XL files with pillow-jxl-plugin."""

from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from PIL import Image
from pillow_jxl import Decoder

from retrieval.contracts import Framing
from retrieval.errors import BadImage
from retrieval.images.optional.formats import DecodeJpeg, PhotoHeader
from retrieval.images.pixels.decoding_limits import check_size

_CODESTREAM = b"\xff\x0a"
_HEADER_BYTES = 16  # the size of the image is in the first 11
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIZE_BITS = (9, 13, 18, 30)


def read(
    stream: BinaryIO, path: str, framing: Framing | None, decode_jpeg: DecodeJpeg
) -> Image.Image:
    """Return the image, upright. Raises BadImage for too many pixels.

    A JPEG that was recompressed is restored, and decoded as the JPEG that it was.
    """
    stream.seek(0)
    content = stream.read()
    width, height = image_size(content)
    check_size(width * height, path)
    is_jpeg, info, data, profile, _ = Decoder(num_threads=1)(content)
    if is_jpeg:
        return decode_jpeg(bytes(data))
    if (info.width, info.height) not in ((width, height), (height, width)):
        raise BadImage(path, "truncated or damaged")
    # The codestream has the orientation, and the decoder applies it. That of EXIF is not used.
    image = Image.frombytes(info.mode, (info.width, info.height), data)
    if profile:
        image.info["icc_profile"] = profile
    return image


def image_size(content: bytes) -> tuple[int, int]:
    """Return (width, height) from the header of a JPEG XL file (ISO/IEC 18181-1, SizeHeader).

    Raises ValueError for a file without a header.
    """
    head = content[:_HEADER_BYTES]
    if not head.startswith(_CODESTREAM):
        head = _codestream_head(content)
    if not head.startswith(_CODESTREAM) or len(head) < 4:
        raise ValueError("no codestream")
    bits = _Bits(int.from_bytes(head[2:], "little"))
    is_small = bits.take(1)

    def length() -> int:
        return 8 * (bits.take(5) + 1) if is_small else bits.take(_SIZE_BITS[bits.take(2)]) + 1

    height = length()
    ratio = bits.take(3)
    if not ratio:
        return length(), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


class _Bits:
    """Bits of a number, the lowest first."""

    def __init__(self, value: int) -> None:
        self._value = value

    def take(self, count: int) -> int:
        """Remove this number of bits and return them."""
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        return taken


def read_header(stream: BinaryIO) -> PhotoHeader:
    """Return the size, and the EXIF data if it is not compressed."""
    stream.seek(0)
    content = stream.read()
    exif = Image.Exif()
    for kind, body in _boxes(content):
        if kind == b"Exif":
            with suppress(Exception):  # whatever Pillow raises for damaged EXIF data
                exif.load(b"Exif\0\0" + _tiff(body.tobytes()))
    return PhotoHeader(*image_size(content), exif)


def _tiff(body: bytes) -> bytes:
    """Return the EXIF data of a box, which begins with an offset; some encoders leave it out."""
    if body.startswith((b"II*\0", b"MM\0*")):
        return body
    return body[4 + int.from_bytes(body[:4], "big") :]


def _codestream_head(content: bytes) -> bytes:
    """Return the first bytes of the codestream in a container of boxes."""
    found = b""
    for kind, body in _boxes(content):
        if kind in (b"jxlc", b"jxlp"):
            start = 4 if kind == b"jxlp" else 0  # a part begins with its number
            found += body[start : start + _HEADER_BYTES]
        if len(found) >= _HEADER_BYTES:
            break
    return found


def _boxes(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the kind and the body of each box of a container."""
    view, at = memoryview(content), 0
    while at + 8 <= len(content):
        size, kind, begin = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8], 8
        if size == 1:  # the size has 64 bits
            size, begin = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        end = at + size if size else len(content)
        if end < at + begin:
            return
        yield kind, view[at + begin : end]
        at = end
