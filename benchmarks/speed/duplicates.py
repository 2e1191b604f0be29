"""Time `retr duplicates` on small images: `python -m benchmarks.speed.duplicates --help`.

The images are those of CIFAR-10, and means of two of them where more are wanted, as PNG and JPEG
files. One in ten is a copy of another: exact, as a JPEG, smaller, larger, mirrored or rotated. The
images and their embeddings are kept in the folder for the next run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.suite import machine
from retrieval.contracts import Images, Json
from retrieval.images import open_source

COPIES_PER_IMAGE = 0.1
IMAGES_PER_FOLDER = 1000
JPEG_QUALITY = 90
COPY_KINDS = ("exact", "jpeg", "smaller", "larger", "mirrored", "rotated 90", "rotated 180")


def make_images(folder: Path, images: int, data: Path | None) -> list[tuple[str, str, str]]:
    """Write the images into the folder; return (id of the copy, id of its image, kind)."""
    copies = int(images * COPIES_PER_IMAGE)
    pixels = base_images(images - copies, data)
    names = [name_of(i) for i in range(len(pixels))]
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(pixels), copies, replace=False).tolist()

    def write(name: str, image: Image.Image) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, quality=JPEG_QUALITY) if file.suffix == ".jpg" else image.save(file)

    planted = []
    with ThreadPoolExecutor() as threads:
        list(threads.map(write, names, map(Image.fromarray, pixels)))
        for i, original in enumerate(chosen):
            kind = COPY_KINDS[i % len(COPY_KINDS)]
            suffix = Path(names[original]).suffix if kind == "exact" else ".jpg"
            name = f"copies-{i // IMAGES_PER_FOLDER:03d}/{i:06d}{suffix}"
            planted.append((name, names[original], kind))
            if kind == "exact":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / names[original], folder / name)
            else:
                write(name, copy_of(Image.fromarray(pixels[original]), kind))
    return planted


def name_of(i: int) -> str:
    """Return the name of the i-th image; every other one is a JPEG."""
    return f"images-{i // IMAGES_PER_FOLDER:03d}/{i:06d}.{'jpg' if i % 2 else 'png'}"


def base_images(count: int, data: Path | None) -> Images:
    """Return the first images of CIFAR-10, then means of two of them, (count, 32, 32, 3)."""
    splits = (open_source("cifar10", split, data) for split in ("train", "test"))
    found = np.stack([as_pixels(item.content) for source in splits for item in source.items()])
    if count <= len(found):
        return found[:count]
    rng = np.random.default_rng(1)
    one, two = rng.integers(len(found), size=(2, count - len(found)))
    means = (found[one].astype(np.uint16) + found[two]) // 2
    return np.concatenate((found, means.astype(np.uint8)))


def as_pixels(content: Any) -> Images:
    """Return the pixels of an item of CIFAR-10."""
    from retrieval.images import decode

    return np.asarray(decode(content, "cifar10"))


def copy_of(image: Image.Image, kind: str) -> Image.Image:
    """Return the changed copy of the image."""
    side = image.width
    match kind:
        case "smaller":
            return image.resize((side * 3 // 4,) * 2, Image.Resampling.BICUBIC)
        case "larger":
            return image.resize((side * 2,) * 2, Image.Resampling.BICUBIC)
        case "mirrored":
            return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        case "rotated 90":
            return image.transpose(Image.Transpose.ROTATE_90)
        case "rotated 180":
            return image.transpose(Image.Transpose.ROTATE_180)
        case _:
            return image


def timed(arguments: Sequence[str], out: Path) -> dict[str, Json]:
    """Run `retr` with its output in the file; return its times in seconds, and its memory."""
    started = time.perf_counter()
    with out.open("wb") as file:
        command = [sys.executable, "-m", "cli.main", *arguments]
        process = subprocess.Popen(command, stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"retr {arguments[0]} failed with status {status}")
    return {
        "wall_s": time.perf_counter() - started,
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
        "memory_bytes": usage.ru_maxrss * 1024,
    }


def found_shares(
    document: Any, planted: Sequence[tuple[str, str, str]]
) -> Iterator[tuple[str, float]]:
    """Yield, for each kind, the share of copies that are in a group with their image."""
    group_of = {
        name: number
        for number, group in enumerate(document["groups"])
        for name in (group["keep"], *group["remove"])
    }
    for kind in COPY_KINDS:
        pairs = [(copy, image) for copy, image, its in planted if its == kind]
        found = sum(group_of.get(a, -1) == group_of.get(b, -2) for a, b in pairs)
        yield kind, found / max(1, len(pairs))


def main() -> None:
    """Print the times and the shares of copies that were found, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for the images; gigabytes")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--encoder", default="toy")
    parser.add_argument("--data", type=Path, help="folder with cifar10")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--read", action="store_true", help="touch the files, so that all images are read again"
    )
    given = parser.parse_args()
    images, embeddings = given.folder / "images", given.folder / "embeddings"
    list_of_copies = given.folder / "copies.json"
    if not list_of_copies.is_file():
        planted = make_images(images, given.images, given.data)
        list_of_copies.write_text(json.dumps(planted))
    planted = json.loads(list_of_copies.read_text())
    encoding = timed(
        ["encode", str(images), "--encoder", given.encoder, "--out", str(embeddings), "--json"],
        given.folder / "encode.json",
    )
    if given.read:
        for file in images.rglob("*.*"):
            file.touch()
    out = given.folder / "duplicates.json"
    runs = [timed(["duplicates", str(embeddings), "--json"], out) for _ in range(given.repeats)]
    document = json.loads(out.read_text())
    print(
        json.dumps(
            {
                "encode": encoding,
                "duplicates": runs,
                "groups": len(document["groups"]),
                "pairs": len(document["pairs"]),
                "compared": document["compared"],
                "found": dict(found_shares(document, planted)),
                "machine": machine.describe(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
