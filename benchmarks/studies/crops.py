"""Measure `retr duplicates --crops`: `python -m benchmarks.studies.crops --help`.

Crops are cut at random from photographs in a folder and from CIFAR-10: each side has 50 to 95% of
the image's, with the same aspect ratio or another. They are saved as JPEG of quality 75 to 95, and
those of photographs at 0.5 to 1.5 times their size.

`pixels` is the accuracy of the comparison alone. The pairs that must not be found are crops with
other photographs, overlapping parts of one photograph, and images of CIFAR-10 with those that look
most alike. `set` is the share of crops that the command finds among all images, by the neighbors of
an encoder.
"""

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.speed.duplicates import base_images, timed
from benchmarks.suite import machine
from retrieval.contracts import Json
from retrieval.images import read_image
from retrieval.pairs.crops.rectangle import Canvas, find_crop
from retrieval.pairs.duplicates import MIN_CORRELATION

CROPS_PER_PHOTO = 10
NEIGHBORS = 10  # lookalikes for each image of CIFAR-10
MIN_SIDE = 100  # pixels of a photograph


def random_crop(image: Image.Image, rng: np.random.Generator, scales: bool) -> Image.Image:
    """Return a crop of the image; every other one has another aspect ratio."""
    shares = rng.uniform(0.5, 0.95, 2) if rng.integers(2) else np.repeat(rng.uniform(0.5, 0.95), 2)
    width, height = (round(side * share) for side, share in zip(image.size, shares, strict=True))
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    crop = image.crop((left, top, left + width, top + height))
    if scales:
        scale = rng.uniform(0.5, 1.5)
        size = round(width * scale), round(height * scale)
        crop = crop.resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    crop.save(file, "JPEG", quality=int(rng.integers(75, 96)))
    return Image.open(file).convert("RGB")


def photographs(folder: Path) -> dict[str, Image.Image]:
    """Return the images of the folder that can be read and are not tiny, by name."""
    found = {file.name: read_image(str(file)) for file in sorted(folder.iterdir())}
    return {name: image for name, image in found.items() if min(image.size) >= MIN_SIDE}


def share_found(pairs: Sequence[tuple[Image.Image, Image.Image]]) -> dict[str, Json]:
    """Return the number of pairs of a whole image and a part, and the share taken for crops."""
    found = sum(
        find_crop(Canvas.of(whole), Canvas.of(part), MIN_CORRELATION) is not None
        for whole, part in pairs
    )
    return {"pairs": len(pairs), "found": found}


def lookalikes(images: Sequence[Image.Image]) -> list[tuple[Image.Image, Image.Image]]:
    """Return each image with those whose 8 × 8 pixels correlate most with its own."""
    small = [np.asarray(image.resize((8, 8)), np.float32).ravel() for image in images]
    patterns = np.stack([pixels - pixels.mean() for pixels in small])
    patterns /= np.linalg.norm(patterns, axis=1, keepdims=True)
    nearest = np.argsort(-(patterns @ patterns.T), axis=1)[:, 1 : NEIGHBORS + 1]
    return [(images[i], images[j]) for i, row in enumerate(nearest.tolist()) for j in row]


def overlapping(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return two parts of the image, each of which shows something that the other does not."""
    width, height = image.size
    share = rng.uniform(0.1, 0.3)
    x, y = round(width * share), round(height * share)
    return image.crop((0, 0, width - x, height)), image.crop((x, y, width, height))


def measure_pixels(
    photos: dict[str, Image.Image], small: Sequence[Image.Image], rng: np.random.Generator
) -> dict[str, Json]:
    """Return how many pairs of each kind are taken for crops."""
    crops = [
        (name, random_crop(photo, rng, scales=True))
        for name, photo in photos.items()
        for _ in range(CROPS_PER_PHOTO)
    ]
    others = [
        (photo, crop) for name, crop in crops for other, photo in photos.items() if other != name
    ]
    parts = [overlapping(photo, rng) for photo in photos.values() for _ in range(CROPS_PER_PHOTO)]
    return {
        "crops of photographs": share_found([(photos[name], crop) for name, crop in crops]),
        "crops of cifar10": share_found(
            [(image, random_crop(image, rng, scales=False)) for image in small]
        ),
        "other photographs": share_found(others),
        "overlapping parts": share_found([*parts, *((b, a) for a, b in parts)]),
        "lookalikes in cifar10": share_found(lookalikes(small)),
    }


def measure_set(
    folder: Path,
    encoder: str,
    photos: dict[str, Image.Image],
    small: Sequence[Image.Image],
    rng: np.random.Generator,
) -> dict[str, Json]:
    """Return what the command finds among all images and a crop of every third, and its times."""
    planted: dict[str, str] = {}
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    numbered = {f"cifar10-{i:05d}.png": image for i, image in enumerate(small)}
    named = {f"{Path(name).stem}.png": image for name, image in photos.items()}
    for i, (name, image) in enumerate((*named.items(), *numbered.items())):
        image.save(images / name)
        if i % 3 == 0 or name in named:
            planted[f"crop-{i:05d}.png"] = name
            random_crop(image, rng, scales=name in named).save(images / f"crop-{i:05d}.png")
    embeddings, out = str(folder / "embeddings"), folder / "duplicates.json"
    timed(["encode", str(images), "--encoder", encoder, "--out", embeddings, "--json"], out)
    times = timed(["duplicates", embeddings, "--crops", "--json"], out)
    document: Any = json.loads(out.read_text())
    kept = {name: group["keep"] for group in document["groups"] for name in group["remove"]}
    pairs = {
        (pair["a"], pair["b"]) if pair["crop"] == "a" else (pair["b"], pair["a"])
        for pair in document["pairs"]
        if pair["crop"]
    }
    of_photos = [crop for crop, whole in planted.items() if whole in named]
    found = {crop for crop, whole in planted.items() if kept.get(crop) == whole}
    return {
        "encoder": encoder,
        "images": len(named) + len(numbered) + len(planted),
        "crops of photographs": [len(found & {*of_photos}), len(of_photos)],
        "crops of cifar10": [len(found - {*of_photos}), len(planted) - len(of_photos)],
        "other pairs": [[*pair] for pair in sorted(pairs - {*planted.items()})],
        "times": times,
    }


def main() -> None:
    """Print the counts, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder of photographs")
    parser.add_argument("folder", type=Path, help="new folder for the images of the set")
    parser.add_argument("--small", type=int, default=1000, help="images of CIFAR-10")
    parser.add_argument("--encoder", default="pretrained:tf_efficientnet_lite0")
    parser.add_argument("--data", type=Path, help="folder with cifar10")
    given = parser.parse_args()
    photos = photographs(given.photos)
    small = [Image.fromarray(pixels) for pixels in base_images(given.small, given.data)]
    rng = np.random.default_rng(0)
    results: dict[str, Json] = {
        "pixels": measure_pixels(photos, small, rng),
        "set": measure_set(given.folder, given.encoder, photos, small, rng),
        "machine": machine.describe(),
    }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
