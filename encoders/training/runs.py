"""What every training run shares: its command line, its log, its card, its held-out score."""

import argparse
import csv
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from encoders.inference import autocast, floats
from encoders.training.data import TrainingSet
from retrieval.contracts import Images, Metric, Vectors
from retrieval.evaluation import Evaluation, Labelled, evaluate


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the command line of a training script says."""

    out: Path
    data: Path | None
    source: str
    epochs: int | None
    seed: int
    validation: int


def arguments(description: str, encoder: str) -> Arguments:
    """The arguments of a training script, read from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("encoders/weights"), help="folder")
    parser.add_argument("--data", type=Path, help="folder of data sets (or RETR_DATA_DIR)")
    parser.add_argument("--source", default="cifar10", help="a data set with 32×32 images")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--validation",
        type=int,
        default=0,
        metavar="N",
        help="hold N training images out and score them: for choosing, never for the weights "
        f"that ship ({encoder}.safetensors is then not written)",
    )
    return Arguments(**vars(parser.parse_args()))


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
