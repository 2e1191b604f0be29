"""HEIC, JPEG XL, pictures of several, JPEG 2000 and 16 bits; and formats without their package."""

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.contracts import Framing
from retrieval.errors import BadImage, BadSource
from retrieval.images import decode, open_source
from retrieval.images.folders.folder import none_in
from retrieval.images.folders.listing import UNREAD_SUFFIXES, LeftOut, said_of
from retrieval.images.optional import formats
from retrieval.images.optional.formats import (
    HEIC,
    JPEG_XL,
    OPTIONAL_FORMATS,
    RAW,
    VIDEO,
    format_of,
    install_command,
    installed_suffixes,
)
from retrieval.images.pixels.decoding import PILLOW_SUFFIXES, SUFFIXES
from retrieval.images.pixels.megapixels import MEGAPIXELS_VARIABLE
from tests.damaged import refused


def picture(width: int = 64, height: int = 48) -> Image.Image:
    """A smooth picture that survives lossy formats, red to the right and green to the bottom."""
    y, x = np.mgrid[0:height, 0:width]
    colors = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 0 * x + 60], axis=-1)
    return Image.fromarray(colors.astype(np.uint8))


def heic(image: Image.Image, **options: object) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=95, **options)
    return stream.getvalue()


def jxl(image: Image.Image, use_container: bool = False, **metadata: object) -> bytes:
    pillow_jxl = pytest.importorskip("pillow_jxl")
    encoder = pillow_jxl.Encoder(
        mode=image.mode,
        lossless=True,
        quality=100,
        decoding_speed=0,
        effort=3,
        use_container=use_container,
        use_original_profile=False,
        num_threads=1,
    )
    return bytes(encoder(image.tobytes(), *image.size, jpeg_encode=False, **metadata))


def recompressed(jpeg: bytes) -> bytes:
    """The JPEG XL of a JPEG, from which it can be restored."""
    pillow_jxl = pytest.importorskip("pillow_jxl")
    encoder = pillow_jxl.Encoder(
        mode="RGB",
        lossless=True,
        quality=100,
        decoding_speed=0,
        effort=7,
        use_container=True,
        use_original_profile=False,
        num_threads=1,
    )
    with Image.open(io.BytesIO(jpeg)) as image:
        return bytes(encoder(jpeg, *image.size, jpeg_encode=True))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def difference(image: Image.Image, other: Image.Image) -> int:
    assert (image.mode, image.size) == ("RGB", other.size)
    return int(np.abs(np.asarray(image).astype(int) - np.asarray(other)).max())


def test_heic() -> None:
    assert difference(decode(heic(picture()), "x"), picture()) <= 12


def test_heic_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right makes it upright
    content = heic(picture(), exif=exif.tobytes())
    assert difference(decode(content, "x"), picture().transpose(Image.Transpose.ROTATE_270)) <= 12


def test_heic_with_transparency_and_in_gray() -> None:
    image = picture().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 32, 48))
    assert decode(heic(image), "x").getpixel((8, 8)) == (255, 255, 255)
    gray = picture().convert("L")
    assert difference(decode(heic(gray), "x"), gray.convert("RGB")) <= 12


def test_heic_colors_become_srgb() -> None:
    from tests.unit.images.test_images_color_profiles import P3

    image = Image.new("RGB", (64, 64), (234, 51, 35))
    image.info["icc_profile"] = P3
    red, green, blue = decode(heic(image), "x").getpixel((30, 30))  # type: ignore[misc]
    assert (red >= 250, green <= 8, blue <= 8) == (True, True, True)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("use_container", [False, True])
def test_jpeg_xl(mode: str, use_container: bool) -> None:
    image = picture().convert(mode)
    assert difference(decode(jxl(image, use_container), "x"), image.convert("RGB")) == 0


def test_jpeg_xl_of_16_bits() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    image = decode(jxl(Image.fromarray(values)), "x")
    # The encoder says that 16 bits are linear: 128/255 of the light is 188/255 in sRGB.
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 6, 188, 255]


@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_xl_of_a_jpeg_is_that_jpeg(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = saved(picture(640, 480), "JPEG", quality=90, exif=exif)
    for framing in (None, Framing(32)):
        image = decode(recompressed(jpeg), "x", framing)
        assert difference(image, decode(jpeg, "x", framing)) == 0


def test_jpeg_xl_ignores_the_orientation_of_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = jxl(picture(), use_container=True, exif=exif.tobytes()[6:], compress=False)
    assert difference(decode(content, "x"), picture()) == 0


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (1, 1),
        (8, 8),
        (64, 48),
        (256, 128),
        (160, 90),
        (513, 300),
        (257, 8192),
        (70000, 2),
        (36, 30),
    ],
)
def test_size_in_the_header_of_jpeg_xl(width: int, height: int) -> None:
    pytest.importorskip("pillow_jxl")
    from retrieval.images.optional.jpeg_xl import image_size

    for use_container in (False, True):
        assert image_size(jxl(Image.new("L", (width, height)), use_container)) == (width, height)


@pytest.mark.parametrize("content", [b"", b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n", bytes(40)])
def test_jpeg_xl_without_a_size(content: bytes) -> None:
    pytest.importorskip("pillow_jxl")
    from retrieval.images.optional.jpeg_xl import image_size

    with pytest.raises(ValueError, match="no codestream"):
        image_size(content)


@pytest.mark.parametrize("make", [heic, jxl])
def test_limit_on_pixels(
    make: "type[heic]",
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[valid-type]
) -> None:
    content = make(Image.new("RGB", (1200, 900)))  # type: ignore[misc]
    monkeypatch.setenv(MEGAPIXELS_VARIABLE, "1")
    with pytest.raises(BadImage, match=r"1,080,000 pixels; the maximum is 1,000,000 .raise it"):
        decode(content, "x")


def test_a_header_of_many_pixels_is_refused_before_it_is_decoded() -> None:
    pytest.importorskip("pillow_jxl")
    # Bits, the lowest first: not small, 30 bits of height, ratio 1:1.
    bits = 3 << 1 | ((1 << 30) - 1) << 3 | 1 << 33
    content = b"\xff\x0a" + bits.to_bytes(5, "little") + bytes(20)
    with pytest.raises(BadImage, match="1,152,921,504,606,846,976 pixels"):
        decode(content, "x")


def test_files_that_are_held_in_memory_have_a_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jxl(picture())
    monkeypatch.setattr(formats, "MAX_FILE_BYTES", 100)
    with pytest.raises(BadImage, match=r"JPEG XL of [0-9,]+ bytes; the maximum is 100 bytes"):
        decode(content, "x")


@pytest.mark.parametrize("make", [heic, jxl])
def test_damaged_files_are_refused(make: "type[heic]") -> None:  # type: ignore[valid-type]
    assert refused(make(picture()), "x") >= 60  # type: ignore[misc]


def test_a_damaged_jpeg_in_jpeg_xl_is_refused() -> None:
    assert refused(recompressed(saved(picture(), "JPEG")), "x") >= 60


@pytest.mark.parametrize("make", [heic, jxl])
def test_a_cut_file_has_a_reason(make: "type[heic]") -> None:  # type: ignore[valid-type]
    content = make(picture())  # type: ignore[misc]
    with pytest.raises(BadImage, match="truncated or damaged"):
        decode(content[: len(content) // 2], "x")


def test_threads_decode_together() -> None:
    contents = [*(heic(picture(64 + n, 48)) for n in range(4)), *(jxl(picture()) for _ in range(4))]
    with ThreadPoolExecutor(8) as threads:
        images = [*threads.map(lambda content: decode(content, "x"), 4 * contents)]
    alone = [decode(content, "x") for content in contents]
    assert all(difference(a, b) == 0 for a, b in zip(images, 4 * alone, strict=True))


def mpo(*images: Image.Image) -> bytes:
    return saved(images[0], "MPO", save_all=True, append_images=images[1:], quality=95)


def test_first_picture_of_an_mpo_is_read_as_a_jpeg(tmp_path: Path) -> None:
    first, second = picture(640, 480), Image.new("RGB", (640, 480), (0, 0, 255))
    (tmp_path / "1.mpo").write_bytes(mpo(first, second))
    (item,) = open_source(str(tmp_path)).items()
    assert difference(decode(item.content, item.path), first) <= 12
    reduced = decode(item.content, item.path, Framing(32))
    assert reduced.size < first.size
    assert difference(reduced, decode(saved(first, "JPEG", quality=95), "x", Framing(32))) == 0
    assert refused(mpo(picture(), picture()), "x") >= 40


def test_jpeg_2000_of_16_bits() -> None:
    values = np.full((16, 16), 128 << 8 | 7, np.uint16)
    content = saved(Image.fromarray(values), "JPEG2000", irreversible=False)
    assert decode(content, "x").getpixel((3, 3)) == (128, 128, 128)


def test_a_jpeg_that_is_named_as_another_format_is_read(tmp_path: Path) -> None:
    content = saved(picture(), "JPEG", quality=95)
    for name in ("x.heic", "x.dng", "x.raw", "x.jxl", "x.mp4"):
        assert difference(decode(content, name), decode(content, "x.jpg")) == 0


@pytest.mark.parametrize(
    ("head", "path", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "x", HEIC),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "x", HEIC),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "x", None),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf", "x", None),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "x", RAW),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41avc1", "x", VIDEO),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "x", VIDEO),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "x", VIDEO),
        (b"\x1a\x45\xdf\xa3", "x", VIDEO),
        (b"RIFF\0\0\0\0AVI LIST", "x", VIDEO),
        (b"RIFF\0\0\0\0WEBPVP8 ", "x", None),
        (b"\xff\x0a\xfa", "x", JPEG_XL),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "x", JPEG_XL),
        (b"FUJIFILMCCD-RAW 0201", "x", RAW),
        (b"II*\0\x10\0\0\0CR\2\0", "x", RAW),
        (b"II*\0\x08\0\0\0", "x.NEF", RAW),
        (b"II*\0\x08\0\0\0", "x.tif", None),
        (b"II*\0\x08\0\0\0\1\0\x12\xc6" + bytes(10), "x.tif", RAW),  # DNGVersion
        (b"MM\0*\0\0\0\x08\0\1\xc6\x12" + bytes(10), "x.tif", RAW),
        (b"IIII", "x.iiq", RAW),
        (b"\xff\xd8\xff\xe0", "x.nef", None),
        (b"\x89PNG\r\n", "x", None),
        (b"", "x", None),
    ],
)
def test_formats_are_known_by_their_first_bytes(
    head: bytes, path: str, kind: formats.OptionalFormat | None
) -> None:
    stream = io.BytesIO(head)
    assert format_of(stream, path) is kind
    assert stream.tell() == 0


def missing(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make `find_spec` find none of the packages, and all others."""
    for package in packages:
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name in packages else object())


def test_suffixes_are_those_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "pillow_heif", "av")
    assert installed_suffixes() == JPEG_XL.suffixes | RAW.suffixes
    assert ".mpo" in PILLOW_SUFFIXES
    optional = frozenset[str]().union(*(each.suffixes for each in OPTIONAL_FORMATS))
    assert optional <= SUFFIXES | UNREAD_SUFFIXES
    assert not SUFFIXES & UNREAD_SUFFIXES
    assert not optional & PILLOW_SUFFIXES


@pytest.mark.parametrize(
    ("packages", "passed_over", "hint"),
    [
        ((), {".heic": 2}, ""),
        (("pillow_heif",), {".heic": 2}, "; to read .heic, run pip install 'retr[photos]'"),
        (("pillow_heif",), {".psd": 2, "": 1}, ""),
        (
            ("pillow_heif",),
            {".heic": 2, ".dng": 1},
            "; to read .heic, run pip install 'retr[photos]'",
        ),
        (("av",), {".mp4": 2, ".svg": 1}, "; to read .mp4, run pip install 'retr[video]'"),
        (
            ("pillow_heif", "rawpy", "pillow_jxl", "av"),
            {".heic": 5, ".dng": 3, ".mov": 2, ".psd": 1},
            "; to read .heic, .dng, .mov, run pip install 'retr[photos,video]'",
        ),
    ],
)
def test_passed_over_files_have_a_hint(
    packages: tuple[str, ...],
    passed_over: dict[str, int],
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing(monkeypatch, *packages)
    said = said_of(passed_over)
    assert said.endswith(hint)
    assert ("run pip" in said) == bool(hint)


def test_a_folder_of_unread_photos_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "pillow_heif", "av")
    left_out = LeftOut()
    left_out.passed_over.update({".heic": 2})
    said = str(none_in("photos", left_out))
    assert "(passed over: 2 files, .heic 2; to read .heic, run pip install 'retr[photos]')" in said
    assert said.endswith("webp, or those of JPEG XL, camera RAW")
    left_out.passed_over.update({".psd": 1})
    assert str(none_in("photos", left_out)).endswith("; convert the others to JPEG or PNG")
    missing(monkeypatch)
    assert str(none_in("photos", left_out)).endswith("video; convert them to JPEG or PNG")


@pytest.mark.parametrize(
    ("content", "path", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "x", "HEIC cannot be read; run .*photos"),
        (b"\xff\x0a\xfa\x7f", "x", "JPEG XL cannot be read; run .*photos"),
        (b"FUJIFILMCCD-RAW 0201", "x", "camera RAW cannot be read; run .*photos"),
        (b"\x1a\x45\xdf\xa3", "x", "video cannot be read; run .*video"),
    ],
)
def test_a_file_without_its_package_says_what_to_install(
    content: bytes, path: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing(monkeypatch, "pillow_heif", "pillow_jxl", "rawpy", "av")
    with pytest.raises(BadImage, match=reason):
        decode(content, path)


def test_all_packages_missing_in_a_new_process(tmp_path: Path) -> None:
    """Files are passed over by kind; a JPEG is read without any of the packages."""
    for name in ("a.heic", "b.nef", "c.mov"):
        (tmp_path / name).write_bytes(b"some bytes")
    picture().save(tmp_path / "1.jpg")
    code = f"""
import importlib.util, sys
find, hidden = importlib.util.find_spec, ("pillow_heif", "pillow_jxl", "rawpy", "av")
importlib.util.find_spec = lambda name, *more: None if name in hidden else find(name, *more)
from retrieval.images import open_source, decode
from retrieval.images.folders.listing import said_of
source = open_source({str(tmp_path)!r})
print(len(source), said_of(source.left_out.passed_over))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == (
        "1 passed over: 3 files, .heic 1, .mov 1, .nef 1; to read .heic, .mov, .nef, run "
        "pip install 'retr[photos,video]'\n"
    )


def test_a_jpeg_is_read_without_importing_the_packages(tmp_path: Path) -> None:
    picture().save(tmp_path / "1.jpg")
    code = f"""
import sys
from pathlib import Path
from retrieval.images import decode
decode(Path({str(tmp_path / "1.jpg")!r}), "1.jpg")
print(sorted({{"pillow_heif", "pillow_jxl", "rawpy", "av", "PIL.ImageCms"}} & {{*sys.modules}}))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


@pytest.mark.parametrize("kind", OPTIONAL_FORMATS, ids=lambda kind: kind.package)
def test_files_of_optional_formats_are_listed(kind: formats.OptionalFormat, tmp_path: Path) -> None:
    pytest.importorskip(kind.package)
    for suffix in kind.suffixes:
        (tmp_path / f"1{suffix.upper()}").write_bytes(b"no image")
    source = open_source(str(tmp_path))
    assert len(source) == len(kind.suffixes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for item in source.items():
            with pytest.raises(BadImage, match=r"not an image|truncated or damaged"):
                decode(item.content, item.path)


def test_command_is_empty_if_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch)
    assert install_command([".heic", ".psd"]) == ("", [])
    with pytest.raises(BadSource):
        open_source("/nowhere/*.heic")
