"""The background of transparent images: white, or another one that keeps content visible."""

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_images_decoding import png

from retrieval.images import decode
from retrieval.images.pixels.transparency import background_level, on_background

Draw = ImageDraw.ImageDraw
CLEAR = (0, 0, 0, 0)


def drawn(draw: Callable[[Draw], object], size: tuple[int, int] = (128, 128)) -> Image.Image:
    """Return a transparent image after `draw`."""
    image = Image.new("RGBA", size, CLEAR)
    draw(ImageDraw.Draw(image))
    return image


def disc(color: object, at: int = 10) -> Callable[[Draw], None]:
    return lambda draw: draw.ellipse((at, 10, at + 50, 60), fill=color)


def both(*draws: Callable[[Draw], object]) -> Callable[[Draw], None]:
    return lambda draw: [each(draw) for each in draws] and None


@pytest.mark.parametrize(
    "color",
    ["black", "gray", "red", "blue", "green", "orange", "yellow", "cyan", "#c8c8c8", (0, 0, 0, 60)],
)
def test_dark_and_colored_content_stays_on_white(color: object) -> None:
    image = drawn(disc(color))
    white = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(white, image).convert("RGB")
    assert on_background(image).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "color", ["white", "#f8f8f8", "ivory", "#e6e6e6", (255, 255, 255, 60), (255, 255, 255, 5)]
)
def test_light_content_is_laid_on_black(color: object) -> None:
    assert background_level(drawn(disc(color))) == 0


@pytest.mark.parametrize(
    "draw",
    [
        lambda draw: draw.line((0, 0, 128, 128), fill="white"),
        lambda draw: draw.text((10, 50), "white words", fill="white"),
        lambda draw: draw.point((60, 60), fill="white"),
        lambda draw: draw.rectangle((0, 0, 128, 64), fill="white"),
    ],
)
def test_any_white_shape_shows(draw: Callable[[Draw], object]) -> None:
    image = drawn(draw)
    shown = np.asarray(on_background(image))
    visible = np.asarray(image)[..., 3] == 255
    assert (shown[visible] == 255).all()
    assert shown[np.asarray(image)[..., 3] == 0].max() == 0


def test_a_thin_line_on_a_large_image_shows() -> None:
    image = drawn(lambda draw: draw.line((0, 1, 3999, 2500), fill="white"), (4000, 3000))
    assert background_level(image) == 0


def test_content_of_several_tones_shows_wholly() -> None:
    """Every color differs from the ground, which is none of them."""
    for colors in (
        ("black", "white"),
        ("red", "white"),
        ("#1a1a1a", "#f0f0f0"),
        ("black", "#808080", "white"),
        ("navy", "ivory"),
    ):
        width = 70 * len(colors)
        draws = [disc(color, 10 + 65 * place) for place, color in enumerate(colors)]
        image = drawn(both(*draws), (width, 70))
        shown = np.asarray(on_background(image)).astype(int)
        ground = shown[0, 0]
        for place in range(len(colors)):
            assert np.abs(shown[35, 35 + 65 * place] - ground).max() >= 60, colors


def test_small_white_words_beside_a_black_drawing_show() -> None:
    draws = both(disc("black"), lambda draw: draw.text((70, 30), "words", fill="white"))
    assert background_level(drawn(draws)) not in (0, 255)


def test_white_inside_of_black_needs_no_other_ground() -> None:
    face = both(disc("black"), lambda draw: draw.rectangle((28, 30, 40, 40), fill="white"))
    assert background_level(drawn(face)) == 255


def test_rounded_corners_of_a_photo_stay_white() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 127, 95), 12, fill=255)
    image.putalpha(mask)
    assert background_level(image) == 255


def test_opaque_pixels_are_kept_to_the_bit() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    noise[..., 3] = 255
    assert np.array_equal(np.asarray(on_background(Image.fromarray(noise))), noise[..., :3])
    white = Image.new("RGBA", (9, 9), "white")
    assert on_background(white).tobytes() == white.convert("RGB").tobytes()


@pytest.mark.parametrize("color", [(0, 0, 0, 0), (255, 255, 255, 0), (255, 255, 255, 128)])
@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
def test_without_an_edge_the_ground_is_white(color: tuple[int, ...], size: tuple[int, int]) -> None:
    assert on_background(Image.new("RGBA", size, color)).getpixel((0, 0)) == (255, 255, 255)


# --- the ways of files to be transparent ---


def levels(content: bytes) -> list[list[int]]:
    return np.asarray(decode(content, "a"))[..., 0].tolist()


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_white_on_transparent_files(kind: str) -> None:
    image = Image.new("RGBA", (3, 1), (255, 255, 255, 0))
    image.putpixel((1, 0), (255, 255, 255, 255))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert levels(saved(image, kind, **options)) == [[0, 255, 0]]


def test_white_on_transparent_gray() -> None:
    image = Image.new("LA", (3, 1), (255, 0))
    image.putpixel((1, 0), (255, 255))
    assert levels(saved(image)) == [[0, 255, 0]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_white_beside_a_transparent_palette_entry(kind: str) -> None:
    image = Image.new("P", (3, 1), 0)
    image.putpalette([250, 250, 250, 255, 255, 255])
    image.putpixel((1, 0), 1)
    assert levels(saved(image, kind, transparency=0)) == [[0, 255, 0]]


def test_white_in_a_palette_of_several_opacities() -> None:
    image = Image.new("P", (3, 1), 0)
    image.putpalette([9, 9, 9, 255, 255, 255])
    image.putpixel((1, 0), 1)
    assert levels(saved(image, transparency=bytes([0, 255]))) == [[0, 255, 0]]


@pytest.mark.parametrize(
    ("bits", "color", "pixels", "clear"),
    [
        (8, 2, bytes([1, 2, 3] + [255] * 3 + [1, 2, 3]), struct.pack(">HHH", 1, 2, 3)),
        (8, 0, bytes([7, 255, 7]), struct.pack(">H", 7)),
        (16, 0, struct.pack(">HHH", 300, 65535, 300), struct.pack(">H", 300)),
        (16, 0, struct.pack(">HHH", 65534, 65535, 65534), struct.pack(">H", 65534)),
        (
            16,
            2,
            struct.pack(">9H", 300, 500, 65534, *[65535] * 3, 300, 500, 65534),
            struct.pack(">3H", 300, 500, 65534),
        ),
        (
            16,
            2,
            struct.pack(">9H", *[65534] * 3, *[65535] * 3, *[65534] * 3),
            struct.pack(">3H", *[65534] * 3),
        ),
        (16, 2, struct.pack(">9H", 1, 2, 3, *[65535] * 3, 1, 2, 3), struct.pack(">3H", 1, 2, 3)),
    ],
)
def test_white_beside_a_transparent_color(
    bits: int, color: int, pixels: bytes, clear: bytes
) -> None:
    assert levels(png(3, 1, bits, color, b"\0" + pixels, b"tRNS" + clear)) == [[0, 255, 0]]


def test_a_16_bit_color_that_differs_in_the_lower_byte_stays_opaque() -> None:
    pixels = struct.pack(">9H", 256, 256, 256, 257, 256, 256, 256, 256, 256)
    other = b"tRNS" + struct.pack(">3H", 256, 256, 255)
    # Dark gray of level 1 throughout; laid on white, a transparent pixel would be 255.
    assert levels(png(3, 1, 16, 2, b"\0" + pixels, other)) == [[1, 1, 1]]
    one = b"tRNS" + struct.pack(">3H", 257, 256, 256)
    assert levels(png(3, 1, 16, 2, b"\0" + pixels, one)) == [[1, 255, 1]]
