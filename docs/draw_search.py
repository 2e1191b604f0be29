"""Draw docs/search.png: four drawn scenes, and their neighbors among 240 others.

Usage: python docs/draw_search.py

The scenes are drawn here, so that the picture shows nobody's photographs.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 256, 192
SCENES_OF_A_KIND = 60
ENCODER = "pretrained:tf_efficientnet_lite0"

Draw = Callable[[np.random.Generator], Image.Image]
Color = tuple[int, int, int]


def color(rng: np.random.Generator, center: Color, spread: int = 25) -> Color:
    """Return a color near another one."""
    red, green, blue = (int(np.clip(c + rng.integers(-spread, spread + 1), 0, 255)) for c in center)
    return red, green, blue


def sky(top: Color, bottom: Color) -> Image.Image:
    """Return a picture that changes from one color at the top to another at the bottom."""
    share = np.linspace(0, 1, HEIGHT)[:, None, None]
    rows = (1 - share) * np.array(top) + share * np.array(bottom)
    return Image.fromarray(np.broadcast_to(rows, (HEIGHT, WIDTH, 3)).astype(np.uint8))


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: Color) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill)


def sunset(rng: np.random.Generator) -> Image.Image:
    image = sky(color(rng, (70, 50, 110)), color(rng, (250, 150, 60)))
    draw = ImageDraw.Draw(image)
    x, radius = int(rng.integers(50, 206)), int(rng.integers(14, 30))
    horizon = int(rng.integers(110, 135))
    y = horizon - int(rng.integers(0, 30))
    disc(draw, x, y, radius, color(rng, (255, 225, 130)))
    draw.rectangle((0, horizon, WIDTH, HEIGHT), color(rng, (45, 40, 85)))
    for _ in range(60):
        wave = int(rng.integers(horizon, HEIGHT))
        start = x + int(rng.normal(0, 12 + (wave - horizon) / 2))
        draw.line((start - 9, wave, start + 9, wave), color(rng, (250, 170, 90)))
    return image


def mountains(rng: np.random.Generator) -> Image.Image:
    image = sky(color(rng, (90, 150, 220)), color(rng, (215, 230, 245)))
    draw = ImageDraw.Draw(image)
    for base, shade in ((90, (130, 140, 165)), (125, (85, 100, 125)), (155, (50, 85, 65))):
        peaks = np.interp(
            np.arange(WIDTH), np.arange(0, 300, 30), base + rng.normal(0, 26, 10)
        ) + rng.normal(0, 1.2, WIDTH)
        tone = color(rng, shade, 15)
        for x, y in enumerate(peaks):
            draw.line((x, y, x, HEIGHT), tone)
            if base == 90:
                draw.line((x, y, x, y + max(0, 85 - y) * 0.7), (245, 248, 252))
    return image


def city(rng: np.random.Generator) -> Image.Image:
    image = sky(color(rng, (10, 12, 35), 8), color(rng, (55, 45, 95)))
    draw = ImageDraw.Draw(image)
    x = 0
    while x < WIDTH:
        width, height = int(rng.integers(18, 42)), int(rng.integers(50, 150))
        draw.rectangle((x, HEIGHT - height, x + width, HEIGHT), color(rng, (25, 25, 40), 10))
        for left in range(x + 4, x + width - 4, 7):
            for top in range(HEIGHT - height + 5, HEIGHT - 4, 10):
                if rng.random() < 0.55:
                    draw.rectangle((left, top, left + 3, top + 4), color(rng, (250, 215, 120), 20))
        x += width + int(rng.integers(0, 5))
    return image


def flowers(rng: np.random.Generator) -> Image.Image:
    image = sky(color(rng, (95, 160, 75)), color(rng, (45, 110, 40)))
    draw = ImageDraw.Draw(image)
    petals = color(rng, ((225, 60, 90), (250, 210, 60), (185, 90, 200))[rng.integers(3)], 20)
    for _ in range(14):
        x, y = int(rng.integers(10, 246)), int(rng.integers(15, 178))
        size = 6 + y // 14
        for angle in np.linspace(0, 2 * np.pi, 7)[:-1] + rng.random():
            disc(draw, x + size * np.cos(angle), y + size * np.sin(angle), size * 0.6, petals)
        disc(draw, x, y, size / 2, (250, 200, 50))
    return image


def main() -> None:
    """Draw the scenes, search them with `retr`, and write the sheet beside this file."""
    rng = np.random.default_rng(1)
    sheet = Path(__file__).with_name("search.png")
    with tempfile.TemporaryDirectory() as temporary:
        for kind, draw in KINDS.items():
            save(draw(rng), Path(temporary, "queries", f"{kind}.png"))
            for number in range(SCENES_OF_A_KIND):
                save(draw(rng), Path(temporary, "scenes", kind, f"{number:02}.png"))
        queries = [f"queries/{kind}.png" for kind in KINDS]
        for command in (
            ("encode", "scenes", "--encoder", ENCODER),
            ("index", "--backend", "hnsw", "--out", "scenes-index"),
            ("search", *queries, "-k", "5", "--index", "scenes-index", "--sheet", sheet),
        ):
            retr = Path(sys.executable).with_name("retr")
            subprocess.run([retr, *command], cwd=temporary, check=True, stdout=sys.stderr)


def save(image: Image.Image, path: Path) -> None:
    """Write the picture, its edges softened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.filter(ImageFilter.GaussianBlur(0.7)).save(path)


KINDS: dict[str, Draw] = {
    "city": city,
    "flowers": flowers,
    "mountains": mountains,
    "sunset": sunset,
}

if __name__ == "__main__":
    main()
