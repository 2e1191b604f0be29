"""How much of the bare network's speed `retr encode` keeps: `python -m benchmarks.encode --help`.

Two ways from images to embeddings take turns, so that a machine that is slower for a while is so
for both: the bare network on tensors that lie ready in memory, in its own batch size; and all of
`retr encode`, from the source's files to shards on disk.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch

from benchmarks import machine
from retrieval.contracts import Json
from retrieval.encoding import encode_source
from retrieval.images import Source, load, open_source
from retrieval.registry import open_encoder


def measure(encoder_name: str, source: Source, repeats: int) -> dict[str, Json]:
    """Images per second of both ways in each repetition, and the ratio of their medians.

    Raises BadInput for an encoder without a torch network.
    """
    encoder = cast(Any, open_encoder(encoder_name))
    # 1,000 images stand for all: the network's time does not depend on what they show.
    items = [item for item, _ in zip(source.items(), range(1000), strict=False)]
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

    encoder.forward(batches[0])  # the first pass allocates
    rates: dict[str, list[float]] = {"bare": [], "encode": []}
    for _ in range(repeats):
        rates["bare"].append(_rate(bare))
        rates["encode"].append(_rate(whole))
    return {
        "encoder": encoder.name,
        "source": source.name,
        "images": len(source),
        "bare": cast(Json, rates["bare"]),
        "encode": cast(Json, rates["encode"]),
        "ratio": median(rates["encode"]) / median(rates["bare"]),
        "machine": machine.describe(),
    }


def _rate(way: Callable[[], int]) -> float:
    started = time.perf_counter()
    images = way()
    return images / (time.perf_counter() - started)


def main() -> None:
    """Print both rates and their ratio, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="cifar10")
    parser.add_argument("--split", help="train or test, where the source has them")
    parser.add_argument("--encoder", default="siamese")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    source = open_source(given.source, given.split, limit=given.limit)
    print(json.dumps(measure(given.encoder, source, given.repeats), indent=2))


if __name__ == "__main__":
    main()
