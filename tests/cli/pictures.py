"""Pictures for tests: good ones with a known mean color, and bad ones of each kind."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

SIDE = 8  # the toy encoder's input size, so that nothing is resampled


def picture(seed: int) -> NDArray[np.uint8]:
    """Return pixels (8, 8, 3) around a color drawn by the seed."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(40, 216, 3)
    return (colour + rng.integers(-40, 40, (SIDE, SIDE, 3))).astype(np.uint8)


def mean_colour(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean of red, green and blue from 0 to 1, (3,): an oracle of the toy encoder."""
    channels = [float(pixels[:, :, channel].astype(np.int64).sum()) for channel in range(3)]
    return np.array(channels) / (255 * SIDE * SIDE)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return the picture as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save(path: Path, seed: int) -> NDArray[np.uint8]:
    """Save the picture of this seed as a PNG, and return its pixels."""
    pixels = picture(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels))
    return pixels


def save_parquet(path: Path, contents: Sequence[bytes], labels: Sequence[str | None]) -> None:
    """Write encoded images and labels in the Hugging Face image schema."""
    images = [{"bytes": content, "path": None} for content in contents]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(images, kind), "label": pa.array(labels, pa.string())}
    pq.write_table(pa.table(columns), path)


def vast_png() -> bytes:
    """Return the PNG of a black image of 30,000 × 30,000 pixels of one bit."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    side = 30_000
    rows = zlib.compressobj(1)
    row = bytes(1 + side // 8)
    data = b"".join(rows.compress(row * 1000) for _ in range(side // 1000)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (bytes, "empty file"),
    "text.png": (lambda: b"This is a letter, not a picture.\n", "not an image"),
    "truncated.png": (lambda: png(picture(0))[:120], "truncated"),
    "header-only.png": (lambda: png(picture(0))[:8], "truncated"),
    "vast.png": (vast_png, "900,000,000 pixels"),
}
"""Images that cannot be read: their content, and words of the error."""


def save_bad(folder: Path) -> None:
    """Save one bad image of each kind into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (content, _) in BAD.items():
        (folder / name).write_bytes(content())
