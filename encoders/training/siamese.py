"""Trains the siamese encoder: `python -m encoders.training.siamese --help`.

What the recipe is made of, and where each part comes from:
- the network, whitening, dirac initialisation, alternating flip: airbench, arXiv:2404.00498;
- Muon for filters and neck, Adam for biases and proxies, all learning rates linearly to zero;
- the loss: cross-entropy on scaled cosines to class proxies plus supervised contrastive loss
  over all pairs of the batch, through one weight-shared branch.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from encoders.inference import autocast, floats
from encoders.siamese import MirrorAveraged, SiameseNetwork
from encoders.training.augmentation import alternating_flip, flipped, shifted
from encoders.training.losses import CosineClassifier, supervised_contrastive
from encoders.training.muon import Muon
from encoders.training.runs import run, write_log
from retrieval.contracts import Images


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every setting of a training run; with the data, seed and machine it decides the weights."""

    widths: tuple[int, int, int] = (64, 256, 256)
    dim: int = 128
    epochs: int = 13
    batch: int = 500
    muon_lr: float = 0.12
    muon_momentum: float = 0.6
    adam_lr: float = 0.02
    adam_betas: tuple[float, float] = (0.85, 0.95)
    translate: int = 2  # pixels
    scale: float = 8.0  # of the cosines
    smoothing: float = 0.2  # of the labels
    contrastive_weight: float = 0.5
    temperature: float = 0.1  # of the contrastive loss
    seed: int = 0


def whitening_filters(images: Tensor, eps: float = 5e-4) -> Tensor:
    """The eigenvectors of 2×2 patches of `images`, scaled to unit variance, with both signs."""
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # (n, 3, rows, columns, 2, 2)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / torch.sqrt(values + eps)).T.reshape(12, 3, 2, 2).float()
    return torch.cat((filters, -filters))


def train(
    images: Images, labels: NDArray[np.int64], recipe: Recipe, log: Path | None = None
) -> SiameseNetwork:
    """The network trained on images (n, 32, 32, 3) with labels (n,) from 0 to the last class.

    Each epoch's mean loss and seconds go to the CSV file `log`.
    Raises FloatingPointError if the loss stops being a number, with its epoch and step.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    n = len(images)
    pixels = torch.from_numpy(images)
    targets = torch.from_numpy(labels)

    network = SiameseNetwork(recipe.widths, recipe.dim)
    network.mean.copy_(pixels.float().mean((0, 1, 2)) / 255)
    network.std.copy_(pixels.float().std((0, 1, 2)) / 255)
    sample = floats(pixels[:5000])
    normalised = (sample - network.mean.view(1, 3, 1, 1)) / network.std.view(1, 3, 1, 1)
    network.whitening.weight.data.copy_(whitening_filters(normalised))
    nn.init.zeros_(network.whitening.bias)  # type: ignore[arg-type]
    network.to(memory_format=torch.channels_last)
    classifier = CosineClassifier(recipe.dim, int(labels.max()) + 1, recipe.scale, recipe.smoothing)

    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizers = (
        Muon([p for p in trainable if p.ndim > 1], recipe.muon_lr, recipe.muon_momentum),
        torch.optim.Adam(
            [*(p for p in trainable if p.ndim == 1), *classifier.parameters()],
            lr=recipe.adam_lr,
            betas=recipe.adam_betas,
        ),
    )
    steps_an_epoch = n // recipe.batch
    total = steps_an_epoch * recipe.epochs
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: max(0.0, 1 - step / total))
        for o in optimizers
    ]
    coin = torch.rand(n, generator=generator) < 0.5
    rows = []
    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        network.train()
        losses = []
        order = torch.randperm(n, generator=generator)
        progress = tqdm(
            torch.split(order, recipe.batch)[:steps_an_epoch],
            desc=f"epoch {epoch + 1}/{recipe.epochs}",
            disable=None,
            leave=False,
        )
        for step, chosen in enumerate(progress):
            batch = floats(pixels[chosen])
            batch = flipped(batch, alternating_flip(chosen, epoch, coin))
            batch = shifted(batch, recipe.translate, generator)
            with autocast(torch.device("cpu")):
                embeddings = network(batch)
            loss = classifier(embeddings, targets[chosen])
            loss = loss + recipe.contrastive_weight * supervised_contrastive(
                embeddings, targets[chosen], recipe.temperature
            )
            loss.backward()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"loss is {losses[-1]} in epoch {epoch + 1}, step {step + 1}; "
                    f"lower the learning rates ({recipe.muon_lr} and {recipe.adam_lr})"
                )
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
        rows.append((epoch + 1, float(np.mean(losses)), time.perf_counter() - started))
        if log is not None:
            write_log(log, ("epoch", "loss", "seconds"), rows)
    return network.eval()


if __name__ == "__main__":
    run(
        "siamese",
        __doc__ or "",
        Recipe(),
        lambda data, recipe, log: train(data.images, data.labels, recipe, log),
        MirrorAveraged,
    )
