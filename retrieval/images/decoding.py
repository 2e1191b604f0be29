"""From an image file to the square of RGB pixels that an encoder sees.

`load` is the way of encoding, from item to pixels; `decode` and `frame` are its two halves.
All three may be called from several threads at once.
"""

import io
import logging
import os
import re
import struct
import threading
import warnings
import zlib
from contextlib import suppress
from functools import cache
from math import ceil
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ROWSPERSTRIP, TILELENGTH, TILEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from retrieval.contracts import Framing, Images
from retrieval.errors import BadImage, BadInput, Unreachable
from retrieval.images.megapixels import DEFAULT_MEGAPIXELS, max_megapixels
from retrieval.images.source import Item
from retrieval.images.transparency import apply_16_bit_key, has_color_key, on_ground
from retrieval.storage.places import Place, RemotePath

MANY = 500
"""Images for which it pays to load code that resizes faster: see `frame`."""

JPEG_BYTES_PER_PIXEL = 10
"""Memory that a JPEG may take, for each pixel of the limit on images. A progressive JPEG without
subsampling holds 6 bytes of coefficients while it is decoded, and 4 of pixels."""

MAX_RUN_LENGTHS = 10_000_000
"""Of BMP in run lengths, which Pillow expands in Python: so many in a second, be the file however
short."""

MAX_SCANNED = 2_000_000_000
"""Pixels that the scans of a JPEG go over together, of which progressive ones have some ten. A scan
may be a hundred bytes long, and takes a tenth of a second for 100 megapixels. A limit on images
above 100 megapixels raises it in proportion."""

# Pillow knows many more, some of which hand the file to other programs.
FORMATS = tuple(
    kind.format
    for kind, feature in (
        (JpegImageFile, "jpg"),
        (PngImageFile, "zlib"),
        (WebPImageFile, "webp"),
        (BmpImageFile, None),
        (GifImageFile, None),
        (TiffImageFile, None),
        (AvifImageFile, "avif"),
        (Jpeg2KImageFile, "jpg_2000"),
    )
    if feature is None or features.check(feature)
)
SUFFIXES = frozenset(suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS)
"""The endings of the files of a folder that are taken for images, in lower case."""

_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),  # JPEG 2000, in a file and bare
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heif", b"hevc", b"mif1", b"msf1")
_SCAN = b"\xff\xda"  # the marker at the start of a scan of a JPEG
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xDA), 0xFF))  # without a length, and padding
_BLOCK = 1 << 20
_EXIF_KEYS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
# What the decoders raise where the bytes lead them astray.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def load(item: Item, framing: Framing, many: bool = False) -> Images:
    """The pixels (side, side, 3) of the item, decoded and framed. Raises BadImage.

    many: of many images, see `frame`. A JPEG that is much larger than needed is decoded at a
    fraction of its size, of at least twice the size needed.
    """
    content = item.content
    side = framing.side
    if (
        isinstance(content, np.ndarray)
        and content.shape == (side, side, 3)
        and _shorter(framing) == side
    ):
        return content
    return frame(decode(content, item.path, framing), framing, many)


def decode(
    content: bytes | Place | Images | Image.Image | BadImage,
    path: str,
    framing: Framing | None = None,
) -> Image.Image:
    """The image in RGB, upright as its EXIF orientation says, in its own size.

    Of an animation it is the first frame. What is transparent is laid on the ground that
    `retrieval.images.transparency` chooses, nearly always white. 16 bit pixels keep their upper
    8 bits. With a `framing` that the image will get, a JPEG may come smaller
    than it is, but with at least twice the size that the framing needs.

    `path` is the image's name in errors. Raises BadImage for what is missing, empty, truncated,
    damaged, of no format in FORMATS, or larger than `max_megapixels()`: a JPEG at the size at which
    it is decoded. Limits of their own hold for BMP in run lengths (MAX_RUN_LENGTHS), the scans of a
    JPEG (MAX_SCANNED) and its coefficients (JPEG_BYTES_PER_PIXEL).
    """
    if isinstance(content, BadImage):
        raise content
    if isinstance(content, np.ndarray):
        return Image.fromarray(content).convert("RGB")
    if isinstance(content, Image.Image):
        return _converted(content, path)
    if isinstance(content, bytes):
        return _decode(io.BytesIO(content), len(content), path, framing)
    if isinstance(content, RemotePath):
        try:
            content = content.read_bytes()
        except FileNotFoundError:
            raise BadImage(path, "no such file") from None
        except Unreachable as error:
            if error.may_pass:
                raise
            raise BadImage(path, "no access") from error
        return _decode(io.BytesIO(content), len(content), path, framing)
    try:
        # Not a FIFO, on which opening would wait for ever.
        if not content.is_file() and content.exists():
            raise BadImage(path, "not a file")
        with content.open("rb") as file:
            return _decode(file, os.fstat(file.fileno()).st_size, path, framing)
    except FileNotFoundError:
        raise BadImage(path, "no such file") from None
    except OSError as error:
        raise BadImage(path, (error.strerror or str(error)).lower()) from error


def begins_like_image(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes is an image, HEIC included."""
    if head.startswith(b"RIFF"):
        return head[8:] == b"WEBP"
    if head.startswith(b"BM"):
        return head[6:10] == bytes(4)
    return head.startswith(_SIGNATURES) or (head[4:8] == b"ftyp" and head[8:] in _BRANDS)


def frame(image: Image.Image, framing: Framing, many: bool = False) -> Images:
    """The pixels (side, side, 3) of an RGB image, resized and cropped as `Framing` says.

    many: it is one of many, for which it pays to load code that resizes three times as fast; the
    pixels are the same. They equal what torchvision's Resize and CenterCrop make of it, bit by bit.
    Only of an image more than 16 times as long as wide the ends, which are far outside the square,
    are cut off before: resized whole, it could outgrow memory.
    """
    side, shorter = framing.side, _shorter(framing)
    if min(image.size) != shorter:
        image = _without_ends(image)
        width, height = image.size
        least = min(width, height)
        size = (shorter * width // least, shorter * height // least)
        if many:
            from retrieval.images.resizing import resized  # a second, and some more the first time

            return resized(image, size, _corner(size, side), side, framing.resample)
        image = image.resize(size, Image.Resampling[framing.resample.name])
    if image.size != (side, side):
        left, top = _corner(image.size, side)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)


def _corner(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The upper left corner of the central square."""
    return round((size[0] - side) / 2), round((size[1] - side) / 2)


def check_framed(images: Images, framing: Framing) -> None:
    """Raise BadInput unless the images are (n, side, side, 3) uint8, as an encoder wants them."""
    wanted = (framing.side, framing.side, 3)
    if images.ndim != 4 or images.shape[1:] != wanted or images.dtype != np.uint8:
        raise BadInput(
            f"images must be (n, {framing.side}, {framing.side}, 3) uint8, got {images.shape} "
            f"{images.dtype}; frame them with retrieval.images.frame"
        )


def _shorter(framing: Framing) -> int:
    """What the shorter side measures before the crop."""
    return round(framing.side / framing.crop)


def _without_ends(image: Image.Image) -> Image.Image:
    """The image, cut in the middle of its longer side to 16 times its shorter side."""
    width, height = image.size
    most = 16 * min(width, height)
    if max(width, height) <= most:
        return image
    x, y = max(0, (width - most) // 2), max(0, (height - most) // 2)
    with _hushed:
        return image.crop((x, y, x + min(width, most), y + min(height, most)))


def _decode(stream: BinaryIO, size: int, path: str, framing: Framing | None) -> Image.Image:
    if not size:
        raise BadImage(path, "empty file")
    try:
        with _hushed:
            image = _opened(stream)
            if isinstance(image, JpegImageFile):
                _reduce(image, stream, path, framing)
            else:
                _check_other(image, stream, path)
            image.load()
            if has_color_key(image):
                stream.seek(0)
                apply_16_bit_key(image, _opened(stream))
            return _rgb(_upright(image), path)
    except Image.DecompressionBombError as error:
        # "Image size (900000000 pixels) exceeds limit of 178956970 pixels, …", which ours is below.
        found = re.search(r"\((\d+) pixels", str(error))
        _check_size(int(found[1]) if found else _max_pixels() + 1, path)
        raise BadImage(path, "too many pixels") from error
    except UnidentifiedImageError:
        stream.seek(0)
        head = stream.read(12)
        known = head.startswith(_SIGNATURES) or head[4:12] in (b"ftypavif", b"ftypavis")
        raise BadImage(path, "truncated or damaged" if known else "not an image") from None
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.strerror:  # the file system's, not the decoder's
            raise BadImage(path, error.strerror.lower()) from error
        cut = "truncated" in str(error).lower()
        raise BadImage(path, "truncated" if cut else "truncated or damaged") from error


def _converted(image: Image.Image, path: str) -> Image.Image:
    """An image that Pillow has opened already, upright and in RGB; it stays as it is itself."""
    if 0 in image.size:
        raise BadImage(path, "no pixels")
    _check_size(image.width * image.height, path)
    try:
        with _hushed:
            return _rgb(_upright(image.copy()), path)
    except _DAMAGE as error:
        raise BadImage(path, "truncated or damaged") from error


def _opened(stream: BinaryIO) -> ImageFile.ImageFile:
    """Open the image as Image.open does, but for its limit on pixels: a JPEG may be reduced.

    Raises UnidentifiedImageError.
    """
    prefix = stream.read(16)
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(prefix) is True:
            stream.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(stream, "")
    raise UnidentifiedImageError


def _reduce(image: JpegImageFile, stream: BinaryIO, path: str, framing: Framing | None) -> None:
    """Set the size at which a JPEG is decoded. Raises BadImage where that takes too much."""
    whole = image.width * image.height
    in_rows = _is_one_scan(stream, image)
    _check_scans(1 if in_rows else _scans(stream), whole, path)
    coefficients = 0 if in_rows else _coefficient_bytes(image)
    if framing is not None:
        twice = 2 * _shorter(framing)
        if min(image.size) >= 2 * twice:
            image.draft(None, (twice, twice))
    reduced = image.width * image.height
    _check_size(reduced, path)
    needed, most = coefficients + 4 * reduced, JPEG_BYTES_PER_PIXEL * _max_pixels()
    if needed > most:
        raise BadImage(
            path,
            f"a progressive JPEG of {whole:,} pixels takes {ceil(needed / 1e6):,} MB to decode, "
            f"and {most // 1_000_000:,} MB are allowed" + _remedy(needed / JPEG_BYTES_PER_PIXEL),
        )


def _check_other(image: ImageFile.ImageFile, stream: BinaryIO, path: str) -> None:
    pixels = image.width * image.height
    in_run_lengths = bool(image.tile) and image.tile[0].codec_name == "bmp_rle"
    if in_run_lengths and pixels > MAX_RUN_LENGTHS:
        raise BadImage(path, f"{pixels:,} pixels; the most is {MAX_RUN_LENGTHS:,}")
    _check_size(pixels, path)
    if isinstance(image, TiffImageFile):
        _hush_libtiff()
        piece = _piece(image)
        _check_size(piece, path)
        if image.info.get("compression") in ("jpeg", "tiff_jpeg"):
            _check_scans(_scans(stream), piece, path)


def _max_pixels() -> int:
    return 1_000_000 * max_megapixels()


def _check_size(pixels: int, path: str) -> None:
    if pixels > _max_pixels():
        raise BadImage(path, f"{pixels:,} pixels; the most is {_max_pixels():,}{_remedy(pixels)}")


def _remedy(pixels: float) -> str:
    """Return the advice that admits an image of this number of pixels."""
    return f" (raise it with --max-megapixels {ceil(pixels / 1e6)})"


def _check_scans(scans: int, pixels: int, path: str) -> None:
    most = int(MAX_SCANNED * max(1, max_megapixels() / DEFAULT_MEGAPIXELS))
    if scans * pixels > most:
        raise BadImage(
            path,
            f"{scans:,} scans of {pixels:,} pixels in a JPEG"
            if scans > 1
            else f"a JPEG of {pixels:,} pixels; the most is {most:,}"
            + _remedy(pixels * DEFAULT_MEGAPIXELS * 1e6 / MAX_SCANNED),
        )


def _scans(stream: BinaryIO) -> int:
    """The number of scans of the JPEGs in the file."""
    place, scans, last = stream.tell(), 0, b""
    stream.seek(0)
    while block := stream.read(_BLOCK):
        scans += (last + block).count(_SCAN)  # inside of scans, FF stands before 00 or D0 to D7
        last = block[-1:]
    stream.seek(place)
    return scans


def _coefficient_bytes(image: JpegImageFile) -> int:
    """The memory of all coefficients, two bytes each, which a JPEG of several scans needs."""
    sampling = [(across, down) for _, across, down, _ in image.layer]
    most = max(across for across, _ in sampling) * max(down for _, down in sampling)
    share = sum(across * down for across, down in sampling) / most
    return int(2 * share * image.width * image.height)


def _piece(image: TiffImageFile) -> int:
    """The pixels of a tile or a strip, each of which is decoded by itself."""
    tags = [image.tag_v2.get(tag) for tag in (TILEWIDTH, TILELENGTH, ROWSPERSTRIP)]
    width, height, rows = (tag if isinstance(tag, int) else 0 for tag in tags)
    return width * height or image.width * min(rows or image.height, image.height)


@cache
def _hush_libtiff() -> None:
    """It writes what is wrong with a file to stderr, beside the error that Pillow raises."""
    import ctypes

    from PIL import _imaging

    with suppress(AttributeError, OSError):  # where it is linked in another way
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


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


def _upright(image: Image.Image) -> Image.Image:
    # Pillow turns a TIFF itself, as it loads it. An image is shown as it is by other programs
    # too where its EXIF data is damaged.
    if not _EXIF_KEYS.isdisjoint(image.info):
        with suppress(*_DAMAGE):
            ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image, path: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _gray_of_16_bits(image)
    if image.mode in ("I", "F"):
        # No range of values is agreed on, so that there is no telling what is white.
        raise BadImage(path, f"pixels of mode {image.mode}; convert it to 8 or 16 bit")
    if image.has_transparency_data:
        return on_ground(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray_of_16_bits(image: Image.Image) -> Image.Image:
    """Return the upper 8 bits, as Pillow takes them of colored images; convert() would clip.

    The value that the file says is transparent becomes alpha.
    """
    values = np.asarray(image)
    gray = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" in image.info:
        opaque = values != image.info["transparency"]
        gray.putalpha(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))
    return gray


class _Hush:
    """Keeps Pillow's warnings and its log from stderr while any thread is in it.

    Pillow's limit on pixels is lifted meanwhile if `max_megapixels` was set above it.

    They are about metadata, or say once more what BadImage says. `catch_warnings` is no way:
    it isn't safe in threads, and makes other modules' warnings show again. Handlers that a
    program has set up get the log all the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._filter = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
        self._logger = logging.getLogger("PIL")
        self._handler = logging.NullHandler()
        self._pillows_limit = Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                cast("list[object]", warnings.filters).insert(0, self._filter)
                self._logger.addHandler(self._handler)
                self._pillows_limit = Image.MAX_IMAGE_PIXELS
                if self._pillows_limit and 2 * self._pillows_limit < _max_pixels():
                    Image.MAX_IMAGE_PIXELS = None
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._logger.removeHandler(self._handler)
                Image.MAX_IMAGE_PIXELS = self._pillows_limit
                # It is gone where other code has put the filters back to what they were before.
                with suppress(ValueError):
                    cast("list[object]", warnings.filters).remove(self._filter)


_hushed = _Hush()
