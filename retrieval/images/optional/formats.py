"""Formats that are read if their package is installed, and the command that installs it.

They are HEIC, JPEG XL, camera RAW, and the first frame of videos. This module imports none of the
packages. The modules beside it read one format each, and import its package.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePath
from typing import BinaryIO, Literal, NamedTuple, cast

from PIL import Image

from retrieval.contracts import Framing
from retrieval.errors import BadImage

MAX_FILE_BYTES = 1 << 30
"""Maximum size of a file that a decoder holds in memory. The frames of a video are streamed."""

HEAD_BYTES = 64
"""Bytes at the start of a file from which its format is known."""

DecodeJpeg = Callable[[bytes], Image.Image]
"""Decode the JPEG that a file contains into an upright RGB image. Raises BadImage."""

Reader = Callable[[BinaryIO, str, Framing | None, DecodeJpeg], Image.Image]
"""Return the image of a file, upright or with its EXIF data. The second argument is the file's name
in errors. The third is the framing that the image will get. Raises BadImage, or an exception that
the decoders of Pillow raise too."""


class PhotoHeader(NamedTuple):
    """PhotoHeader of an image file: size in pixels, upright, and EXIF data."""

    width: int
    height: int
    exif: Image.Exif


HeaderReader = Callable[[BinaryIO], PhotoHeader]
"""Return the header of a file. Raises an exception that the decoders of Pillow raise too."""


@dataclass(frozen=True, slots=True)
class OptionalFormat:
    """A format that needs a package.

    package: name of the module to import. extra: the extra of retr that installs the package.
    reader: module in `retrieval.images.optional` with the function `read`, a `Reader`, and
        `read_header`, a `HeaderReader`, if `has_header`.
    suffixes: in lower case. in_memory: whether its decoder holds the whole file in memory.
    """

    name: str
    package: str
    extra: str
    reader: str
    suffixes: frozenset[str]
    in_memory: bool = True
    has_header: bool = True

    def is_installed(self) -> bool:
        """Return whether the package can be imported. It is not imported."""
        if self.package in sys.modules:
            return sys.modules[self.package] is not None
        return find_spec(self.package) is not None

    def read(
        self, stream: BinaryIO, path: str, framing: Framing | None, decode_jpeg: DecodeJpeg
    ) -> Image.Image:
        """Read the image, as `Reader` says."""
        module = import_module(f"retrieval.images.optional.{self.reader}")
        return cast(Reader, module.read)(stream, path, framing, decode_jpeg)

    def read_header(self, stream: BinaryIO) -> PhotoHeader:
        """Read the header, as `HeaderReader` says."""
        module = import_module(f"retrieval.images.optional.{self.reader}")
        return cast(HeaderReader, module.read_header)(stream)


def check_file_size(kind: OptionalFormat, size: int, path: str) -> None:
    """Raise BadImage for a file that is too large to be held in memory."""
    if size > MAX_FILE_BYTES:
        raise BadImage(
            path, f"{kind.name} of {size:,} bytes; the maximum is {MAX_FILE_BYTES:,} bytes"
        )


def _suffixes(endings: str) -> frozenset[str]:
    return frozenset(f".{ending}" for ending in endings.split())


HEIC = OptionalFormat(
    "HEIC", "pillow_heif", "photos", "heif", _suffixes("heic heics heif heifs hif")
)
JPEG_XL = OptionalFormat("JPEG XL", "pillow_jxl", "photos", "jpeg_xl", _suffixes("jxl"))
RAW = OptionalFormat(
    "camera RAW",
    "rawpy",
    "photos",
    "raw",
    _suffixes(
        "3fr arw bay cap cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf ori "
        "pef ptx raf raw rw2 rwl sr2 srf srw x3f"
    ),
)
VIDEO = OptionalFormat(
    "video",
    "av",
    "video",
    "video",
    _suffixes("mp4 mov m4v avi mkv webm"),
    in_memory=False,
    has_header=False,
)
OPTIONAL_FORMATS = (HEIC, JPEG_XL, RAW, VIDEO)

_TIFF = (b"II*\0", b"MM\0*")
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")  # bare, and in a container
_RAW = (
    *(b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM", b"IIU\0", b"IIRO", b"IIRS", b"MMOR"),
    b"II\x1a\0\0\0HEAPCCDR",
)
_NOT_RAW = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF", b"BM", b"GIF8")
_DNG_VERSION = 50706  # a tag of a TIFF
_HEIF_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_QUICKTIME_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # without `ftyp`
_MATROSKA = b"\x1a\x45\xdf\xa3"


def installed_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the formats whose packages are installed."""
    return frozenset[str]().union(
        *(each.suffixes for each in OPTIONAL_FORMATS if each.is_installed())
    )


def install_command(suffixes: Iterable[str]) -> tuple[str, list[str]]:
    """Return the command that makes files readable, and those of the suffixes that need it.

    Both are empty if no package is missing.
    """
    missing = [each for each in OPTIONAL_FORMATS if not each.is_installed()]
    needed = [s for s in suffixes if any(s in each.suffixes for each in missing)]
    extras = {each.extra: None for each in missing if not each.suffixes.isdisjoint(needed)}
    return (f"pip install 'retr[{','.join(extras)}]'" if extras else ""), needed


def format_of(stream: BinaryIO, path: str) -> OptionalFormat | None:
    """Return the format of a file, which is then at its start; None if Pillow may read it.

    path: its name. The suffix is used for RAW files only, most of which begin as a TIFF does.
    """
    head = stream.read(HEAD_BYTES)
    try:
        if (found := _by_head(head)) is None and not head.startswith(_NOT_RAW):
            is_raw = PurePath(path).suffix.lower() in RAW.suffixes
            found = RAW if is_raw or (head.startswith(_TIFF) and _is_dng(stream)) else None
        return found
    finally:
        stream.seek(0)


def _by_head(head: bytes) -> OptionalFormat | None:
    if head[4:8] == b"ftyp":
        return _by_brands(head)
    if head.startswith(_JXL):
        return JPEG_XL
    if head.startswith(_RAW) or (head.startswith(_TIFF) and head[8:10] == b"CR"):
        return RAW
    if head.startswith(_MATROSKA) or (head.startswith(b"RIFF") and head[8:12] == b"AVI "):
        return VIDEO
    if head[4:8] in _QUICKTIME_BOXES:
        return VIDEO
    return None


def _is_dng(stream: BinaryIO) -> bool:
    """Return whether a TIFF is a digital negative, whose first picture is often a thumbnail."""
    stream.seek(0)
    head = stream.read(8)
    order: Literal["little", "big"] = "little" if head.startswith(b"II") else "big"
    stream.seek(int.from_bytes(head[4:], order))
    tags = stream.read(12 * int.from_bytes(stream.read(2), order))
    version = _DNG_VERSION.to_bytes(2, order)
    return any(tags[at : at + 2] == version for at in range(0, len(tags), 12))


def _by_brands(head: bytes) -> OptionalFormat | None:
    """Return the format by the brands in the first box of an ISO media file."""
    size = int.from_bytes(head[:4], "big")
    major = head[8:12]
    brands = {major, *(head[at : at + 4] for at in range(16, min(size, len(head)), 4))}
    if major == b"crx ":
        return RAW
    if not brands.isdisjoint(_AVIF_BRANDS) and major in _AVIF_BRANDS | {b"mif1", b"msf1"}:
        return None
    return HEIC if major in _HEIF_BRANDS else VIDEO
