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
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
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
from retrieval.images.source import Item
from retrieval.storage.places import Place, RemotePath

MANY = 500
"""Images for which it pays to load code that resizes faster: see `frame`."""

MAX_PIXELS = 100_000_000
"""Larger images are refused by their header: they would take 300 MB and more to decode."""

MAX_RUN_LENGTHS = 10_000_000
"""Of BMP in run lengths, which Pillow expands in Python: so many in a second, be the file however
short."""

MAX_SCANNED = 20 * MAX_PIXELS
"""Pixels that the scans of a JPEG go over together, of which progressive ones have some ten. A scan
may be a hundred bytes long, and takes a tenth of a second for MAX_PIXELS."""

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
    content: bytes | Place | Images | BadImage, path: str, framing: Framing | None = None
) -> Image.Image:
    """The image in RGB, upright as its EXIF orientation says, in its own size.

    Of an animation it is the first frame. What is transparent is laid on white. 16 bit pixels
    keep their upper 8 bits. With a `framing` that the image will get, a JPEG may come smaller
    than it is, but with at least twice the size that the framing needs.

    `path` is the image's name in errors. Raises BadImage for what is missing, empty, truncated,
    damaged, of no format in FORMATS, or of more than MAX_PIXELS pixels (of BMP in run lengths,
    MAX_RUN_LENGTHS; of all scans of a JPEG, MAX_SCANNED).
    """
    if isinstance(content, BadImage):
        raise content
    if isinstance(content, np.ndarray):
        return Image.fromarray(content).convert("RGB")
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
    return image.crop((x, y, x + min(width, most), y + min(height, most)))


def _decode(stream: BinaryIO, size: int, path: str, framing: Framing | None) -> Image.Image:
    if not size:
        raise BadImage(path, "empty file")
    try:
        with _hushed:
            image = Image.open(stream, formats=FORMATS)
            in_python = bool(image.tile) and image.tile[0].codec_name == "bmp_rle"
            _check_size(
                image.width * image.height, path, MAX_RUN_LENGTHS if in_python else MAX_PIXELS
            )
            if isinstance(image, TiffImageFile):
                _hush_libtiff()
                _check_size(_piece(image), path)
            _check_scans(stream, image, path)
            if framing is not None:
                twice = 2 * _shorter(framing)
                if image.format == "JPEG" and min(image.size) >= 2 * twice:
                    image.draft(None, (twice, twice))
            image.load()
            return _rgb(_upright(image), path)
    except Image.DecompressionBombError as error:
        # Pillow saw the size first: "Image size (900000000 pixels) exceeds limit of …".
        found = re.search(r"\((\d+) pixels", str(error))
        _check_size(int(found[1]) if found else MAX_PIXELS + 1, path)
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


def _check_size(pixels: int, path: str, most: int = MAX_PIXELS) -> None:
    if pixels > most:
        raise BadImage(path, f"{pixels:,} pixels; the most is {most:,}")


def _check_scans(stream: BinaryIO, image: Image.Image, path: str) -> None:
    pixels = image.width * image.height
    if isinstance(image, TiffImageFile):
        if image.info.get("compression") not in ("jpeg", "tiff_jpeg"):
            return
        pixels = _piece(image)
    elif image.format not in ("JPEG", "MPO") or _is_one_scan(stream, image):
        return
    place, scans, last = stream.tell(), 0, b""
    stream.seek(0)
    while block := stream.read(_BLOCK):
        scans += (last + block).count(_SCAN)  # inside of scans, FF stands before 00 or D0 to D7
        last = block[-1:]
    stream.seek(place)
    if scans * pixels > MAX_SCANNED:
        raise BadImage(path, f"{scans:,} scans of {pixels:,} pixels in a JPEG")


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


def _is_one_scan(stream: BinaryIO, image: Image.Image) -> bool:
    """Whether a JPEG's first scan, behind whose header Pillow stands, has all colours and bits."""
    if image.format != "JPEG" or "progressive" in image.info:
        return False
    place, colours = stream.tell(), getattr(image, "layers", 0)
    stream.seek(max(0, place - 8 - 2 * colours))  # as long as the header of such a scan
    begun = stream.read(5)  # marker, length, and how many colours
    stream.seek(place)
    return begun[:2] == _SCAN and begun[4:] == bytes((colours,))


def _upright(image: Image.Image) -> Image.Image:
    # Pillow turns a TIFF itself, as it loads it. An image is shown as it is by other programs
    # too where its EXIF data is damaged.
    if not _EXIF_KEYS.isdisjoint(image.info):
        with suppress(*_DAMAGE):
            ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image, path: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _grey_of_16_bits(image).convert("RGB")
    if image.mode in ("I", "F"):
        # No range of values is agreed on, so that there is no telling what is white.
        raise BadImage(path, f"pixels of mode {image.mode}; convert it to 8 or 16 bit")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", pixels.size, "white")
        return Image.alpha_composite(white, pixels).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """The upper 8 bits, as Pillow takes them of coloured images; convert() would clip."""
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


class _Hush:
    """Keeps Pillow's warnings and its log from stderr while any thread is in it.

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

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                cast("list[object]", warnings.filters).insert(0, self._filter)
                self._logger.addHandler(self._handler)
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._logger.removeHandler(self._handler)
                # It is gone where other code has put the filters back to what they were before.
                with suppress(ValueError):
                    cast("list[object]", warnings.filters).remove(self._filter)


_hushed = _Hush()
