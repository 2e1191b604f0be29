"""Photos of four colors, which the toy encoder separates."""

from pathlib import Path

import numpy as np
from PIL import Image

from retrieval import open_embeddings, open_encoder
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from tests.cli.pictures import picture


def color_photos(folder: Path, seed: int = 0) -> None:
    """Save twenty noisy images of each of four colors."""
    colours = {"blue": (0, 0, 200), "cyan": (0, 200, 200), "green": (0, 200, 0), "red": (200, 0, 0)}
    for label, colour in colours.items():
        for number in range(20):
            pixels = picture(seed + number) // 8 + np.array(colour, np.uint8)
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def other_photos(folder: Path) -> Path:
    color_photos(folder / "others", seed=50)
    encode_source(open_source(str(folder / "others")), open_encoder("toy"), folder / "e-others")
    assert len(open_embeddings(folder / "e-others")) == 80
    return folder / "e-others"
