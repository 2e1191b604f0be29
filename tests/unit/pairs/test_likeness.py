"""Likeness of images: copies show the same picture, similar images do not."""

import io
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from sklearn.datasets import load_sample_images

from retrieval.pairs.likeness import (
    TURNS,
    Patterns,
    Turn,
    framed,
    likeness,
    stretched,
    turned,
)

WORDS = ("close", "edit", "file", "help", "house", "index", "light", "number", "order", "river")
LANCZOS, BICUBIC = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC


@cache
def photo(number: int) -> Image.Image:
    return Image.fromarray(load_sample_images().images[number])


def blots(seed: int, size: tuple[int, int] = (400, 300)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, BICUBIC)


def words(seed: int, count: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def window(
    seed: int, size: tuple[int, int] = (800, 600), lines: int = 25, letters: int = 14
) -> Image.Image:
    """A window with a title bar and text that depends on the seed."""
    image = Image.new("RGB", size, "#ececec")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(letters)
    draw.rectangle((0, 0, size[0], 28), fill="#3c5aa0")
    draw.text((10, 6), "Notes", fill="white", font=ImageFont.load_default(14))
    draw.rectangle((10, 40, size[0] - 10, size[1] - 10), fill="white", outline="black")
    for line in range(lines):
        at = (20, 50 + line * letters * 3 // 2)
        draw.text(at, words(1000 * seed + line, 14), fill="black", font=font)
    return image


def dialog(message: str) -> Image.Image:
    image = Image.new("RGB", (400, 200), "#ececec")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 400, 28), fill="#3c5aa0")
    draw.text((30, 80), message, fill="black", font=ImageFont.load_default(18))
    return image


def icon(shape: str, ink: str = "black", paper: str = "white") -> Image.Image:
    image = Image.new("RGB", (128, 128), paper)
    draw = ImageDraw.Draw(image)
    if shape == "disc":
        draw.ellipse((20, 20, 108, 108), fill=ink)
    elif shape == "square":
        draw.rectangle((24, 24, 104, 104), fill=ink)
    elif shape == "ring":
        draw.ellipse((20, 20, 108, 108), outline=ink, width=12)
    else:
        draw.line((0, 0, 128, 128), fill=ink, width=12)
    return image


def sprite(seed: int) -> Image.Image:
    half = np.random.default_rng(seed).integers(0, 2, (16, 8)) * 255
    return Image.fromarray(np.hstack([half, half[:, ::-1]]).astype(np.uint8)).convert("RGB")


def squares(seed: int, count: int) -> Image.Image:
    """A code of black and white squares, as on labels."""
    cells = np.random.default_rng(seed).integers(0, 2, (count, count)) * 255
    return Image.fromarray(np.kron(cells, np.ones((6, 6))).astype(np.uint8)).convert("RGB")


def plain(*color: int) -> Image.Image:
    return Image.new("RGB", (64, 64), color)


def panorama(left: int, middle: int, right: int) -> Image.Image:
    image = Image.new("RGB", (1500, 300))
    for seed, start, width in ((left, 0, 600), (middle, 600, 300), (right, 900, 600)):
        image.paste(blots(seed, (width, 300)), (start, 0))
    return image


def with_object(image: Image.Image, at: tuple[int, int], side: int) -> Image.Image:
    shown, mask = image.copy(), Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    shown.paste(photo(1).resize((side, side)), at, mask)
    return shown


def gradient(high: int, axis: int) -> Image.Image:
    values = np.linspace(0, high, 200).astype(np.uint8)
    return Image.fromarray(np.stack([np.stack([values] * 200, axis)] * 3, axis=-1))


PICTURES = {
    "photo": lambda: photo(0),
    "second photo": lambda: photo(1),
    "large photo": lambda: photo(0).resize((1600, 1067), BICUBIC),
    "small photo": lambda: photo(1).resize((96, 64), LANCZOS),
    "thumbnail": lambda: photo(0).resize((32, 32), LANCZOS),
    "blots": lambda: blots(1),
    "window": lambda: window(1),
    "window with few words": lambda: window(1, lines=3),
    "page": lambda: window(1, (1240, 1754), 45, 24),
    "disc": lambda: icon("disc"),
    "line": lambda: icon("line"),
    "white ring": lambda: icon("ring", "white", "black"),
    "code": lambda: squares(1, 29),
    "panorama": lambda: panorama(1, 2, 3),
    "plain": lambda: plain(120, 90, 140),
}


def saved(image: Image.Image, kind: str, **options: object) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return Image.open(stream).convert("RGB")


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, LANCZOS if factor < 1 else BICUBIC)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 60": lambda image: saved(image, "JPEG", quality=60),
    "JPEG, quality 75": lambda image: saved(image, "JPEG", quality=75),
    "JPEG, quality 95": lambda image: saved(image, "JPEG", quality=95),
    "WebP": lambda image: saved(image, "WEBP", quality=75),
    "half as large": lambda image: scaled(image, 0.5),
    "0.7 times as large": lambda image: scaled(image, 0.7),
    "1.5 times as large": lambda image: scaled(image, 1.5),
    "twice as large": lambda image: scaled(image, 2),
    "smaller and JPEG": lambda image: saved(scaled(image, 0.7), "JPEG", quality=75),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.1),
    "slightly darker": lambda image: image.point(lambda value: int(0.96 * value)),
}


def alike(one: Image.Image, two: Image.Image) -> bool:
    """Return what `retr duplicates` decides: at 16 × 16 pixels first."""
    patterns = [Patterns.of(stretched(image, 16)[None]) for image in (one, two)]
    a, b = framed(one), framed(two)
    found = likeness(a, b)
    assert likeness(b, a) == pytest.approx(found), "the order counts"
    close = patterns[0].correlations(patterns[1])[0] >= 0.95
    return bool(close and found is not None and found >= 0.95)


picture = cache(lambda name: PICTURES[name]())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (name, change)
        for name in PICTURES
        for change in CHANGES
        if name != "plain" or change not in ("more contrast", "slightly darker")  # another color
    ],
)
def test_copies_are_alike(name: str, change: str) -> None:
    assert alike(picture(name), CHANGES[change](picture(name)))


LOOKALIKES = {
    "windows with other text": lambda: (window(1), window(2)),
    "large windows with small text": lambda: (
        window(1, (1920, 1080), 60, 11),
        window(2, (1920, 1080), 60, 11),
    ),
    "windows with a few other words": lambda: (window(1, lines=2), window(2, lines=2)),
    "pages of other text": lambda: (
        window(1, (1240, 1754), 45, 24),
        window(2, (1240, 1754), 45, 24),
    ),
    "dialogs with another word": lambda: (dialog("Save the file?"), dialog("Open the file?")),
    "clocks": lambda: (dialog("12:41"), dialog("12:58")),
    "panoramas with a shared middle": lambda: (panorama(1, 2, 3), panorama(4, 2, 5)),
    "panoramas with a shared half": lambda: (panorama(1, 2, 3), panorama(1, 2, 5)),
    "a disc and a square": lambda: (icon("disc"), icon("square")),
    "a disc and a ring": lambda: (icon("disc"), icon("ring")),
    "an icon and its negative": lambda: (icon("disc"), icon("disc", "white", "black")),
    "an icon in another color": lambda: (icon("disc", "red"), icon("disc", "blue")),
    "sprites": lambda: (sprite(1), sprite(2)),
    "codes of few squares": lambda: (squares(1, 21), squares(2, 21)),
    "codes of many squares": lambda: (squares(1, 97), squares(2, 97)),
    "a small object moved": lambda: (
        with_object(photo(0), (50, 50), 40),
        with_object(photo(0), (500, 300), 40),
    ),
    "a large object moved a little": lambda: (
        with_object(photo(0), (200, 150), 130),
        with_object(photo(0), (230, 150), 130),
    ),
    "an object that left": lambda: (photo(0), with_object(photo(0), (300, 200), 60)),
    "day and night": lambda: (photo(0), photo(0).point(lambda value: value // 2)),
    "day and dusk": lambda: (photo(0), photo(0).point(lambda value: int(0.65 * value))),
    "a photo and its gray copy": lambda: (photo(1), photo(1).convert("L").convert("RGB")),
    "gradients of two directions": lambda: (gradient(255, 0), gradient(255, 1)),
    "gradients of two ranges": lambda: (gradient(255, 0), gradient(150, 0)),
    "black and white": lambda: (plain(0, 0, 0), plain(255, 255, 255)),
    "black and nearly black": lambda: (plain(0, 0, 0), plain(8, 8, 8)),
    "two grays": lambda: (plain(100, 100, 100), plain(104, 104, 104)),
    "two colors of one brightness": lambda: (plain(200, 30, 60), plain(60, 110, 60)),
    "a plain image and a gradient": lambda: (plain(127, 127, 127), gradient(255, 0)),
    "another aspect ratio": lambda: (blots(1), blots(1).resize((300, 400))),
    "an aspect ratio ten percent wider": lambda: (blots(1), blots(1).resize((440, 300))),
    "a crop": lambda: (photo(0), photo(0).crop((32, 21, 608, 406))),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes_are_not_alike(name: str) -> None:
    one, two = LOOKALIKES[name]()
    assert not alike(one, two)


def test_images_of_one_color_are_alike_if_the_color_is() -> None:
    assert alike(plain(100, 100, 100), plain(100, 100, 100).resize((200, 200)))
    assert alike(plain(100, 100, 100), plain(102, 101, 100)), "as JPEG rounds"
    assert not alike(plain(255, 0, 0), plain(0, 0, 255))


def test_a_larger_tolerance_takes_crops_for_copies() -> None:
    image, crop = photo(0), photo(0).crop((6, 4, 634, 423))
    assert likeness(framed(image), framed(crop)) is None
    assert likeness(framed(image), framed(crop), tolerance=4) is not None


@pytest.mark.parametrize(("size", "side"), [((1, 1), 8), ((32, 32), 16), ((300, 127), 32)])
def test_frames_are_smaller_than_images(size: tuple[int, int], side: int) -> None:
    frame = framed(Image.new("RGB", size))
    assert frame.pixels.shape == (side, side, 3)
    assert frame.aspect == size[0] / size[1]
    assert framed(Image.new("RGB", (4000, 3000))).pixels.shape == (256, 256, 3)


def test_correlations_are_those_of_pearson() -> None:
    """Noise hardly counts if contrast is large."""
    one, two = (np.asarray(blots(seed, (16, 16))) for seed in (1, 2))
    centered = [(image - image.mean(axis=(0, 1))).ravel() for image in (one, two)]
    expected = np.corrcoef(*centered)[0, 1]
    a, b = (Patterns.of(image[None]) for image in (one, two))
    assert a.correlations(b)[0] == pytest.approx(expected, abs=0.01)
    assert a.correlations(a)[0] == pytest.approx(1, abs=1e-6)
    flipped = Patterns.of(one[None, :, ::-1])
    assert a.turned(Turn(True, 0)).correlations(flipped)[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_image_is_alike_once_turned(turn: Turn) -> None:
    image = photo(0)
    shown = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turn.mirrored else image
    shown = shown.rotate(-turn.rotated, expand=True)  # clockwise
    for each in TURNS:
        found = likeness(turned(framed(image), each), framed(shown))
        assert found == (pytest.approx(1, abs=0.01) if each == turn else None)
    back = likeness(turned(framed(shown), turn.reversed()), framed(image))
    assert back == pytest.approx(1, abs=0.01)


def test_turns_have_names() -> None:
    assert [turn.in_words() for turn in TURNS[:4]] == [
        "",
        "mirrored",
        "rotated 90°",
        "mirrored, rotated 90°",
    ]
