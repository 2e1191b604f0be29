"""Backgrounds for transparent images, chosen so that their content stays visible.

On a background of level g, a pixel of color c and opacity α is αc + (1 - α)g. Two neighboring
pixels then differ by Δ(αc) - Δα·g in each channel. The largest of the three differences is the
contrast of the edge between them. An edge is visible if it has at least MIN_VISIBLE_CONTRAST of its
contrast on its best background. An image gets the first of BACKGROUNDS on which nearly as many
edges are visible as on any: white for dark and colored content, black for light content, and a gray
for content of both kinds.
"""

import numpy as np
from PIL import Image, ImageFile

BACKGROUNDS = (255, 0, 128, 192, 64)  # gray levels, in order of preference
MIN_VISIBLE_CONTRAST = 0.25  # share of an edge's contrast on its best background
MIN_VISIBLE_EDGES = 0.95  # share of the edges that are visible on the best background
COMPARED_SIDE = 128  # pixels of the longer side at which backgrounds are compared

UPPER_BYTES, LOWER_BYTES = "RGB;16B", "RGB;16L"
"""Pillow's names of two ways to read colors of 16 bits in a PNG."""


def has_color_key(image: Image.Image) -> bool:
    """Return whether one color of an RGB image is transparent, by a PNG's tRNS chunk."""
    return image.mode == "RGB" and isinstance(image.info.get("transparency"), tuple)


def apply_16_bit_key(image: Image.Image, again: ImageFile.ImageFile) -> None:
    """Make the transparent color of a PNG of 16 bits the alpha of the image, in place.

    Pillow keeps the upper bytes of the colors, and compares them with all 16 bits of the key. The
    lower bytes come from `again`, the same file opened once more. An image of 8 bits stays as it
    is: Pillow's own comparison is right.
    """
    if not again.tile or again.tile[0].args != UPPER_BYTES:
        return
    again.tile = [tile._replace(args=LOWER_BYTES) for tile in again.tile]
    again.load()
    colors = np.asarray(image).astype(np.uint16) << 8 | np.asarray(again)
    opaque = (colors != np.array(image.info.pop("transparency"), np.uint16)).any(axis=2)
    image.putalpha(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))


def on_background(image: Image.Image) -> Image.Image:
    """Return the image (mode RGBA) in RGB, on the background that shows its content best.

    Opaque pixels keep their values. An image without content, or of one opacity, is laid on white.
    """
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    level = background_level(image)
    ground = Image.new("RGBA", image.size, (level, level, level, 255))
    return Image.alpha_composite(ground, image).convert("RGB")


def background_level(image: Image.Image) -> int:
    """Return the gray level of the background for an image of mode RGBA."""
    small = image.convert("RGBa").reduce(-(-max(image.size) // COMPARED_SIDE))
    pixels = np.asarray(small, np.float32)
    differences = np.concatenate([np.diff(pixels, axis=axis).reshape(-1, 4) for axis in (0, 1)])
    edges = differences[differences.any(axis=1)]
    colors, opacities = edges[:, :3, None], edges[:, 3:, None] / 255
    contrasts = np.abs(colors - opacities * np.array(BACKGROUNDS)).max(axis=1)  # (edges, levels)
    best = contrasts.max(axis=1, keepdims=True)
    shown = np.minimum(contrasts, MIN_VISIBLE_CONTRAST * best).sum(axis=0)
    return BACKGROUNDS[int(np.argmax(shown >= MIN_VISIBLE_EDGES * shown.max()))]
