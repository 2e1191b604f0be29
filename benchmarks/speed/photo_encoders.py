"""Time bare networks for photographs: `python -m benchmarks.speed.photo_encoders --help`.

The networks have random weights, which take as long as trained ones. They run in torch, in float32,
in turns.
"""

import argparse
import json
import time
from statistics import median
from typing import Any, cast

import open_clip
import timm
import torch

from benchmarks.suite import machine
from retrieval.contracts import Json

BATCH = 32


def networks() -> dict[str, tuple[Any, int]]:
    """Return the networks, each with the side of its images in pixels."""
    found: dict[str, tuple[Any, int]] = {}
    for name in ("convnext_nano", "tf_efficientnet_lite0"):
        network = timm.create_model(name, pretrained=False, num_classes=0)
        found[name] = network.to(memory_format=torch.channels_last), 224
    dual: Any = open_clip.create_model("ViT-B-32-256", load_weights=False)
    found["ViT-B-32-256"] = dual.visual, 256
    return found


@torch.inference_mode()
def measure(repeats: int) -> dict[str, Json]:
    """Return the images a second of each network in each repetition, and the median."""
    taken: dict[str, list[float]] = {}
    there = {name: (network.eval(), side) for name, (network, side) in networks().items()}
    for repetition in range(repeats + 1):
        for name, (network, side) in there.items():
            images = torch.rand(BATCH, 3, side, side).to(memory_format=torch.channels_last)
            began = time.perf_counter()
            network(images)
            if repetition:  # the first call is not counted
                taken.setdefault(name, []).append(BATCH / (time.perf_counter() - began))
    speeds = {
        name: {"median": median(each), "repeats": cast(Json, each)} for name, each in taken.items()
    }
    return {"images_per_second": cast(Json, speeds), "machine": machine.describe()}


def main() -> None:
    """Print the speeds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    print(json.dumps(measure(parser.parse_args().repeats), indent=2))


if __name__ == "__main__":
    main()
