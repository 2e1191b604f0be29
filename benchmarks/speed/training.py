"""Compare `retr train` with the bare network: `python -m benchmarks.speed.training --help`.

Ways of training alternate, so that a slow phase of the machine affects all: the bare network,
forward and backward, on a batch in memory; the same without retr's own gradients of depthwise
convolutions, as an option; and the steps of a run: sampling, augmentation, forward, losses,
backward, optimizers.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch

from benchmarks.suite import machine
from retrieval.contracts import Json
from retrieval.registry import encoder_plugin, open_trainer
from retrieval.storage.cards import Card


def measure(
    recipe: str, changes: list[str], repeats: int, per_class: int, pytorch: bool
) -> dict[str, Json]:
    """Return images per second of each way in each repetition, and the ratio of the medians.

    pytorch: also measure the bare network without retr's own gradients of depthwise convolutions.
    """
    rates: dict[str, list[float]] = {"bare": [], "train": []}
    short = [*changes, "epochs=1", f"data.per_class={per_class}"]
    for _ in range(repeats):
        rows: list[Any] = []
        with tempfile.TemporaryDirectory() as folder:
            card = open_trainer().train(
                recipe,
                short,
                Path(folder),
                data=None,
                device="cpu",
                on_step=lambda done, total: None,
                on_epoch=rows.append,
            )
        rates["train"].append(rows[0]["images_per_second"])
        rates["bare"].append(_bare(card, partial(open_trainer().forward_pass, "cpu")))
        if pytorch:
            rates.setdefault("pytorch", []).append(_bare(card, _autocast))
    return {
        "recipe": recipe,
        **cast(dict[str, Json], rates),
        "ratio": median(rates["train"]) / median(rates["bare"]),
        "machine": machine.describe(),
    }


def _autocast() -> AbstractContextManager[object]:
    fast = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)


def _bare(
    card: Card, forward_pass: Callable[[], AbstractContextManager[object]], steps: int = 12
) -> float:
    """Return images per second of forward and backward, in the recipe's batches and views."""
    plugin = encoder_plugin(card.encoder).network_type
    recipe = cast(Any, card.training.recipe)
    network = plugin(plugin.settings_type(**card.network), len(card.classes), card.framing.side)
    network = network.to(memory_format=torch.channels_last).train()
    batch = recipe["sampler"]["batch"]
    side = recipe["augmentation"]["crop_side"] or card.framing.side
    images = torch.rand(batch * recipe["augmentation"]["views"], 3, side, side)
    images = images.contiguous(memory_format=torch.channels_last)
    for step in range(steps):
        if step == 2:  # the first steps allocate
            started = time.perf_counter()
        with forward_pass():
            outputs = network.outputs(images)
        total = outputs.embeddings.float().sum()
        if outputs.drawn is not None:
            total = total + outputs.drawn.float().mean()
        total.backward()
        network.zero_grad(set_to_none=True)
    return float(batch * (steps - 2) / (time.perf_counter() - started))


def main() -> None:
    """Print both rates and their ratio, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="siamese-quick")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--per-class", type=int, default=600, help="images of each class")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--pytorch",
        action="store_true",
        help="also measure PyTorch's gradients of all convolutions",
    )
    given = parser.parse_args()
    result = measure(given.recipe, given.set, given.repeats, given.per_class, given.pytorch)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
