"""Camera RAW: the preview if it is large enough, else the sensor's pixels; here from small DNGs."""

import io
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from retrieval.contracts import Framing
from retrieval.errors import BadImage
from retrieval.images import decode
from retrieval.images.facts import facts_of
from retrieval.images.pixels.megapixels import MEGAPIXELS_VARIABLE
from tests.damaged import refused

pytest.importorskip("rawpy")

BYTE, TEXT, SHORT, LONG, RATIO, SIGNED_RATIO = 1, 2, 3, 4, 5, 10
TYPES = {BYTE: "B", SHORT: "H", LONG: "I", RATIO: "II", SIGNED_RATIO: "ii"}
IDENTITY = [(1, 1), (0, 1), (0, 1), (0, 1), (1, 1), (0, 1), (0, 1), (0, 1), (1, 1)]
CROSS_WIDTH = 128  # of the sensor's picture below

Tag = tuple[int, int, Sequence[object]]


def directory(tags: list[Tag], at: int) -> bytes:
    """A directory of a TIFF at this offset, followed by its longer values."""
    head, data = struct.pack("<H", len(tags)), b""
    data_at = at + 2 + 12 * len(tags) + 4
    for number, kind, values in sorted(tags):
        value = b"".join(
            bytes(v) if isinstance(v, bytes) else struct.pack("<" + TYPES[kind], *np.atleast_1d(v))
            for v in values
        )
        count = len(value) if kind == TEXT else len(values)
        head += struct.pack("<HHI", number, kind, count)
        if len(value) <= 4:
            head += value.ljust(4, b"\0")
        else:
            head += struct.pack("<I", data_at + len(data))
            data += value + bytes(len(value) % 2)
    return head + bytes(4) + data


def dng(
    mosaic: NDArray[np.uint16], preview: Image.Image | None = None, orientation: int = 1
) -> bytes:
    """A digital negative with these pixels of red, green, green and blue, without compression."""
    height, width = mosaic.shape
    pixels, jpeg = mosaic.astype("<u2").tobytes(), b""
    if preview is not None:
        stream = io.BytesIO()
        preview.save(stream, "JPEG", quality=95)
        jpeg = stream.getvalue() + bytes(len(stream.getvalue()) % 2)
    at = 8 + len(pixels) + len(jpeg)
    sensor: list[Tag] = [
        *((254, LONG, [0]), (256, LONG, [width]), (257, LONG, [height]), (258, SHORT, [16])),
        *((259, SHORT, [1]), (262, SHORT, [32803]), (273, LONG, [8]), (277, SHORT, [1])),
        *((278, LONG, [height]), (279, LONG, [len(pixels)]), (33421, SHORT, [2, 2])),
        *((33422, BYTE, [0, 1, 1, 2]), (50714, LONG, [0]), (50717, LONG, [65535])),
    ]
    camera: list[Tag] = [
        *((271, TEXT, [b"Maker\0"]), (272, TEXT, [b"Model\0"]), (274, SHORT, [orientation])),
        *((50706, BYTE, [1, 4, 0, 0]), (50708, TEXT, [b"Maker Model\0"])),
        *((50721, SIGNED_RATIO, IDENTITY), (50728, RATIO, 3 * [(1, 1)]), (50778, SHORT, [21])),
    ]
    if preview is None:
        body = directory(sensor + camera, at)
    else:
        wide, high = preview.size
        first: list[Tag] = [
            *((254, LONG, [1]), (256, LONG, [wide]), (257, LONG, [high]), (258, SHORT, [8, 8, 8])),
            *((259, SHORT, [7]), (262, SHORT, [6]), (273, LONG, [8 + len(pixels)])),
            *((277, SHORT, [3]), (278, LONG, [high]), (279, LONG, [len(jpeg)]), *camera),
        ]
        below = at + len(directory([*first, (330, LONG, [0])], at))
        body = directory([*first, (330, LONG, [below])], at) + directory(sensor, below)
    return b"II*\0" + struct.pack("<I", at) + pixels + jpeg + body


def sensor(height: int = 96, width: int = CROSS_WIDTH) -> NDArray[np.uint16]:
    """A red picture whose upper left corner is black."""
    mosaic = np.full((height, width), 3000, np.uint16)
    mosaic[::2, ::2] = 50000
    mosaic[: height // 3, : width // 3] = 0
    return mosaic


def preview(width: int = 1200, height: int = 900) -> Image.Image:
    """A blue picture whose upper left corner is green."""
    image = Image.new("RGB", (width, height), (0, 0, 255))
    image.paste((0, 255, 0), (0, 0, width // 3, height // 3))
    return image


# The corner of the upright picture in which the upper left corner of the sensor is.
CORNERS = {1: (0, 0), 3: (-1, -1), 6: (-1, 0), 8: (0, -1)}


def is_like(image: Image.Image, at: tuple[int, int], color: tuple[int, int, int]) -> bool:
    """Whether the pixel is near the color; -1 is the last column or row."""
    x, y = ((size - 5) if place else 5 for size, place in zip(image.size, at, strict=True))
    return bool(np.abs(np.subtract(image.getpixel((x, y)), color)).max() < 16)


@pytest.mark.parametrize("orientation", CORNERS)
def test_a_large_preview_is_taken_upright(orientation: int) -> None:
    image = decode(dng(sensor(), preview(), orientation), "x.dng")
    assert image.size == ((900, 1200) if orientation in (6, 8) else (1200, 900))
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        wanted = (0, 255, 0) if corner == CORNERS[orientation] else (0, 0, 255)
        assert is_like(image, corner, wanted)


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("with_preview", [True, False])
def test_the_sensor_is_developed_upright(orientation: int, with_preview: bool) -> None:
    small = preview(160, 120) if with_preview else None
    image = decode(dng(sensor(), small, orientation), "x.dng")
    assert image.size == ((48, 64) if orientation in (6, 8) else (64, 48))
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        is_black = is_like(image, corner, (0, 0, 0))
        assert is_black == (corner == CORNERS[orientation])
        red, green, _ = image.getpixel((image.width // 2, image.height // 2))  # type: ignore[misc]
        assert red > 200 > 100 > green


def test_a_preview_that_is_upright_already_is_not_turned_again() -> None:
    image = decode(dng(sensor(), preview(900, 1200), orientation=6), "x.dng")
    assert image.size == (900, 1200)
    assert is_like(image, (0, 0), (0, 255, 0))


@pytest.mark.parametrize(
    ("side", "width", "is_preview"),
    [(None, 1024, True), (None, 1023, False), (100, 200, True), (100, 199, False)],
)
def test_a_preview_has_twice_the_side_of_the_framing(
    side: int | None, width: int, is_preview: bool
) -> None:
    framing = None if side is None else Framing(side)
    image = decode(dng(sensor(), preview(width, 3 * width // 4)), "x.dng", framing)
    assert (image.size != (64, 48)) == is_preview


def test_a_large_preview_is_reduced_as_a_jpeg() -> None:
    stream = io.BytesIO()
    preview(1600, 1200).save(stream, "JPEG", quality=95)
    wanted = decode(stream.getvalue(), "x", Framing(64))
    image = decode(dng(sensor(), preview(1600, 1200)), "x.dng", Framing(64))
    assert image.size == wanted.size < (1600, 1200)
    assert np.array_equal(np.asarray(image), np.asarray(wanted))


def test_a_dng_is_known_without_its_suffix() -> None:
    for content in (dng(sensor()), dng(sensor(), preview())):
        assert decode(content, "x").size == decode(content, "x.dng").size


def test_a_tiff_that_is_named_as_raw_and_is_none_is_refused() -> None:
    stream = io.BytesIO()
    preview(40, 30).save(stream, "TIFF")
    with pytest.raises(BadImage, match="truncated or damaged"):
        decode(stream.getvalue(), "x.nef")


def test_a_damaged_preview_is_replaced_by_the_sensor() -> None:
    content = dng(sensor(), preview())
    start = content.index(b"\xff\xda")  # the pixels of the JPEG
    changed = content[:start] + bytes(100) + content[start + 100 :]
    changed = changed.replace(b"\xff\xc0", b"\xff\xff")
    assert decode(changed, "x.dng").size == (64, 48)


def test_limit_on_pixels_is_that_of_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    mosaic = sensor(1000, 1200)
    monkeypatch.setenv(MEGAPIXELS_VARIABLE, "1")
    with pytest.raises(BadImage, match=r"1,200,000 pixels; the maximum is 1,000,000"):
        decode(dng(mosaic), "x.dng")
    assert decode(dng(mosaic, preview(1100, 825)), "x.dng").size == (1100, 825)


def test_a_cut_file_is_refused() -> None:
    content = dng(sensor())
    for end in (1, 4, 9, 100, len(content) // 2):
        with pytest.raises(BadImage, match="truncated or damaged"):
            decode(content[:end], "x.dng")


@pytest.mark.parametrize("with_preview", [True, False])
def test_damaged_files_are_refused_or_decoded(with_preview: bool) -> None:
    content = dng(sensor(24, 32), preview(160, 120) if with_preview else None)
    assert refused(content, "x.dng") > 20


def test_facts_are_those_of_the_sensor_and_of_its_tags() -> None:
    mosaic = np.zeros((96, CROSS_WIDTH), np.uint16)
    facts = facts_of(dng(mosaic, orientation=6), "a.dng")
    assert (facts.width, facts.height) == (96, CROSS_WIDTH)
    assert (facts.format, facts.camera) == ("camera RAW", "Model")
