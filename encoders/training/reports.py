"""Reports of a run: a CSV and a picture of its curves, and the machine that it ran on."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from retrieval.contracts import Images, Json
from retrieval.drawing.plots import draw_curves
from retrieval.runtime.threads import available_cores
from retrieval.storage.cards import LOG
from retrieval.storage.files import write_csv, write_whole

CURVES = "curves.png"
RECONSTRUCTIONS = "reconstructions.png"
LIBRARIES = ("retr", "torch", "pytorch-metric-learning", "timm")


def write_log(folder: Path, rows: Sequence[Mapping[str, Json]]) -> None:
    """Write the log of the epochs so far as CSV."""
    write_csv(folder / LOG, rows)


def draw_log(folder: Path, rows: Sequence[Mapping[str, Json]]) -> None:
    """Draw the curves of the log as PNG."""
    draw_curves(folder / CURVES, rows)


def draw_reconstructions(
    path: Path, images: Images, drawn: NDArray[np.float32], columns: int = 10, scale: int = 3
) -> None:
    """Write a PNG of images (n, side, side, 3), each above its drawing, with values from 0 to 1."""
    redrawn = np.rint(drawn * 255).clip(0, 255).astype(np.uint8)
    side, columns = images.shape[1], min(columns, len(images))
    rows = [
        np.concatenate([*kind[start : start + columns]], axis=1)
        for start in range(0, len(images) - columns + 1, columns)
        for kind in (images, redrawn)
    ]
    # A white line separates pairs of rows.
    gap = np.full((max(1, side // 8), columns * side, 3), 255, np.uint8)
    parts = [part for i, row in enumerate(rows) for part in ((gap, row) if i % 2 == 0 else (row,))]
    sheet = np.concatenate(parts[1:]).repeat(scale, axis=0).repeat(scale, axis=1)
    write_whole(path, lambda partial: Image.fromarray(sheet).save(partial, format="png"))


def machine(device: torch.device) -> str:
    """Return a description of the machine, without its host name."""
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
    """Return the versions of the libraries that affect the weights."""
    return {name: version(name) for name in LIBRARIES}
