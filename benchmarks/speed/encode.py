"""Compare `retr encode` with the bare network: `python -m benchmarks.speed.encode --help`.

Three ways from images to embeddings alternate, so that a slow phase of the machine affects all: the
bare network on tensors in memory, in its own batch size; all of `retr encode`, from files to shards
on disk; and a loop that opens, transforms and encodes one image after the other, in float32, as
img2vec does, over the first images. `decode` is the rate of `retr encode`'s decoder alone. Decoding
and encoding both need all cores, so a program with this decoder cannot be faster than
1 / (1 / bare + 1 / decode).
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

from benchmarks.suite import machine
from retrieval.contracts import Framing, Images, Json
from retrieval.embedding.decoder import BATCH_IMAGES, Decoder
from retrieval.embedding.encode import encode_source
from retrieval.images import FAST_RESIZE_IMAGES, Item, Source, load, open_source
from retrieval.registry import open_encoder

LOOP_IMAGES = 200  # timed in the loop over single images
MEMORY_IMAGES = 1000  # images of noise; the network's time does not depend on the content
WAYS = ("bare", "encode", "loop", "decode")
PATTERNS = 10  # photographs are shifted copies of these; each takes half a second to make
AMPLITUDE_EXPONENT = 1.3  # fall of amplitude with frequency; gives files of 110 kB


def measure(
    encoder_name: str, source: Source, repeats: int, ways: Sequence[str] = WAYS
) -> dict[str, Json]:
    """Return images per second of each way, and the ratios of `retr encode` to the others.

    Raises BadInput for an encoder without a torch network.
    """
    encoder = cast(Any, open_encoder(encoder_name))
    items = [item for item, _ in zip(source.items(), range(MEMORY_IMAGES), strict=False)]
    pixels = np.stack([load(item, encoder.framing) for item in items])
    ready = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    batches = [batch.to(encoder.device) for batch in torch.split(ready, encoder.batch)]

    def bare() -> int:
        rounds = max(1, len(source) // len(items))
        for _ in range(rounds):
            for batch in batches:
                encoder.forward(batch).cpu()
        return rounds * len(items)

    def whole() -> int:
        with tempfile.TemporaryDirectory() as folder:
            return encode_source(source, encoder, Path(folder) / "out").rows

    transform = as_torchvision(encoder.framing)

    @torch.inference_mode()
    def loop() -> int:
        for item in items[:LOOP_IMAGES]:
            image = transform(_opened(item).convert("RGB"))
            encoder.network(image[None].to(encoder.device)).cpu().numpy()
        return min(LOOP_IMAGES, len(items))

    def decode() -> int:
        with Decoder(encoder.framing, many=len(source) >= FAST_RESIZE_IMAGES) as decoder:
            return sum(batch.seen for batch in decoder.batches(source.items(), BATCH_IMAGES))

    encoder.forward(batches[0])  # the first pass allocates
    runs = {"bare": bare, "encode": whole, "loop": loop, "decode": decode}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name in ways:
            rates[name].append(_rate(runs[name]))
    middle = {name: median(found) for name, found in rates.items()}
    ratios = {
        f"encode_to_{name}": middle["encode"] / middle[name] for name in ways if name != "encode"
    }
    if "decode" in middle:
        ratios["most_to_bare"] = 1 / (1 + middle["bare"] / middle["decode"])
    return {
        "encoder": encoder.name,
        "source": source.name,
        "images": len(source),
        **cast(dict[str, Json], rates),
        **cast(dict[str, Json], ratios),
        "machine": machine.describe(),
    }


def as_torchvision(framing: Framing) -> Compose:
    """Return torchvision's transform for the framing, from a PIL image to a tensor from 0 to 1."""
    resize = Resize(round(framing.side / framing.crop), InterpolationMode(framing.resample))
    return Compose([resize, CenterCrop(framing.side), ToTensor()])


def _opened(item: Item) -> Image.Image:
    content = item.content
    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else str(content))


def write_photographs(
    folder: Path,
    count: int,
    seed: int = 0,
    size: tuple[int, int] = (640, 480),
    patterns: int = PATTERNS,
) -> None:
    """Write JPEG files of quality 90 with the file size of photographs.

    size: (width, height) in pixels. patterns: number of different pictures; others are shifted.
    Their spectrum falls with frequency like that of natural scenes: Field, Relations between
    the statistics of natural images and the response properties of cortical cells (1987).
    """
    rng = np.random.default_rng(seed)
    scenes = [_scene(rng, *size) for _ in range(min(patterns, count))]
    for number in range(count):
        moved = np.roll(scenes[number % patterns], rng.integers(480, size=2), (0, 1))
        Image.fromarray(moved).save(folder / f"{number:05d}.jpg", quality=90)


def _scene(rng: np.random.Generator, width: int, height: int) -> Images:
    frequency = np.hypot(np.fft.fftfreq(width) * width, np.fft.fftfreq(height)[:, None] * height)
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.standard_normal((3, height, width))) / frequency**AMPLITUDE_EXPONENT
    pixels = np.fft.ifft2(spectrum).real.transpose(1, 2, 0)
    scaled = 128 + 50 * (pixels - pixels.mean((0, 1))) / pixels.std((0, 1))
    return np.asarray(scaled.clip(0, 255), np.uint8)


def _rate(way: Callable[[], int]) -> float:
    started = time.perf_counter()
    images = way()
    return images / (time.perf_counter() - started)


def main() -> None:
    """Print the rates and their ratios, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="cifar10")
    parser.add_argument("--split", help="train or test, if the source has splits")
    parser.add_argument("--encoder", default="siamese")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--photos", type=int, help="number of generated photographs to encode instead of a source"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.photos:
            write_photographs(Path(folder), given.photos)
            source = open_source(folder)
        else:
            source = open_source(given.source, given.split, limit=given.limit)
        print(json.dumps(measure(given.encoder, source, given.repeats), indent=2))


if __name__ == "__main__":
    main()
