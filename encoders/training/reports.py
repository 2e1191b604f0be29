"""What a run reports: scores, a CSV and a picture of its curves, and the machine it ran on."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from encoders.inference import fast_inference, floats
from retrieval.choices import choice
from retrieval.contracts import Images, Json, Metric, Vectors
from retrieval.drawing.plots import draw_curves
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled
from retrieval.runtime.threads import available_cores
from retrieval.storage.cards import LOG
from retrieval.storage.files import write_csv, write_whole

MEASURES = ("map", "precision_at_10", "knn_accuracy")
CURVES = "curves.png"
RECONSTRUCTIONS = "reconstructions.png"
LIBRARIES = ("retr", "torch", "pytorch-metric-learning", "timm")


def embed(network: nn.Module, images: Images, device: torch.device, at_once: int) -> Vectors:
    """The outputs (n, dim) of the network for images (n, side, side, 3), so many at once.

    Raises FloatingPointError where they are not finite.
    """
    vectors = np.empty((len(images), 0), np.float32)
    with torch.inference_mode(), fast_inference(device):
        for start in range(0, len(images), at_once):
            pixels = torch.from_numpy(images[start : start + at_once]).to(device)
            output = network(floats(pixels)).float().cpu().numpy()
            if not start:
                vectors = np.empty((len(images), output.shape[1]), np.float32)
            vectors[start : start + len(output)] = output
    if not np.isfinite(vectors).all():
        raise FloatingPointError("the network's embeddings of its own images are not finite")
    return vectors


def score(
    network: nn.Module,
    images: Images,
    labels: Sequence[str | None],
    on: str,
    device: torch.device,
    metric: Metric | str,
    at_once: int,
) -> dict[str, Json]:
    """How well the images find those of their class among each other, each left out of its own.

    on: what the images are, for people. Where no two have a label in common, measures are None.
    """
    metric = choice(Metric, metric)
    scored_on: dict[str, Json] = {"scored_on": f"{len(images):,} {on} images"}
    known = [label for label in labels if label is not None]
    if len(known) == len({*known}):
        return scored_on | dict.fromkeys(MEASURES)
    vectors = embed(network, images, device, at_once)
    ids = [str(row) for row in range(len(vectors))]
    labelled = Labelled(vectors, ids, labels)
    result = evaluate(labelled, labelled, metric, (1, 10))
    values = (result.map, result.precision_at[10], result.knn_accuracy)
    return scored_on | dict(zip(MEASURES, values, strict=True))


def write_reports(folder: Path, rows: Sequence[Mapping[str, Json]]) -> None:
    """Write the log of the epochs so far as CSV, and its curves as PNG."""
    write_csv(folder / LOG, rows)
    draw_curves(folder / CURVES, rows)


def draw_reconstructions(
    path: Path, images: Images, drawn: NDArray[np.float32], columns: int = 10, scale: int = 3
) -> None:
    """Write a PNG of images (n, side, side, 3), each above what was drawn of it, from 0 to 1."""
    redrawn = np.rint(drawn * 255).clip(0, 255).astype(np.uint8)
    side, columns = images.shape[1], min(columns, len(images))
    rows = [
        np.concatenate([*kind[start : start + columns]], axis=1)
        for start in range(0, len(images) - columns + 1, columns)
        for kind in (images, redrawn)
    ]
    # A white line between the pairs.
    gap = np.full((max(1, side // 8), columns * side, 3), 255, np.uint8)
    parts = [part for i, row in enumerate(rows) for part in ((gap, row) if i % 2 == 0 else (row,))]
    sheet = np.concatenate(parts[1:]).repeat(scale, axis=0).repeat(scale, axis=1)
    write_whole(path, lambda partial: Image.fromarray(sheet).save(partial, format="png"))


def machine(device: torch.device) -> str:
    """The machine, in words that name no host."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{available_cores()} cores, {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, Json]:
    """The versions of the libraries that decide the weights."""
    return {name: version(name) for name in LIBRARIES}
