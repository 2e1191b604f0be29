"""ICC profiles: colors become sRGB, and images without another profile keep their pixels."""

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from retrieval.contracts import Framing
from retrieval.images import decode
from retrieval.images.pixels import color_profiles

WHITE = (0.9642, 1.0, 0.8249)  # D50, to which the primaries are adapted
# Columns of the matrices from linear RGB to XYZ, for Display P3 and for sRGB.
P3_PRIMARIES = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.1571, 0.06657, 0.78407),
)
SRGB_PRIMARIES = (
    (0.43607, 0.22249, 0.01392),
    (0.38515, 0.71687, 0.09708),
    (0.14307, 0.06061, 0.71410),
)
# Red, green and blue of sRGB in Display P3, by https://www.w3.org/TR/css-color-4.
P3_COLORS = [(234, 51, 35), (117, 251, 76), (0, 0, 245)]
SRGB_COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(gamma: float | None) -> bytes:
    """The curve of sRGB, or a power."""
    if gamma is None:
        parts = s15(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + parts
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of version 4, written out by hand: its header, the table of tags, and the tags."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + s15(*WHITE), **tags}
    for name in (b"desc", b"cprt"):
        tags[name] = b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", 2, 28) + b"\0x\0\0"
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s", at + len(body), 4 << 24, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + s15(*WHITE)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(
    primaries: tuple[tuple[float, ...], ...] = P3_PRIMARIES, gamma: float | None = None
) -> bytes:
    tags = {b"%cXYZ" % c: b"XYZ \0\0\0\0" + s15(*p) for c, p in zip(b"rgb", primaries, strict=True)}
    return icc(b"RGB ", tags | {b"%cTRC" % c: curve(gamma) for c in b"rgb"})


def gray_profile(gamma: float) -> bytes:
    return icc(b"GRAY", {b"kTRC": curve(gamma)})


P3 = rgb_profile()


def encoded(image: Image.Image, kind: str = "PNG", profile: bytes | None = None) -> bytes:
    stream = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    if kind == "WEBP":
        options = {"lossless": True}
    image.save(stream, kind, icc_profile=profile, **options)
    return stream.getvalue()


def stripes(colors: list[tuple[int, ...]], mode: str = "RGB", width: int = 16) -> Image.Image:
    """A picture of one square for each color."""
    image = Image.new(mode, (width * len(colors), width))
    for number, color in enumerate(colors):
        image.paste(color, (width * number, 0, width * (number + 1), width))
    return image


def colors_of(image: Image.Image, count: int = 3) -> list[list[int]]:
    pixels = np.asarray(image).astype(int)
    width = image.width // count
    return [pixels[width // 2, width // 2 + width * n].tolist() for n in range(count)]


def random_pixels(height: int = 40, width: int = 30) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_wide_gamut_colors_become_srgb(kind: str) -> None:
    image = decode(encoded(stripes(P3_COLORS), kind, P3), "x")
    assert np.abs(np.subtract(colors_of(image), SRGB_COLORS)).max() <= 6
    assert "icc_profile" not in image.info


def test_conversion_equals_the_formula() -> None:
    """Compare with the matrix and the curve, for colors inside the gamut of sRGB."""
    given = random_pixels()
    linear = np.asarray(given) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(P3_PRIMARIES)
    wanted = xyz @ np.linalg.inv(np.array(SRGB_PRIMARIES))
    inside = ((wanted >= 0) & (wanted <= 1)).all(axis=2)
    power = 1.055 * np.maximum(wanted, 0.0031308) ** (1 / 2.4) - 0.055
    wanted = 255 * np.where(wanted <= 0.0031308, 12.92 * wanted, power)
    got = np.asarray(decode(encoded(given, "PNG", P3), "x")).astype(float)
    assert inside.sum() > 500
    assert np.abs(got - wanted)[inside].max() <= 2


@pytest.mark.parametrize(
    "profile",
    [
        None,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        rgb_profile(SRGB_PRIMARIES),
        P3[:100],
        P3[:300],
        b"no profile",
        gray_profile(1.0),  # of another color space
        P3.ljust(color_profiles.MAX_PROFILE_BYTES + 1, b"\0"),
    ],
    ids=["none", "srgb of lcms", "srgb", "head", "cut", "text", "gray", "too large"],
)
def test_pixels_stay_without_another_profile(profile: bytes | None) -> None:
    given = random_pixels()
    assert np.array_equal(np.asarray(decode(encoded(given, "TIFF", profile), "x")), given)


def test_a_damaged_profile_is_ignored_or_applied() -> None:
    given = random_pixels(4, 4)
    random = np.random.default_rng(1)
    for _ in range(60):
        profile = bytearray(P3)
        for position in random.integers(len(P3), size=3):
            profile[position] = random.integers(256)
        assert decode(encoded(given, "TIFF", bytes(profile)), "x").size == (4, 4)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("mode", ["L", "LA"])
def test_gray_profiles(gamma: float, mode: str) -> None:
    levels = [0, 10, 60, 128, 240, 255]
    linear = np.array(levels) / 255
    linear = linear**gamma
    power = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    wanted = 255 * np.where(linear <= 0.0031308, 12.92 * linear, power)
    image = stripes([(level,) for level in levels], "L")
    if mode == "LA":
        image.putalpha(255)
        image.putpixel((0, 0), (0, 0))  # it has transparency
    got = decode(encoded(image, "PNG", gray_profile(gamma)), "x")
    for channel in np.array(colors_of(got, len(levels))).T:
        assert np.abs(channel - wanted).max() <= 1


def test_gray_of_16_bits() -> None:
    stream = io.BytesIO()
    values = np.full((4, 4), 128 << 8, np.uint16)
    Image.fromarray(values).save(stream, "PNG", icc_profile=gray_profile(1.0))
    assert decode(stream.getvalue(), "x").getpixel((0, 0)) == (188, 188, 188)


def test_gray_with_a_profile_of_rgb_stays() -> None:
    gray = random_pixels().convert("L")
    got = decode(encoded(gray, "PNG", P3), "x")
    assert np.array_equal(np.asarray(got), gray.convert("RGB"))


def test_palettes_and_transparent_images_are_converted() -> None:
    palette = stripes(P3_COLORS).quantize(3)
    assert (
        np.abs(np.subtract(colors_of(decode(encoded(palette, "PNG", P3), "x")), SRGB_COLORS)).max()
        <= 3
    )
    image = stripes(P3_COLORS).convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    got = decode(encoded(image, "PNG", P3), "x")
    assert np.abs(np.subtract(colors_of(got), SRGB_COLORS)).max() <= 3
    assert got.getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_with_a_profile() -> None:
    """A profile of four inks as a table: each ink darkens by its share, and black most."""
    profile = cmyk_profile()
    image = stripes([(0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 128)], "CMYK")
    plain = colors_of(decode(encoded(image, "TIFF"), "x"))
    assert plain[2] == [127, 127, 127]
    got = colors_of(decode(encoded(image, "TIFF", profile), "x"))
    assert min(got[0]) >= 250
    assert max(got[1]) <= 5
    assert 115 <= got[2][0] <= 122  # L* = 50 is 119 in sRGB


def cmyk_profile() -> bytes:
    """A profile whose lightness is 100 less the sum of the inks; `lut8` of 2 points an ink."""
    grid = np.indices((2, 2, 2, 2)).reshape(4, -1).sum(axis=0)
    lab = np.stack([np.where(grid == 0, 255, 0), 0 * grid + 128, 0 * grid + 128], axis=1)
    line = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += 4 * line + lab.astype(np.uint8).tobytes() + 3 * line
    profile = bytearray(icc(b"CMYK", {b"A2B0": table}))
    profile[8:12] = bytes((2, 0x40, 0, 0))
    profile[12:16], profile[20:24] = b"prtr", b"Lab "
    return bytes(profile)


def test_a_large_image_is_reduced_before_it_is_converted() -> None:
    image = stripes(P3_COLORS, width=400)
    content = encoded(image, "PNG", P3)
    framed = decode(content, "x", Framing(32))
    least = 2 * round(32 / Framing(32).crop)
    assert least <= min(framed.size) < 2 * least
    assert np.abs(np.subtract(colors_of(framed), SRGB_COLORS)).max() <= 3
    assert decode(content, "x").size == image.size
    assert decode(encoded(image, "PNG"), "x", Framing(32)).size == image.size


def test_images_of_pillow_are_converted_in_a_copy() -> None:
    image = Image.open(io.BytesIO(encoded(stripes(P3_COLORS), "PNG", P3)))
    assert np.abs(np.subtract(colors_of(decode(image, "x")), SRGB_COLORS)).max() <= 3
    assert colors_of(image) == [list(color) for color in P3_COLORS]


def test_profiles_are_converted_in_threads() -> None:
    images = [encoded(random_pixels(50 + n, 60), "PNG", P3) for n in range(8)]
    alone = [np.asarray(decode(each, "x")) for each in images]
    color_profiles._conversion.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        together = [*threads.map(lambda each: np.asarray(decode(each, "x")), 5 * images)]
    assert all(np.array_equal(a, b) for a, b in zip(5 * alone, together, strict=True))


def test_without_littlecms_profiles_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(color_profiles.features, "check", lambda name: False)
    color_profiles._conversion.cache_clear()
    got = colors_of(decode(encoded(stripes(P3_COLORS), "PNG", P3), "x"))
    color_profiles._conversion.cache_clear()
    assert got == [list(color) for color in P3_COLORS]
