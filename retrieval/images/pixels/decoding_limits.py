"""Limits on the size of images, and on the memory and time that decoding them takes."""

import io
from math import ceil
from typing import BinaryIO

from PIL import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import ROWSPERSTRIP, TILELENGTH, TILEWIDTH, TiffImageFile

from retrieval.contracts import Framing
from retrieval.errors import BadImage
from retrieval.images.pixels.framing import shorter_side
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
_SCAN = b"\xff\xda"  # the marker at the start of a scan of a JPEG
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xDA), 0xFF))  # without a length, and padding
_BLOCK = 1 << 20


def reduce_jpeg(image: JpegImageFile, stream: BinaryIO, path: str, framing: Framing | None) -> None:
    """Set the size at which a JPEG is decoded. Raises BadImage if that exceeds a limit."""
    whole = image.width * image.height
    in_rows = _is_one_scan(stream, image)
    _check_scans(1 if in_rows else _scans(stream), whole, path)
    coefficients = 0 if in_rows else _coefficient_bytes(image)
    if framing is not None:
        twice = 2 * shorter_side(framing)
        if min(image.size) >= 2 * twice:
            image.draft(None, (twice, twice))
    reduced = image.width * image.height
    check_size(reduced, path)
    needed, most = coefficients + 4 * reduced, JPEG_BYTES_PER_PIXEL * max_pixels()
    if needed > most:
        raise BadImage(
            path,
            f"a progressive JPEG of {whole:,} pixels takes {ceil(needed / 1e6):,} MB to decode, "
            f"and {most // 1_000_000:,} MB are allowed" + _remedy(needed / JPEG_BYTES_PER_PIXEL),
        )


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


def _coefficient_bytes(image: JpegImageFile) -> int:
    """Return the bytes of all coefficients, which a JPEG of several scans holds in memory."""
    sampling = [(across, down) for _, across, down, _ in image.layer]
    most = max(across for across, _ in sampling) * max(down for _, down in sampling)
    share = sum(across * down for across, down in sampling) / most
    return int(2 * share * image.width * image.height)


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
