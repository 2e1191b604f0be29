"""The ground that is laid behind transparent images, so that what is visible stays visible.

On a ground of level g, a pixel of color c and opacity α is αc + (1 - α)g. Two neighboring pixels
then differ by Δ(αc) - Δα·g in each channel; the largest of the three is the contrast of the edge
between them. An edge shows if it has SHOWN_CONTRAST of the contrast that it has on the ground that
suits it best. The ground of an image is the first of GROUNDS on which nearly as many edges show as
on any: dark and colored content stays on white, light content gets black, and content of both kinds
a gray between.
"""

import numpy as np
from PIL import Image, ImageFile

GROUNDS = (255, 0, 128, 192, 64)  # gray levels, in order of preference
SHOWN_CONTRAST = 0.25
MIN_SHOWN_EDGES = 0.95  # share of the edges that are visible on the best ground
SIDE = 128  # pixels, of the longer side at which grounds are compared

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


def on_ground(image: Image.Image) -> Image.Image:
    """Return the image (mode RGBA) in RGB, on the ground that shows its content best.

    Opaque pixels keep their values. An image without content, or of one opacity, is laid on white.
    """
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    level = ground_of(image)
    ground = Image.new("RGBA", image.size, (level, level, level, 255))
    return Image.alpha_composite(ground, image).convert("RGB")


def ground_of(image: Image.Image) -> int:
    """Return the gray level of the ground for an image of mode RGBA."""
    small = image.convert("RGBa").reduce(-(-max(image.size) // SIDE))
    pixels = np.asarray(small, np.float32)
    differences = np.concatenate([np.diff(pixels, axis=axis).reshape(-1, 4) for axis in (0, 1)])
    edges = differences[differences.any(axis=1)]
    colors, opacities = edges[:, :3, None], edges[:, 3:, None] / 255
    contrasts = np.abs(colors - opacities * np.array(GROUNDS)).max(axis=1)  # (edges, grounds)
    best = contrasts.max(axis=1, keepdims=True)
    shown = np.minimum(contrasts, SHOWN_CONTRAST * best).sum(axis=0)
    return GROUNDS[int(np.argmax(shown >= MIN_SHOWN_EDGES * shown.max()))]
