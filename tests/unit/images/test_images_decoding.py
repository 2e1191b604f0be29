"""Decoding: every format and mode into upright RGB, and every bad input into one clear reason."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from retrieval.errors import BadImage
from retrieval.images import decode
from retrieval.images.pixels import decoding_limits

LOSSLESS = ["PNG", "WEBP", "BMP", "TIFF"]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode(content, "a picture"))


def noise(height: int = 40, width: int = 30) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth() -> NDArray[np.uint8]:
    """A picture that survives JPEG: corners black, red, green and yellow."""
    y, x = np.mgrid[0:40, 0:30]
    return np.stack([x * 255 // 29, y * 255 // 39, 0 * x], axis=-1).astype(np.uint8)


def png(width: int, height: int, bits: int, colour: int, rows: bytes = b"", *more: bytes) -> bytes:
    """A PNG written out by hand: its header, other chunks, and rows that begin with 0."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    extra = b"".join(chunk(m[:4], m[4:]) for m in more)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encoded(Image.fromarray(noise()), kind, **options)), noise())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(kind: str) -> None:
    got = pixels(encoded(Image.fromarray(smooth()), kind, quality=95)).astype(int)
    assert np.abs(got - smooth()).max() < 16


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_become_rgb(kind: str, mode: str) -> None:
    source = Image.fromarray(noise()).convert(mode)
    image = decode(encoded(source, kind), "a picture")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(source.convert("RGB")))


def test_arrays_are_grey_or_rgb() -> None:
    grey = noise()[:, :, 0]
    assert np.array_equal(np.asarray(decode(grey, "x")), np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(np.asarray(decode(noise(), "x")), noise())


def test_alpha_is_laid_on_white() -> None:
    rgba = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 128]]], dtype=np.uint8)
    # 128/255 × 200 + 127/255 × 255 = 227.4, 177.2, 127
    assert pixels(encoded(Image.fromarray(rgba), "PNG")).tolist() == [
        [[255, 255, 255], [200, 100, 0], [227, 177, 127]]
    ]


def test_grey_with_alpha_is_laid_on_white() -> None:
    image = Image.merge("LA", [Image.new("L", (2, 1), 10), Image.new("L", (2, 1), 0)])
    image.putpixel((1, 0), (10, 255))
    assert pixels(encoded(image, "PNG")).tolist() == [[[255] * 3, [10] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind: str) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 255, 0, 128, 0])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, kind, transparency=0)).tolist() == [[[255] * 3, [0, 128, 0]]]


def test_a_transparent_colour_is_white() -> None:
    rows = b"\0" + bytes([1, 2, 3, 9, 9, 9])
    content = png(2, 1, 8, 2, rows, b"tRNS" + struct.pack(">HHH", 1, 2, 3))
    assert pixels(content).tolist() == [[[255] * 3, [9] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    got = pixels(encoded(Image.fromarray(values), kind))
    assert got[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert got.shape == (1, 5, 3)


def test_16_bit_big_endian_tiff_is_scaled() -> None:
    values = np.array([[0, 32768, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert pixels(encoded(image, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


def test_16_bit_colour_is_scaled() -> None:
    rows = b"\0" + struct.pack(">HHH", 65535, 32768, 255)
    assert pixels(png(1, 1, 16, 2, rows)).tolist() == [[[255, 128, 0]]]


def test_a_transparent_16_bit_grey_is_white() -> None:
    content = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 300, 512), b"tRNS\x01\x2c")
    assert pixels(content)[0, :, 0].tolist() == [255, 2]


def test_pixels_without_an_agreed_range_are_refused() -> None:
    with pytest.raises(BadImage, match="mode F; convert it to 8 or 16 bit"):
        pixels(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    got = pixels(encoded(cyan, kind, **({"quality": 100} if kind == "JPEG" else {}))).astype(int)
    assert np.abs(got - [0, 255, 255]).max() <= 2


# Changes of the upright picture that a viewer undoes by the orientation
# upright again: the inverse of what the EXIF standard says to do.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](noise())))
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encoded(stored, kind, exif=exif, **options)), noise())


def test_exif_orientation_of_a_jpeg_is_honoured() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(STORED[6](smooth())))
    got = pixels(encoded(stored, "JPEG", exif=exif, quality=95)).astype(int)
    assert np.abs(got - smooth()).max() < 16


def test_damaged_exif_leaves_the_picture() -> None:
    content = encoded(
        Image.fromarray(smooth()), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"
    )
    assert pixels(content).shape == (40, 30, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_counts(kind: str) -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(red, kind, save_all=True, append_images=[blue], **options)
    assert pixels(content)[0, 0].tolist() == [255, 0, 0]


# --- what cannot be read ---


def reason(content: bytes | Path) -> str:
    with pytest.raises(BadImage) as caught:
        decode(content, "a picture")
    assert caught.value.path == "a picture"
    return caught.value.reason


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.png") == "no such file"
    assert reason(tmp_path) == "not a file"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Path, "open", refused)  # root may read everything
    assert reason(tmp_path / "a.png") == "permission denied"


def test_empty_and_foreign_content(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    assert reason(b"") == reason(empty) == "empty file"
    words = tmp_path / "text.png"
    words.write_text("no picture at all")
    assert reason(words) == reason(b"no picture at all") == "not an image"


def test_formats_that_are_not_listed_are_refused() -> None:
    assert reason(encoded(Image.fromarray(noise()), "PPM")) == "not an image"
    assert reason(encoded(Image.fromarray(noise()), "EPS")) == "not an image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF"])
def test_half_a_file_is_truncated(kind: str, tmp_path: Path) -> None:
    content = encoded(Image.fromarray(noise()), kind)
    half = tmp_path / "half"
    half.write_bytes(content[: len(content) // 2])
    assert reason(half) == reason(content[: len(content) // 2]) == "truncated"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("length", [8, 12, 20, 60, 100])
def test_the_beginning_of_a_file_is_truncated_or_damaged(kind: str, length: int) -> None:
    content = encoded(Image.fromarray(noise()), kind)
    assert reason(content[:length]) in ("truncated", "truncated or damaged")


def test_huge_images_are_refused_by_their_header() -> None:
    # There are no pixels behind the header: that it is not "truncated" shows they weren't read.
    assert reason(png(30_000, 30_000, 8, 2)) == (
        "900,000,000 pixels; the maximum is 100,000,000 (raise it with --max-megapixels 900)"
    )
    assert reason(png(10_000, 10_001, 8, 2)) == (
        "100,010,000 pixels; the maximum is 100,000,000 (raise it with --max-megapixels 101)"
    )
    assert reason(png(10_000, 10_000, 8, 2)) == "truncated"


def run_lengths(width: int, height: int) -> bytes:
    """Return a BMP of eight bits in run lengths: one line of color 1, and no other lines."""
    palette = bytes((0, 0, 0, 0, 30, 20, 10, 0))  # black, and (10, 20, 30) as blue, green, red
    runs = bytes((width % 256, 1, 0, 0, 0, 1))
    offset = 14 + 40 + len(palette)
    facts = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 2, 0)
    return struct.pack("<2sIHHI", b"BM", offset + len(runs), 0, 0, offset) + facts + palette + runs


def scanned_again(jpeg: bytes, times: int) -> bytes:
    """The JPEG with its last scan repeated."""
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + times * last + jpeg[-2:]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_scans_are_few(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan of some bytes goes over all pixels, as often as the file has one."""
    monkeypatch.setattr(decoding_limits, "MAX_SCANNED_PIXELS", 40 * 30 * 30)
    image = Image.fromarray(smooth())
    progressive = encoded(image, "JPEG", progressive=True)
    again = scanned_again(progressive, 30)
    whole, content = progressive, again
    if kind == "TIFF":
        whole, content = (tiff(jpeg, t259=7, t262=6) for jpeg in (progressive, again))
    assert pixels(whole).shape == smooth().shape
    assert reason(content) == (
        "a JPEG with 40 scans of 1,200 pixels; the maximum is 36,000 pixels in all scans "
        "(raise it with --max-megapixels 134)"
    )


def test_each_tile_of_a_tiff_has_scans_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_limits, "MAX_SCANNED_PIXELS", 2 * 320 * 240)
    image = Image.fromarray(np.tile(smooth(), (8, 8, 1)))
    stream = encoded(image, "TIFF", compression="jpeg", strip_size=8 * 30 * 3 * 16)
    assert stream.count(b"\xff\xda") == 20
    assert pixels(stream).shape == (320, 240, 3)


def test_scans_are_not_counted_where_one_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all photographs are such files. A thumbnail or second picture has scans too."""
    monkeypatch.setattr(decoding_limits, "MAX_SCANNED_PIXELS", 40 * 30)
    other = encoded(Image.new("RGB", (8, 8)), "JPEG")
    for mode in ("RGB", "L", "CMYK"):
        image = Image.fromarray(smooth()).convert(mode)
        assert pixels(encoded(image, "JPEG")).shape == smooth().shape
        assert pixels(encoded(image, "JPEG", comment=other)).shape == smooth().shape
    two = encoded(Image.fromarray(smooth()), "MPO", save_all=True, append_images=[image])
    assert pixels(two).shape == smooth().shape
    with pytest.raises(BadImage, match="10 scans"):
        pixels(encoded(Image.fromarray(smooth()), "JPEG", progressive=True))


def tiff(strip: bytes, **changes: int) -> bytes:
    """A TIFF of one strip or tile of `smooth`'s size; changes: tags by number, `t322=16`."""
    height, width, _ = smooth().shape
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 2, 277: 3}
    values |= {int(tag[1:]): value for tag, value in changes.items()}
    tiled = 322 in values
    values |= {324: 0, 325: len(strip)} if tiled else {273: 0, 278: height, 279: len(strip)}
    values[324 if tiled else 273] = 8 + 2 + 12 * len(values) + 4  # where it stands
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, values[tag]) for tag in sorted(values))
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + strip


def test_tiles_are_no_larger_than_images(capfd: pytest.CaptureFixture[str]) -> None:
    """Memory for a tile is taken before it is seen that there is none."""
    tile = zlib.compress(bytes(48 * 32 * 3))
    assert pixels(tiff(tile, t259=8, t322=32, t323=48)).shape == smooth().shape
    assert reason(tiff(tile, t259=8, t322=480, t323=480)) == "truncated or damaged"
    assert reason(tiff(tile, t259=8, t322=48_000, t323=32_000)) == (
        "1,536,000,000 pixels; the maximum is 100,000,000 (raise it with --max-megapixels 1536)"
    )
    assert capfd.readouterr().err == "", "libtiff has spoken"


def test_a_short_file_cannot_take_long() -> None:
    assert pixels(run_lengths(3, 1)).tolist() == [[[10, 20, 30]] * 3]
    assert (
        reason(run_lengths(10_000_001, 1))
        == "10,000,001 pixels in run lengths; the maximum is 10,000,000"
    )


def test_truncated_files_stay_truncated() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_no_warnings_leak_and_no_filter_stays() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        reason(png(9_999, 9_999, 8, 2))  # Pillow warns of a decompression bomb
        tiff = encoded(Image.fromarray(noise()), "TIFF", compression="tiff_lzw")
        reason(tiff[:100])  # corrupt EXIF data is reported, too
        assert warnings.filters == before
    assert caught == []


def test_the_log_does_not_leak() -> None:
    code = (
        "import io, sys; from PIL import Image; from retrieval.images import decode\n"
        "stream = io.BytesIO(); Image.new('RGB', (3, 3)).save(stream, 'TIFF')\n"
        "samples = bytes([0x15, 1, 3, 0, 1, 0, 0, 0])\n"
        "content = stream.getvalue(); assert samples in content\n"
        "try: decode(content.replace(samples + bytes([3]), samples + bytes([99])), 'x')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "cannot read image x: truncated or damaged\n"


def test_threads_decode_side_by_side() -> None:
    images = [encoded(Image.new("RGB", (20, 20), (i, 0, 0)), "PNG") for i in range(100)]
    images[50] = png(9_999, 9_999, 8, 2)

    def first(content: bytes) -> int | str:
        try:
            return int(pixels(content)[0, 0, 0])
        except BadImage as error:
            return error.reason

    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(first, images * 3))
    expected: list[int | str] = list(range(100))
    expected[50] = "truncated"
    assert got == expected * 3
    assert warnings.filters == before
