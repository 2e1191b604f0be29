"""What every training run shares: its command line, its log, its card, its held-out score."""

import argparse
import csv
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from encoders.inference import autocast, floats, keep_freed_memory
from encoders.training.data import TrainingSet, read_training_set
from retrieval.contracts import Framing, Images, Metric, Vectors
from retrieval.evaluation import Evaluation, Labelled, evaluate

Recipe = TypeVar("Recipe")
Network = TypeVar("Network", bound=nn.Module)


def run(
    encoder: str,
    description: str,
    recipe: Recipe,
    train: Callable[[TrainingSet, Recipe, Path], Network],
    embedding: Callable[[Network], nn.Module],
) -> None:
    """A training script: train as the command line says, then save weights and card, or score.

    recipe: a frozen dataclass with the fields `seed` and `epochs`. train: writes its log into the
    file that it is given. embedding: what an encoder runs of the network.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("encoders/weights"), help="folder")
    parser.add_argument("--data", type=Path, help="folder of data sets (or RETR_DATA_DIR)")
    parser.add_argument("--source", default="cifar10", help="a data set of 32×32 images")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--validation",
        type=int,
        default=0,
        metavar="N",
        help="hold N training images out, and score them instead of saving the weights",
    )
    given = parser.parse_args()
    changes = {"seed": given.seed} | ({"epochs": given.epochs} if given.epochs else {})
    recipe = replace(cast(Any, recipe), **changes)
    data = read_training_set(given.source, Framing(side=32), given.data)
    kept, held_out = data.split(given.validation, given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    started = time.perf_counter()
    network = train(kept, recipe, given.out / f"{encoder}.csv")
    minutes = (time.perf_counter() - started) / 60
    if given.validation:
        result = score(embed(embedding(network), held_out.images), held_out.labels)
        print(f"held-out mAP {result.map:.4f}, P@10 {result.precision_at[10]:.4f}")
    else:
        save_run(given.out, encoder, network, recipe, data, minutes)
    print(f"{minutes:.1f} minutes")


def write_log(path: Path, header: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
    """Write the CSV of a run so far."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def save_run(
    folder: Path, encoder: str, network: nn.Module, recipe: Any, data: TrainingSet, minutes: float
) -> None:
    """Write the weights, as float16 where they are floats, and the card of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(weights, folder / f"{encoder}.safetensors")
    card = {
        "encoder": encoder,
        "recipe": asdict(recipe),
        "data": {"source": data.source, "images": len(data.images), "sha256": data.fingerprint},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "minutes": round(minutes, 1),
    }
    (folder / f"{encoder}.json").write_text(json.dumps(card, indent=2) + "\n")


def embed(network: nn.Module | Callable[[Tensor], Tensor], images: Images) -> Vectors:
    """The outputs (n, dim) of the network for images (n, side, side, 3)."""
    with torch.inference_mode(), autocast(torch.device("cpu")):
        parts = [
            network(floats(torch.from_numpy(images[start : start + 250]))).float()
            for start in range(0, len(images), 250)
        ]
    return torch.cat(parts).numpy()


def score(vectors: Vectors, labels: Sequence[int] | np.ndarray[Any, Any]) -> Evaluation:
    """The evaluation of held-out images against each other, each left out of its own ranking."""
    ids = [str(row) for row in range(len(vectors))]
    labelled = Labelled(vectors, ids, [str(label) for label in labels])
    return evaluate(labelled, labelled, Metric.COSINE, (1, 10))
