"""Compare `retr encode` with its parts: `python -m benchmarks.speed.encode --help`.

These ways alternate, so that a slow phase of the machine affects all. `bare`: the network in the
way that `retr encode` runs it, on images in memory. `torch`: the same by the encoder's own
library. `decode`: the decoder of `retr encode` alone. `encode`: all of it, from files to shards on
disk. `loop`: open, transform and encode one image after the other, in float32, as img2vec does,
over the first images.

Decoding and the network both need all cores. So `most`, 1 / (1 / bare + 1 / decode), is the highest
rate that a program of these two parts can reach.
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
from retrieval.embedding.runtimes.choice import runner_for
from retrieval.embedding.runtimes.running import IMAGES_PER_CALL
from retrieval.images import FAST_RESIZE_IMAGES, Item, Source, load, open_source
from retrieval.registry import open_encoder

LOOP_IMAGES = 200  # timed in the loop over single images
MEMORY_IMAGES = 500  # images of noise; the network's time does not depend on the content
WAYS = ("bare", "torch", "encode", "loop", "decode")
PATTERNS = 10  # photographs are shifted copies of these; each takes half a second to make
AMPLITUDE_EXPONENT = 1.3  # fall of amplitude with frequency; gives files of 110 kB


def measure(
    encoder_name: str,
    source: Source,
    repeats: int,
    ways: Sequence[str] = WAYS,
    precision: str = "balanced",
    runtime: str = "auto",
) -> dict[str, Json]:
    """Return images per second of each way, and the ratios of `retr encode` to the others.

    precision, runtime: as for `runner_for`. Raises BadInput for an encoder without a torch network.
    """
    encoder = cast(Any, open_encoder(encoder_name, "cpu"))
    runner = cast(Any, runner_for(encoder, source, precision, runtime))
    items = [item for item, _ in zip(source.items(), range(MEMORY_IMAGES), strict=False)]
    pixels = np.stack([load(item, encoder.framing) for item in items])

    def bare() -> int:
        runner.encode(pixels)
        return len(items)

    def bare_torch() -> int:
        encoder.encode(pixels)
        return len(items)

    def whole() -> int:
        with tempfile.TemporaryDirectory() as folder:
            return encode_source(source, runner, Path(folder) / "out").rows

    transform = as_torchvision(encoder.framing)

    @torch.inference_mode()
    def loop() -> int:
        for item in items[:LOOP_IMAGES]:
            image = transform(_opened(item).convert("RGB"))
            encoder.network(image[None]).numpy()
        return min(LOOP_IMAGES, len(items))

    def decode() -> int:
        with Decoder(encoder.framing, many=len(source) >= FAST_RESIZE_IMAGES) as decoder:
            return sum(batch.seen for batch in decoder.batches(source.items(), BATCH_IMAGES))

    runner.encode(pixels[:IMAGES_PER_CALL])  # the first pass allocates
    runs = {"bare": bare, "torch": bare_torch, "encode": whole, "loop": loop, "decode": decode}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name in ways:
            rates[name].append(_rate(runs[name]))
    middle = {name: median(found) for name, found in rates.items()}
    ratios = {
        f"encode_to_{name}": middle["encode"] / middle[name] for name in ways if name != "encode"
    }
    if {"decode", "bare", "encode"} <= set(middle):
        most = 1 / (1 / middle["bare"] + 1 / middle["decode"])
        ratios |= {"most": most, "encode_to_most": middle["encode"] / most}
    return {
        "encoder": encoder.name,
        "source": source.name,
        "images": len(source),
        "made_by": str(runner.made_by),
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
    folder.mkdir(exist_ok=True)
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
    parser.add_argument("--precision", default="balanced")
    parser.add_argument("--runtime", default="auto")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.photos:
            write_photographs(Path(folder), given.photos)
            source = open_source(folder)
        else:
            source = open_source(given.source, given.split, limit=given.limit)
        found = measure(
            given.encoder,
            source,
            given.repeats,
            precision=given.precision,
            runtime=given.runtime,
        )
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
