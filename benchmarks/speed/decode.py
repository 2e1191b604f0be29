"""Compare ways to decode images beside a network: `python -m benchmarks.speed.decode --help`.

For each size, generated photographs are read from files, decoded and framed by `Decoder`, as `retr
encode` does it. The ways alternate, so that a slow phase of the machine affects all of them:

- `decoder`: ordinary JPEGs are decoded by simplejpeg.
- `pillow`: the same, but Pillow reads headers and decodes.
- `bare_simplejpeg` and `bare_pillow`: only decoding, from bytes in memory, at the same scale.

`arrays` are images of 32 × 32 in memory, as of CIFAR-10, which are not decoded. All rates are
images per second with the given number of threads.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.speed.encode import write_photographs
from benchmarks.suite import machine
from retrieval.contracts import Framing, Json
from retrieval.embedding.decoder import Decoder
from retrieval.images import Item, open_source
from retrieval.images.pixels.decoding_limits import jpeg_divisor
from retrieval.images.pixels.jpeg_header import JpegFrame
from retrieval.runtime.threads import usable_cores

FRAMING = Framing(224, 0.875)
SIZES = {"640x480": (640, 480), "2 megapixels": (1632, 1224), "12 megapixels": (4000, 3000)}
PATTERNS = 2  # different pictures of a size
ARRAY_SIDE = 32
ARRAYS = 5000
WAYS = ("decoder", "pillow", "bare_simplejpeg", "bare_pillow")


def measure(size: tuple[int, int], count: int, threads: int, repeats: int) -> Json:
    """Return the rates of each way for photographs of one size (width, height)."""
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), count, size=size, patterns=PATTERNS)
        source = open_source(folder)
        files = [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))]
        divisor = jpeg_divisor(JpegFrame(*size, ((1, 1),), True), FRAMING)
        width, height = -(-size[0] // divisor), -(-size[1] // divisor)

        def by_simplejpeg(content: bytes) -> None:
            simplejpeg.decode_jpeg(content, min_height=height, min_width=width)

        def by_pillow(content: bytes) -> None:
            with Image.open(io.BytesIO(content)) as image:
                image.draft(None, (width, height))
                image.load()

        def pillow() -> int:
            with patch("retrieval.embedding.decoder.jpeg_header", lambda content: None):
                return _decoded(FRAMING, source.items(), threads)

        ways = (
            lambda: _decoded(FRAMING, source.items(), threads),
            pillow,
            lambda: _each(by_simplejpeg, files, threads),
            lambda: _each(by_pillow, files, threads),
        )
        rates = _rates(dict(zip(WAYS, ways, strict=True)), repeats)
        return {"images": count, "bytes": sum(map(len, files)) // count, **rates}


def measure_arrays(threads: int, repeats: int) -> Json:
    """Return the rates of the decoder for images that are in memory and have the encoder's size."""
    pixels = np.zeros((ARRAYS, ARRAY_SIDE, ARRAY_SIDE, 3), np.uint8)

    def items() -> Iterator[Item]:
        for number, image in enumerate(pixels):
            yield Item(str(number), None, str(number), image)

    ways = {"decoder": lambda: _decoded(Framing(ARRAY_SIDE), items(), threads)}
    return {"images": ARRAYS, **_rates(ways, repeats)}


def _decoded(framing: Framing, items: Iterator[Item], threads: int) -> int:
    with Decoder(framing, threads, many=True) as decoder:
        return sum(len(batch.decoded) for batch in decoder.batches(items))


def _each(decode: Callable[[bytes], None], files: Sequence[bytes], threads: int) -> int:
    with ThreadPoolExecutor(threads) as pool:
        return len([*pool.map(decode, files)])


def _rates(ways: dict[str, Callable[[], int]], repeats: int) -> dict[str, Json]:
    """Return the median, the minimum and the maximum of each way's images per second."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            images = way()
            if turn:  # the first turn compiles and learns how Pillow resizes
                rates[name].append(images / (time.perf_counter() - began))
    return {
        name: {"median": median(found), "min": min(found), "max": max(found)}
        for name, found in rates.items()
    }


def main() -> None:
    """Print the rates of all sizes, as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=[*SIZES])
    parser.add_argument("--megapixels", type=int, default=60, help="of all images of a size")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    found: dict[str, Json] = {
        name: measure(
            SIZES[name],
            max(4, round(given.megapixels * 1e6 / SIZES[name][0] / SIZES[name][1])),
            given.threads,
            given.repeats,
        )
        for name in given.sizes
    }
    found["arrays"] = measure_arrays(given.threads, given.repeats)
    shown = {"threads": given.threads, "rates": found, "machine": machine.describe()}
    print(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main()
