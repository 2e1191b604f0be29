"""Trains the autoencoder without labels: `python -m encoders.training.autoencoder --help`.

A denoising autoencoder (Vincent et al., ICML 2008) whose noise is what should not matter to a
search: the input is shifted, mirrored, scaled in brightness and contrast and tinted, and covered
in part; the target is the image as it was. Loss: mean squared error.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional
from tqdm import tqdm

from encoders.autoencoder import SIDE, AutoencoderNetwork, Latent
from encoders.inference import autocast, floats, keep_freed_memory
from encoders.training.augmentation import covered, flipped, recoloured, shifted
from encoders.training.data import read_training_set
from encoders.training.runs import arguments, embed, save_run, score, write_log
from retrieval.contracts import Framing, Images


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every setting of a training run; with the data, seed and machine it decides the weights."""

    width: int = 32
    dim: int = 64
    epochs: int = 12
    batch: int = 250
    lr: float = 2e-3  # of Adam, by a cosine to zero
    translate: int = 4  # pixels
    recolour: float = 0.4  # the most by which a channel's contrast and brightness change
    cover: int = 8  # pixels, the side of the square that is covered
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
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps_an_epoch * recipe.epochs)
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
            target = floats(pixels[chosen])
            with autocast(torch.device("cpu")):
                drawn = network(noisy(target, recipe, generator))
            loss = functional.mse_loss(drawn.float(), target)
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


def noisy(images: Tensor, recipe: Recipe, generator: Generator) -> Tensor:
    """The batch (n, 3, 32, 32), each image changed in the ways that should not matter."""
    mirror = torch.rand(len(images), generator=generator) < 0.5
    images = shifted(flipped(images, mirror), recipe.translate, generator)
    images = recoloured(images, recipe.recolour, generator)
    return covered(images, recipe.cover, generator)


def main() -> None:
    """Train by the recipe that ships, then write weights and card, or score held-out images."""
    asked = arguments(__doc__ or "", "autoencoder")
    keep_freed_memory()
    recipe = Recipe(seed=asked.seed)
    if asked.epochs is not None:
        recipe = replace(recipe, epochs=asked.epochs)
    data = read_training_set(asked.source, Framing(side=SIDE), asked.data)
    kept, held_out = data.split(asked.validation, asked.seed)
    asked.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    network = train(kept.images, recipe, asked.out / "autoencoder.csv")
    minutes = (time.perf_counter() - started) / 60
    if asked.validation:
        result = score(embed(Latent(network), held_out.images), held_out.labels)
        print(f"held-out mAP {result.map:.4f}, P@10 {result.precision_at[10]:.4f}")
    else:
        save_run(asked.out, "autoencoder", network, recipe, data, minutes)
    print(f"{minutes:.1f} minutes")


if __name__ == "__main__":
    main()
