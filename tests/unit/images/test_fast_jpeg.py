"""JPEGs decoded without Pillow: the same pixels, facts and errors as with it."""

import io
import struct
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from retrieval.contracts import Framing, Images, Resample
from retrieval.embedding.decoder import Decoder
from retrieval.errors import BadImage
from retrieval.images import Item, decode, frame
from retrieval.images.facts import facts_of, jpeg_facts
from retrieval.images.pixels.fast_jpeg import decode_fast
from retrieval.images.pixels.jpeg_header import jpeg_header
from retrieval.images.pixels.thumbnail import thumbnail
from tests.damaged import damaged
from tests.examples import examples
from tests.unit.images.test_images_color_profiles import P3, SRGB_PRIMARIES, rgb_profile

FRAMINGS = (Framing(1), Framing(16), Framing(32, 0.875), Framing(224), Framing(20, squash=True))


def picture(width: int = 170, height: int = 131, seed: int = 0) -> Images:
    """Return smooth colors with noise, whose JPEG has both flat and detailed blocks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 20
    smooth = np.stack((np.sin(x), np.cos(y), np.sin(x + y)), axis=-1) * 100 + 128
    noise = rng.normal(0, 40, (height, width, 3)) * (rng.random((height, width, 1)) < 0.5)
    return np.asarray((smooth + noise).clip(0, 255), np.uint8)


def jpeg(pixels: Images | None = None, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(picture() if pixels is None else pixels).convert(mode)
    with patch("PIL.ImageFile.MAXBLOCK", 1 << 22):  # else Pillow cannot write some of many restarts
        image.save(stream, "JPEG", **options)
    return stream.getvalue()


def exif(orientation: int = 6) -> Image.Exif:
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = orientation
    found[ExifTags.Base.Model] = "Pixel 8"
    found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:05:01 10:11:12"
    found.get_ifd(ExifTags.IFD.GPSInfo).update(
        {1: "S", 2: (48.0, 8.0, 15.0), 3: "E", 4: (11.0, 34.5, 0.0)}
    )
    return found


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def with_segment(content: bytes, *segments: bytes) -> bytes:
    """Return the JPEG with segments at its start."""
    return content[:2] + b"".join(segments) + content[2:]


XMP = segment(
    0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='x' tiff:Orientation=\"8\">"
)

ORDINARY = {
    **{f"subsampling {n}": jpeg(subsampling=n) for n in range(3)},
    **{f"{n}": simplejpeg.encode_jpeg(picture(), 85, "RGB", n) for n in ("440", "411")},
    **{f"quality {n}": jpeg(quality=n) for n in (1, 30, 90, 100)},
    "gray": jpeg(mode="L"),
    "gray, turned": jpeg(mode="L", exif=exif()),
    "RGB": jpeg(keep_rgb=True),
    "progressive": jpeg(progressive=True),
    "gray, progressive": jpeg(mode="L", progressive=True),
    "optimized": jpeg(optimize=True),
    "restarts": jpeg(restart_marker_blocks=3),
    "restarts of rows": jpeg(restart_marker_rows=1, progressive=True),
    "comment": jpeg(comment=b"of the photographer"),
    **{f"turned {n}": jpeg(exif=exif(n)) for n in range(10)},
    "turned by XMP": with_segment(jpeg(), XMP),
    "turned by EXIF, not XMP": with_segment(jpeg(exif=exif(3)), XMP),
    "P3": jpeg(icc_profile=P3),
    "P3, turned": jpeg(icc_profile=P3, exif=exif(), quality=95),
    "P3, gray": jpeg(mode="L", icc_profile=P3),
    "sRGB": jpeg(icc_profile=rgb_profile(SRGB_PRIMARIES)),
    "no profile": jpeg(icc_profile=b"not a profile"),
    "large profile": jpeg(icc_profile=P3 + bytes(200_000)),
    "Photoshop": with_segment(
        jpeg(), segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x02\0\1")
    ),
    "extended": jpeg().replace(b"\xff\xc0\0\x11", b"\xff\xc1\0\x11"),
    "trailing bytes": jpeg() + b"garbage" * 100,
    "trailing JPEG": jpeg() + jpeg(mode="L"),
    **{
        f"{width} × {height}": jpeg(picture(width, height))
        for width, height in ((16, 16), (17, 16), (33, 97), (640, 16), (801, 603), (2000, 1500))
    },
}
"""JPEGs that are decoded without Pillow."""

LEFT_TO_PILLOW = {
    "CMYK": jpeg(mode="CMYK"),
    "small": jpeg(picture(15, 400)),
    "pixel": jpeg(picture(1, 1)),
    "truncated": jpeg()[:-300],
    "no end": jpeg()[:-2],
    "empty": b"",
    "begun": jpeg()[:3],
    "no scan": jpeg()[:300],
    "padding": with_segment(jpeg(), b"\xff"),
    "garbage": with_segment(jpeg(), b"garbage"),
    "short table": with_segment(jpeg(), segment(0xDB, bytes(60))),
    "short JFIF": with_segment(jpeg(), segment(0xE0, b"JFIF\0")),
    "short Adobe": with_segment(jpeg(), segment(0xEE, b"Adobe")),
    "short profile": with_segment(jpeg(), segment(0xE2, b"ICC_PROFILE\0")),
    "pictures": with_segment(jpeg(), segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")),
    "half a resource": with_segment(jpeg(), segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed")),
    "damaged EXIF": with_segment(jpeg(), segment(0xE1, b"Exif\0\0MM\0*\0")),
    "no dots per inch": with_segment(
        jpeg()[20:], segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x1a\0\x02\0\0\0\x01\0\0\0\0")
    ),
    "PNG": b"\x89PNG\r\n\x1a\n" + jpeg(),
}
"""Files that Pillow reads or refuses."""


def outcome(of: Callable[[], Any]) -> NDArray[np.uint8] | str:
    try:
        return np.asarray(of())
    except BadImage as error:
        return str(error)


def check_same(content: bytes, framing: Framing) -> None:
    """Assert that pixels or the error, facts and thumbnail are those that Pillow gives."""
    header = jpeg_header(content)
    expected = outcome(lambda: decode(content, "a picture", framing))
    found = outcome(lambda: decode_fast(content, "a picture", framing, header))
    np.testing.assert_array_equal(found, expected)
    if header is not None:
        assert jpeg_facts(header, len(content)) == facts_of(content, "a picture")
    if isinstance(found, np.ndarray):
        image = Image.fromarray(expected)
        np.testing.assert_array_equal(thumbnail(found, many=True), thumbnail(image))
        np.testing.assert_array_equal(frame(found, framing), frame(image, framing))


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_jpegs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = ORDINARY[name]
    for framing in FRAMINGS:
        check_same(content, framing)
    monkeypatch.delattr("retrieval.images.pixels.fast_jpeg.decode")  # Pillow is not asked
    for framing in FRAMINGS:
        decode_fast(content, "a picture", framing, jpeg_header(content))


@pytest.mark.parametrize("name", LEFT_TO_PILLOW)
def test_others_are_left_to_pillow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = LEFT_TO_PILLOW[name]
    check_same(content, Framing(16))
    monkeypatch.delattr("retrieval.images.pixels.fast_jpeg.decode")
    with pytest.raises(NameError):
        decode_fast(content, "a picture", Framing(16), jpeg_header(content))


@pytest.mark.parametrize(
    "name", ["subsampling 2", "P3, turned", "progressive", "Photoshop", "restarts", "turned by XMP"]
)
def test_damaged_files_have_the_same_outcome(name: str) -> None:
    for content in damaged(ORDINARY[name], copies=40):
        check_same(content, Framing(16))


@given(st.data())
@settings(max_examples=examples(200), deadline=None)
def test_changed_headers_have_the_same_outcome(data: st.DataObject) -> None:
    content = bytearray(ORDINARY[data.draw(st.sampled_from([*ORDINARY][:40]))])
    end = content.index(b"\xff\xda") + 20
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, end))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    check_same(bytes(content), data.draw(st.sampled_from(FRAMINGS)))


@given(
    width=st.integers(16, 300),
    height=st.integers(16, 300),
    quality=st.integers(1, 100),
    subsampling=st.integers(0, 2),
    progressive=st.booleans(),
    restarts=st.integers(0, 9),
    side=st.integers(1, 90),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(200), deadline=None)
def test_any_size_has_the_same_pixels(
    width: int,
    height: int,
    quality: int,
    subsampling: int,
    progressive: bool,
    restarts: int,
    side: int,
    seed: int,
) -> None:
    content = jpeg(
        picture(width, height, seed),
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
        restart_marker_blocks=restarts,
    )
    assert isinstance(decode_fast(content, "x", Framing(side), jpeg_header(content)), np.ndarray)
    check_same(content, Framing(side))


def test_limits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETR_MAX_MEGAPIXELS", "1")
    for content in (jpeg(picture(2000, 1500)), jpeg(picture(2000, 1500), progressive=True)):
        for framing in (Framing(16), Framing(224), Framing(800)):
            check_same(content, framing)
    monkeypatch.setattr("retrieval.images.pixels.decoding_limits.MAX_SCANNED_PIXELS", 100_000)
    check_same(ORDINARY["progressive"], Framing(16))
    assert "in all scans" in str(outcome(lambda: decode(ORDINARY["progressive"], "x")))


def test_arrays_are_framed_as_images_are() -> None:
    for framing in (*FRAMINGS, Framing(40, 0.5, Resample.BILINEAR), Framing(16, 0.9, squash=True)):
        for size in ((16, 16), (300, 200), (20, 900), (18, 400)):
            pixels = picture(*size)
            expected = frame(Image.fromarray(pixels), framing)
            for many in (False, True, True, True):  # Pillow resizes the first two of a size
                out = np.empty_like(expected)
                assert frame(pixels, framing, many, out) is out
                np.testing.assert_array_equal(out, expected)
            assert pixels.flags.writeable


def test_batches_keep_the_order_of_images_around_those_that_fail() -> None:
    good = [jpeg(np.full((20, 20, 3), 8 * number, np.uint8), quality=100) for number in range(24)]
    for failing in (
        {0},
        {23},
        {5, 6, 7},
        set(range(12)),
        set(range(12, 24)),
        set(range(24)),
        set(),
    ):
        items = [
            Item(f"{n}", None, f"{n}", b"damaged" if n in failing else content)
            for n, content in enumerate(good)
        ]
        with Decoder(Framing(20), threads=3) as decoder:
            (batch,) = decoder.batches(iter(items))
        kept = [n for n in range(24) if n not in failing]
        assert [read.item.id for read in batch.decoded] == [f"{n}" for n in kept]
        assert [skip.path for skip in batch.skipped] == [f"{n}" for n in sorted(failing)]
        assert batch.images.shape == (len(kept), 20, 20, 3)
        assert batch.images[:, 0, 0, 0].tolist() == [8 * n for n in kept]
