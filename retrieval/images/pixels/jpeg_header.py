"""Headers of ordinary JPEGs, read once for size, EXIF data, profile and all that decoding needs.

`jpeg_header` takes a fraction of Pillow's time. It returns None for anything unusual, which it may
read otherwise than Pillow does. Pillow then decides about the file, and words its errors.
"""

import struct
from typing import NamedTuple

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from retrieval.images.pixels.quiet_pillow import pillow_quiet

_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive, in Huffman codes
_PROGRESSIVE = 0xC2
_SCAN = 0xDA
_APP0, _APP1, _APP2, _APP13, _APP14 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
_QUANTIZATION = 0xDB
# Huffman tables, restart intervals, comments and further application segments.
_PASSED_OVER = frozenset((0xC4, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF))
_KNOWN = _PASSED_OVER | _FRAMES | {_SCAN, _QUANTIZATION, _APP0, _APP1, _APP2, _APP13, _APP14}

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_ICC_HEADER_BYTES = len(_ICC) + 2  # two bytes number the parts of a profile
_NUMBER_TAGS = (
    ExifTags.Base.Orientation,
    ExifTags.Base.XResolution,
    ExifTags.Base.ResolutionUnit,
)


class JpegFrame(NamedTuple):
    """Size of a JPEG as it is stored, and how its pixels are coded.

    sampling: horizontal and vertical factor of each color. in_one_scan: whether the first scan has
    all colors and bits.
    """

    width: int
    height: int
    sampling: tuple[tuple[int, int], ...]
    in_one_scan: bool


class JpegHeader(NamedTuple):
    """Header of an ordinary JPEG of 1 or 3 colors.

    orientation: from EXIF or XMP, 1 to 8 if it is valid; 1 without one. exif: None if the file has
    neither. profile: its ICC profile.
    """

    frame: JpegFrame
    orientation: int
    exif: Image.Exif | None
    profile: bytes | None


class _Segments:
    """Segments of a JPEG other than its frame and its scans, collected as Pillow collects them."""

    def __init__(self) -> None:
        self.info: dict[str, bytes] = {}
        self.profile_parts: list[bytes] = []

    def add(self, marker: int, data: bytes) -> bool:
        """Add a segment. Return whether Pillow reads it without an error, and as a JPEG."""
        if marker == _APP1:
            self._add_metadata(data)
        elif marker == _APP2:
            if data.startswith(_ICC):
                self.profile_parts.append(data)
                return len(data) >= _ICC_HEADER_BYTES
            return not data.startswith(b"MPF\0")  # several pictures
        elif marker == _APP13:
            return _is_read_photoshop(data)
        elif marker == _QUANTIZATION:
            return _has_whole_tables(data)
        elif marker == _APP0:
            return len(data) >= 7 or not data.startswith(b"JFIF")
        elif marker == _APP14:
            return len(data) >= 7 or not data.startswith(b"Adobe")
        return True

    def _add_metadata(self, data: bytes) -> None:
        if data.startswith(b"Exif\0\0"):
            known = self.info.get("exif")
            self.info["exif"] = data if known is None else known + data[6:]
        elif data.startswith(_XMP):
            self.info["xmp"] = data[len(_XMP) :]

    def profile(self) -> bytes | None:
        """Return the ICC profile; None without one, or if parts of it are missing."""
        parts = sorted(self.profile_parts)
        if not parts or parts[0][_ICC_HEADER_BYTES - 1] != len(parts):
            return None
        return b"".join(part[_ICC_HEADER_BYTES:] for part in parts)

    def exif(self) -> Image.Exif:
        """Return EXIF data with the orientation that XMP may state. Raises what Pillow raises."""
        image = Image.Image()
        image.info.update(self.info)
        return image.getexif()


def jpeg_header(content: bytes) -> JpegHeader | None:
    """Return the header of the JPEG; None if it is not a JPEG, or one that is left to Pillow."""
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    segments, frame, at, end = _Segments(), None, 2, len(content)
    while at + 4 <= end:
        marker, start = content[at + 1], at + 4
        stop = at + 2 + int.from_bytes(content[at + 2 : start], "big")
        if content[at] != 0xFF or marker not in _KNOWN or not start <= stop <= end:
            return None
        if marker == _SCAN:
            if frame is None or start == stop:
                return None
            in_one_scan = frame.in_one_scan and content[start] == len(frame.sampling)
            return _header(frame._replace(in_one_scan=in_one_scan), segments)
        if marker in _FRAMES:
            known, frame = frame, _frame(content[start:stop], marker)
            if known is not None or frame is None:
                return None
        elif marker not in _PASSED_OVER:
            data = content[start:stop]
            # Pillow ignores a profile that follows the size.
            if (frame and data.startswith(_ICC)) or not segments.add(marker, data):
                return None
        at = stop
    return None


def _frame(data: bytes, marker: int) -> JpegFrame | None:
    """Return the size and the colors of a frame; None unless it has 1 or 3 colors of 8 bits."""
    if len(data) not in (9, 15) or data[0] != 8 or len(data) != 6 + 3 * data[5]:
        return None
    height, width = struct.unpack_from(">HH", data, 1)
    sampling = tuple((data[at] >> 4, data[at] & 15) for at in range(7, len(data), 3))
    if not width or not height or not all(1 <= each <= 4 for pair in sampling for each in pair):
        return None
    return JpegFrame(width, height, sampling, marker != _PROGRESSIVE)


def _header(frame: JpegFrame, segments: _Segments) -> JpegHeader | None:
    if not segments.info:
        return JpegHeader(frame, 1, None, segments.profile())
    try:
        with pillow_quiet:
            exif = segments.exif()
            # Pillow calculates with the density as it opens the file.
            orientation, *density = (exif.get(tag, 1) for tag in _NUMBER_TAGS)
    except Exception:  # whatever Pillow raises for damaged EXIF data
        return None
    if not all(isinstance(value, int | float | IFDRational) for value in (orientation, *density)):
        return None
    return JpegHeader(frame, orientation, exif, segments.profile())


def _has_whole_tables(data: bytes) -> bool:
    """Return whether a segment consists of tables of 64 numbers, of 1 or 2 bytes each."""
    at = 0
    while at < len(data):
        at += 129 if data[at] >> 4 else 65
    return at == len(data)


def _is_read_photoshop(data: bytes) -> bool:
    """Return whether Pillow reads the resources of Photoshop in a segment without an error."""
    at, end = 14, len(data)
    if not data.startswith(b"Photoshop 3.0\0"):
        return True
    while data[at : at + 4] == b"8BIM":
        at += 6
        if at >= end:
            return at > end  # Pillow stops at half a code, and fails without a name
        at += 1 + data[at]
        at += at & 1
        if at + 4 > end:
            break
        at += 4 + int.from_bytes(data[at : at + 4], "big")
        at += at & 1
    return True
