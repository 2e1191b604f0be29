"""Decode image files to RGB pixels.

`load` is the way of encoding, from item to pixels; `decode` and `frame` are its two halves.
All three may be called from several threads at once.
"""

import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from retrieval.contracts import Framing, Images
from retrieval.errors import BadImage, Unreachable
from retrieval.images.optional.formats import (
    VIDEO,
    OptionalFormat,
    PhotoHeader,
    check_file_size,
    format_of,
    install_command,
    installed_suffixes,
)
from retrieval.images.pixels.color_profiles import color_space, to_srgb
from retrieval.images.pixels.decoding_limits import check_other_format, check_size, reduce_jpeg
from retrieval.images.pixels.framing import frame, shorter_side
from retrieval.images.pixels.megapixels import max_pixels
from retrieval.images.pixels.quiet_pillow import pillow_quiet
from retrieval.images.pixels.transparency import apply_16_bit_key, has_color_key, on_background
from retrieval.images.source import Item
from retrieval.storage.places import Place, RemotePath

FAST_RESIZE_IMAGES = 500
"""Number of images from which loading the faster code for resizing pays; see `frame`."""

MAX_HELD_BYTES = 64 << 20  # a larger file is not read into memory before it is decoded

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
PILLOW_SUFFIXES = frozenset(
    # A file of several pictures is a JPEG, and its first picture is read.
    (*(suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS), ".mpo")
)
"""Suffixes of image files that need no package but Pillow, in lower case."""

SUFFIXES = PILLOW_SUFFIXES | installed_suffixes()
"""Suffixes of image files in a folder, in lower case; with those of optional formats whose packages
are installed."""

_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),  # JPEG 2000, in a file and bare
    b"\0\0\0\x0cJXL ",
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heif", b"hevc", b"mif1", b"msf1")
_EXIF_KEYS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
# Exceptions that the decoders raise for damaged files.
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
    """Return the pixels (side, side, 3) of the item, decoded and framed. Raises BadImage.

    many: of many images, see `frame`. A JPEG that is much larger than needed is decoded at a
    fraction of its size, of at least twice the size needed.
    """
    content = item.content
    side = framing.side
    if (
        isinstance(content, np.ndarray)
        and content.shape == (side, side, 3)
        and shorter_side(framing) == side
    ):
        return content
    return frame(decode(content, item.path, framing), framing, many)


def decode(
    content: bytes | Place | Images | Image.Image | BadImage,
    path: str,
    framing: Framing | None = None,
) -> Image.Image:
    """Return the image in RGB, upright as its EXIF orientation says, in its own size.

    Of an animation or a video it is the first frame. Colors with an ICC profile are converted to
    sRGB. What is transparent is laid on the ground that `retrieval.images.pixels.transparency`
    chooses, nearly always white. 16 bit pixels keep their upper 8 bits. With a `framing` that
    the image will get, a JPEG may come smaller than it is, but with at least twice the size
    that the framing needs. So may an image whose profile is converted, and the preview in a RAW
    file.

    `path` is the image's name in errors. Raises BadImage for what is missing, empty, truncated,
    damaged, of no format in FORMATS or OPTIONAL_FORMATS, of a format whose package is not
    installed, or larger than `max_megapixels()`: a JPEG at the size at which
    it is decoded. Further limits: MAX_RUN_LENGTH_PIXELS of a BMP, MAX_SCANNED_PIXELS and
    JPEG_BYTES_PER_PIXEL of a JPEG.
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
        content = _fetched(content, path)
        return _decode(io.BytesIO(content), len(content), path, framing)
    with _opened_file(content, path) as file:
        return _decode(file, os.fstat(file.fileno()).st_size, path, framing)


def read_item(item: Item) -> tuple[Item, bytes]:
    """Return an item whose image is a file with the bytes of the file, and their hash (16 bytes).

    A file of more than `MAX_HELD_BYTES` stays a file, and is read again when it is decoded. Raises
    BadImage for a file that cannot be read.
    """
    content = item.content
    if isinstance(content, RemotePath):
        content = _fetched(content, item.path)
    elif isinstance(content, Path):
        with _opened_file(content, item.path) as file:
            if os.fstat(file.fileno()).st_size > MAX_HELD_BYTES:
                return item, hashlib.file_digest(cast(Any, file), _content_hash).digest()
            content = file.read()
    if not isinstance(content, bytes):
        raise BadImage(item.path, "not a file")
    return replace(item, content=content), _content_hash(content).digest()


class ImageHeader(NamedTuple):
    """An image whose pixels are not read yet, its size in bytes, and when its file changed.

    image: of an optional format, its header. format: the name of the optional format.
    """

    image: ImageFile.ImageFile | PhotoHeader
    size: int
    changed: float | None
    format: str | None


@contextmanager
def opened_header(content: bytes | Place, path: str) -> Iterator[ImageHeader]:
    """Yield the header of an image. `path` is its name in errors.

    Raises BadImage for what is missing, damaged or of a format without a header that can be read,
    also for errors of Pillow while the image is open.
    """
    if isinstance(content, RemotePath):
        content = _fetched(content, path)
    try:
        with pillow_quiet:
            if isinstance(content, bytes):
                yield _header(io.BytesIO(content), path, len(content), None)
                return
            with _opened_file(content, path) as file:
                status = os.fstat(file.fileno())
                yield _header(file, path, status.st_size, status.st_mtime)
    except BadImage:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise BadImage(path, "truncated or damaged") from error


def _header(stream: BinaryIO, path: str, size: int, changed: float | None) -> ImageHeader:
    kind = format_of(stream, path)
    if kind is None or not kind.is_installed():
        return ImageHeader(_opened(stream), size, changed, None)
    if not kind.has_header:
        raise BadImage(path, f"a {kind.name}, whose header is not read")
    if kind.in_memory:
        check_file_size(kind, size, path)
    return ImageHeader(kind.read_header(stream), size, changed, kind.name)


def _content_hash(content: bytes = b"") -> Any:
    return hashlib.blake2b(content, digest_size=16)


def _fetched(content: RemotePath, path: str) -> bytes:
    """Return the bytes of a file in a store. Raises BadImage, and Unreachable if that may pass."""
    try:
        if content.suffix.lower() in VIDEO.suffixes:  # they may be larger than memory
            check_file_size(VIDEO, content.stat().st_size, path)
        return content.read_bytes()
    except FileNotFoundError:
        raise BadImage(path, "no such file") from None
    except Unreachable as error:
        if error.may_pass:
            raise
        raise BadImage(path, "no access") from error


@contextmanager
def _opened_file(file: Path, path: str) -> Iterator[BinaryIO]:
    """Open the file. Raises BadImage, also for errors of the file system while it is open."""
    try:
        # Not a FIFO, on which opening would wait for ever.
        if not file.is_file() and file.exists():
            raise BadImage(path, "not a file")
        with file.open("rb") as opened:
            yield opened
    except FileNotFoundError:
        raise BadImage(path, "no such file") from None
    except OSError as error:
        raise BadImage(path, (error.strerror or str(error)).lower()) from error


def begins_like_image(head: bytes) -> bool:
    """Return whether a file that begins with these 12 bytes is an image, HEIC included."""
    if head.startswith(b"RIFF"):
        return head[8:] == b"WEBP"
    if head.startswith(b"BM"):
        return head[6:10] == bytes(4)
    return head.startswith(_SIGNATURES) or (head[4:8] == b"ftyp" and head[8:] in _BRANDS)


def _decode(stream: BinaryIO, size: int, path: str, framing: Framing | None) -> Image.Image:
    if not size:
        raise BadImage(path, "empty file")
    kind = format_of(stream, path)
    try:
        with pillow_quiet:
            if kind is not None and kind.is_installed():
                image = _by_package(kind, stream, size, path, framing)
                return _rgb(_upright(image), path, framing)
            return _by_pillow(stream, path, framing)
    except Image.DecompressionBombError as error:
        # "Image size (900000000 pixels) exceeds limit of 178956970 pixels, …", which ours is below.
        found = re.search(r"\((\d+) pixels", str(error))
        check_size(int(found[1]) if found else max_pixels() + 1, path)
        raise BadImage(path, "too many pixels") from error
    except UnidentifiedImageError:
        if kind is not None and not kind.is_installed():
            command, _ = install_command(kind.suffixes)
            raise BadImage(path, f"{kind.name} cannot be read; run {command}") from None
        stream.seek(0)
        head = stream.read(12)
        known = head.startswith(_SIGNATURES) or head[4:12] in (b"ftypavif", b"ftypavis")
        raise BadImage(path, "truncated or damaged" if known else "not an image") from None
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.strerror:  # the file system's, not the decoder's
            raise BadImage(path, error.strerror.lower()) from error
        cut = "truncated" in str(error).lower()
        raise BadImage(path, "truncated" if cut else "truncated or damaged") from error


def _by_pillow(stream: BinaryIO, path: str, framing: Framing | None) -> Image.Image:
    image = _opened(stream)
    if isinstance(image, JpegImageFile):
        reduce_jpeg(image, stream, path, framing)
    else:
        check_other_format(image, stream, path)
    image.load()
    if has_color_key(image):
        stream.seek(0)
        apply_16_bit_key(image, _opened(stream))
    return _rgb(_upright(image), path, framing)


def _by_package(
    kind: OptionalFormat, stream: BinaryIO, size: int, path: str, framing: Framing | None
) -> Image.Image:
    if kind.in_memory:
        check_file_size(kind, size, path)
    return kind.read(
        stream, path, framing, lambda content: _by_pillow(io.BytesIO(content), path, framing)
    )


def _converted(image: Image.Image, path: str) -> Image.Image:
    """Return an upright RGB copy of an image that Pillow has opened."""
    if 0 in image.size:
        raise BadImage(path, "no pixels")
    check_size(image.width * image.height, path)
    try:
        with pillow_quiet:
            return _rgb(_upright(image.copy()), path, None)
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


def _upright(image: Image.Image) -> Image.Image:
    # Pillow turns a TIFF itself, as it loads it. An image is shown as it is by other programs
    # too where its EXIF data is damaged.
    if not _EXIF_KEYS.isdisjoint(image.info):
        with suppress(*_DAMAGE):
            ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image, path: str, framing: Framing | None) -> Image.Image:
    profile, space = image.info.get("icc_profile"), color_space(image.mode)
    if image.mode.startswith("I;16"):
        image = _gray_of_16_bits(image)
    if image.mode in ("I", "F"):
        # No range of values is agreed on, so that the value of white is unknown.
        raise BadImage(path, f"pixels of mode {image.mode}; convert it to 8 or 16 bit")
    if image.has_transparency_data:
        return on_background(to_srgb(image.convert("RGBA"), profile, space, framing))
    if image.mode not in ("RGB", "CMYK"):
        image = image.convert("RGB")
    image = to_srgb(image, profile, space, framing)
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
