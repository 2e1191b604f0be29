"""Trains the autoencoder without labels: `python -m encoders.training.autoencoder --help`.

Two views of each image, each cropped, mirrored and recoloured at random, pass the encoder. The
loss is the mean squared error of the decoder's drawings of both, plus a contrastive term by which
the latents of two views of one image point the same way and those of other images do not
(SimCLR, arXiv:2002.05709, with its projection head, which is dropped after the training).
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from encoders.autoencoder import AutoencoderNetwork, Latent
from encoders.inference import autocast, floats
from encoders.training.augmentation import cropped, flipped, recoloured
from encoders.training.losses import views_agree
from encoders.training.runs import run, write_log
from retrieval.contracts import Images


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every setting of a training run; with the data, seed and machine it decides the weights."""

    width: int = 32
    dim: int = 64
    epochs: int = 6
    batch: int = 500
    lr: float = 2e-3  # of AdamW, by one cycle
    smallest_crop: float = 0.3  # the share of the image's area
    recolour: float = 0.4  # the most by which contrast changes; half of it, a channel
    contrastive_weight: float = 0.05  # in units of the mean squared error
    temperature: float = 0.2  # of the contrastive term
    seed: int = 0


def train(images: Images, recipe: Recipe, log: Path | None = None) -> AutoencoderNetwork:
    """The network trained on images (n, 32, 32, 3).

    Each epoch's mean loss and seconds go to the CSV file `log`.
    Raises FloatingPointError if the loss stops being a number, with its epoch and step.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    pixels = torch.from_numpy(images)
    steps_an_epoch = len(images) // recipe.batch
    network = AutoencoderNetwork(recipe.width, recipe.dim).to(memory_format=torch.channels_last)
    head = nn.Sequential(
        nn.Linear(recipe.dim, 2 * recipe.dim), nn.ELU(), nn.Linear(2 * recipe.dim, recipe.dim)
    )
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=steps_an_epoch * recipe.epochs
    )
    rows = []
    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        losses = []
        order = torch.randperm(len(images), generator=generator)
        progress = tqdm(
            torch.split(order, recipe.batch)[:steps_an_epoch],
            desc=f"epoch {epoch + 1}/{recipe.epochs}",
            disable=None,
            leave=False,
        )
        for step, chosen in enumerate(progress):
            batch = floats(pixels[chosen])
            views = torch.cat([view(batch, recipe, generator) for _ in range(2)])
            with autocast(torch.device("cpu")):
                latents = network.encode(views)
                drawn = network.decode(latents)
                projected = head(latents)
            first, second = functional.normalize(projected.float(), dim=1).chunk(2)
            loss = functional.mse_loss(drawn.float(), views)
            loss = loss + recipe.contrastive_weight * views_agree(first, second, recipe.temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"loss is {losses[-1]} in epoch {epoch + 1}, step {step + 1}; "
                    f"lower the learning rate ({recipe.lr})"
                )
        rows.append((epoch + 1, float(np.mean(losses)), time.perf_counter() - started))
        if log is not None:
            write_log(log, ("epoch", "loss", "seconds"), rows)
    return network.eval()


def view(images: Tensor, recipe: Recipe, generator: Generator) -> Tensor:
    """The batch (n, 3, 32, 32), each image changed in the ways that should not matter."""
    mirror = torch.rand(len(images), generator=generator) < 0.5
    images = cropped(flipped(images, mirror), recipe.smallest_crop, generator)
    return recoloured(images, recipe.recolour, generator)


if __name__ == "__main__":
    run(
        "autoencoder",
        __doc__ or "",
        Recipe(),
        lambda data, recipe, log: train(data.images, recipe, log),
        Latent,
    )
