"""Limits on the size of images, and on the memory and time that decoding them takes."""

import io
from collections.abc import Callable
from math import ceil
from typing import BinaryIO

from PIL import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import ROWSPERSTRIP, TILELENGTH, TILEWIDTH, TiffImageFile

from retrieval.contracts import Framing
from retrieval.errors import BadImage
from retrieval.images.pixels.framing import shorter_side
from retrieval.images.pixels.jpeg_header import JpegFrame
from retrieval.images.pixels.megapixels import DEFAULT_MEGAPIXELS, max_megapixels, max_pixels
from retrieval.images.pixels.quiet_pillow import quiet_libtiff

JPEG_BYTES_PER_PIXEL = 10
"""Memory that a JPEG may take, for each pixel of the limit on images. A progressive JPEG without
subsampling holds 6 bytes of coefficients while it is decoded, and 4 of pixels."""

MAX_RUN_LENGTH_PIXELS = 10_000_000
"""Maximum pixels of a run-length encoded BMP. Pillow expands it in Python, in about a second
for this many pixels, even from a short file."""

MAX_SCANNED_PIXELS = 2_000_000_000
"""Maximum of scans × pixels of a JPEG. A progressive JPEG has about ten scans. A scan of a hundred
bytes takes a tenth of a second for 100 megapixels. A `--max-megapixels` above 100 raises this limit
in proportion."""
_JPEG_DIVISORS = (8, 4, 2)  # sizes at which libjpeg can decode: an eighth, …
_SCAN = b"\xff\xda"  # at the start of a scan of a JPEG
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xDA), 0xFF))  # without a length, and padding
_BLOCK = 1 << 20


def reduce_jpeg(image: JpegImageFile, stream: BinaryIO, path: str, framing: Framing | None) -> None:
    """Set the size at which a JPEG is decoded. Raises BadImage if that exceeds a limit."""
    sampling = tuple((across, down) for _, across, down, _ in image.layer)
    frame = JpegFrame(*image.size, sampling, _is_one_scan(stream, image))
    divisor = jpeg_divisor(frame, framing)
    check_jpeg(frame, divisor, lambda: _scans(stream), path)
    if divisor > 1:
        image.draft(None, (frame.width // divisor, frame.height // divisor))


def jpeg_divisor(frame: JpegFrame, framing: Framing | None) -> int:
    """Return the divisor (1, 2, 4 or 8) of the size at which a JPEG is decoded for a framing."""
    if framing is None:
        return 1
    fits = min(frame.width, frame.height) // (2 * shorter_side(framing))
    return next((divisor for divisor in _JPEG_DIVISORS if divisor <= fits), 1)


def check_jpeg(frame: JpegFrame, divisor: int, scans: Callable[[], int], path: str) -> None:
    """Raise BadImage for a JPEG that exceeds a limit if it is decoded at a part of its size.

    scans: returns the number of scans in the file.
    """
    whole = frame.width * frame.height
    _check_scans(1 if frame.in_one_scan else scans(), whole, path)
    coefficients = 0 if frame.in_one_scan else _coefficient_bytes(frame)
    reduced = ceil(frame.width / divisor) * ceil(frame.height / divisor)
    check_size(reduced, path)
    needed, most = coefficients + 4 * reduced, JPEG_BYTES_PER_PIXEL * max_pixels()
    if needed > most:
        raise BadImage(
            path,
            f"a progressive JPEG of {whole:,} pixels takes {ceil(needed / 1e6):,} MB to decode, "
            f"and {most // 1_000_000:,} MB are allowed" + _remedy(needed / JPEG_BYTES_PER_PIXEL),
        )


def scans_in(content: bytes) -> int:
    """Return the number of scans of the JPEGs in a file."""
    return content.count(_SCAN)  # inside of scans, FF stands before 00 or D0 to D7


def check_other_format(image: ImageFile.ImageFile, stream: BinaryIO, path: str) -> None:
    """Raise BadImage for an image, other than a JPEG, that is too large to decode."""
    pixels = image.width * image.height
    in_run_lengths = bool(image.tile) and image.tile[0].codec_name == "bmp_rle"
    if in_run_lengths and pixels > MAX_RUN_LENGTH_PIXELS:
        raise BadImage(
            path,
            f"{pixels:,} pixels in run lengths; the maximum is {MAX_RUN_LENGTH_PIXELS:,}",
        )
    check_size(pixels, path)
    if isinstance(image, TiffImageFile):
        quiet_libtiff()
        piece = _piece(image)
        check_size(piece, path)
        if image.info.get("compression") in ("jpeg", "tiff_jpeg"):
            _check_scans(_scans(stream), piece, path)


def check_size(pixels: int, path: str) -> None:
    """Raise BadImage for more pixels than the limit."""
    if pixels > max_pixels():
        raise BadImage(path, f"{pixels:,} pixels; the maximum is {max_pixels():,}{_remedy(pixels)}")


def _remedy(pixels: float) -> str:
    """Return the advice that admits an image of this number of pixels."""
    return f" (raise it with --max-megapixels {ceil(pixels / 1e6)})"


def _check_scans(scans: int, pixels: int, path: str) -> None:
    most = int(MAX_SCANNED_PIXELS * max(1, max_megapixels() / DEFAULT_MEGAPIXELS))
    if scans * pixels > most:
        size = f"{scans:,} scans of {pixels:,} pixels" if scans > 1 else f"{pixels:,} pixels"
        raise BadImage(
            path,
            f"a JPEG with {size}; the maximum is {most:,} pixels in all scans"
            + _remedy(scans * pixels * DEFAULT_MEGAPIXELS * 1e6 / MAX_SCANNED_PIXELS),
        )


def _scans(stream: BinaryIO) -> int:
    """Return the number of scans of the JPEGs in the file."""
    place, scans, last = stream.tell(), 0, b""
    stream.seek(0)
    while block := stream.read(_BLOCK):
        scans += (last + block).count(_SCAN)  # inside of scans, FF stands before 00 or D0 to D7
        last = block[-1:]
    stream.seek(place)
    return scans


def _coefficient_bytes(frame: JpegFrame) -> int:
    """Return the bytes of all coefficients, which a JPEG of several scans holds in memory."""
    most = max(across for across, _ in frame.sampling) * max(down for _, down in frame.sampling)
    share = sum(across * down for across, down in frame.sampling) / most
    return int(2 * share * frame.width * frame.height)


def _piece(image: TiffImageFile) -> int:
    """Return the pixels of a tile or a strip, each of which is decoded by itself."""
    tags = [image.tag_v2.get(tag) for tag in (TILEWIDTH, TILELENGTH, ROWSPERSTRIP)]
    width, height, rows = (tag if isinstance(tag, int) else 0 for tag in tags)
    return width * height or image.width * min(rows or image.height, image.height)


def _is_one_scan(stream: BinaryIO, image: JpegImageFile) -> bool:
    """Return whether the first scan of a JPEG has all colors and bits, as of most photos."""
    if "progressive" in image.info:
        return False
    place, is_one = stream.tell(), False
    stream.seek(2)
    while len(begun := stream.read(4)) == 4 and begun[0] == 0xFF and begun[1] not in _BARE_MARKERS:
        if begun[:2] == _SCAN:
            is_one = stream.read(1) == bytes((image.layers,))
            break
        stream.seek(int.from_bytes(begun[2:], "big") - 2, io.SEEK_CUR)
    stream.seek(place)
    return is_one
