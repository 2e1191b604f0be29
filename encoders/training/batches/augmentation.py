"""Augmentation of whole batches in torch: one call a batch, not one an image.

Batches are (n, 3, height, width) float tensors from 0 to 1; every random choice comes from the
generator that is passed in, which lives where the batch does.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from encoders.training.recipe import Augmentation


def augmented(
    images: Tensor, settings: Augmentation, epoch: int, coin: Tensor, generator: Generator
) -> Tensor:
    """The batch as the recipe wants it changed; twice as long where it wants two views.

    epoch: from 0; coin: (n,) bool, each image's own, for the alternating flip. The two views of
    image i are i and n + i.
    """
    return torch.cat(
        [_view(images, settings, epoch, coin, generator) for _ in range(settings.views)]
    )


def _view(
    images: Tensor, settings: Augmentation, epoch: int, coin: Tensor, generator: Generator
) -> Tensor:
    if settings.flip == "alternating":
        images = flipped(images, alternating_flip(epoch, coin))
    elif settings.flip == "random":
        images = flipped(images, _random(len(images), like=images, by=generator) < 0.5)
    if settings.translate:
        images = shifted(images, settings.translate, generator)
    if settings.smallest_crop < 1 or settings.crop_side or settings.rotate:
        images = cropped(
            images, settings.smallest_crop, settings.crop_side, generator, settings.rotate
        )
    if settings.recolour:
        images = recoloured(images, settings.recolour, generator)
    if settings.greyscale:
        images = greyed(images, settings.greyscale, generator)
    if settings.cutout:
        images = cut_out(images, settings.cutout, generator)
    return images


def _random(*shape: int, like: Tensor, by: Generator) -> Tensor:
    return torch.rand(*shape, generator=by, device=like.device)


def flipped(images: Tensor, mask: Tensor) -> Tensor:
    """The batch with the images under `mask` (n, bool) mirrored left to right."""
    return torch.where(mask.view(-1, 1, 1, 1), images.flip(-1), images)


def alternating_flip(epoch: int, coin: Tensor) -> Tensor:
    """A mask (n, bool) that mirrors each image in every other epoch.

    An image is mirrored first or second by its own `coin` (n, bool), so that any two epochs in
    a row show both of its views: less redundant than a fresh coin
    (Jordan, 94% on CIFAR-10 in 3.29 seconds, arXiv:2404.00498).
    """
    return coin ^ bool(epoch % 2)


def shifted(images: Tensor, most: int, generator: Generator) -> Tensor:
    """The batch with each image moved by up to `most` pixels each way, edges reflected."""
    n, _, height, width = images.shape
    padded = functional.pad(images, (most,) * 4, mode="reflect")
    device = images.device
    offsets = torch.randint(0, 2 * most + 1, (2, n), generator=generator, device=device)
    rows = offsets[0].view(n, 1) + torch.arange(height, device=device)
    columns = offsets[1].view(n, 1) + torch.arange(width, device=device)
    which = torch.arange(n, device=device).view(n, 1, 1)
    # Indexing over channels-last memory moves three values at a time.
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def recoloured(images: Tensor, most: float, generator: Generator) -> Tensor:
    """The batch with each image's contrast, and each channel's brightness, changed at random.

    Contrast is multiplied by 1 ± most around the image's mean; half of `most` is the most that
    is added to a channel. Values may leave the range from 0 to 1.
    """
    n = len(images)
    contrast = 1 + most * (2 * _random(n, 1, 1, 1, like=images, by=generator) - 1)
    tint = most / 2 * (2 * _random(n, 3, 1, 1, like=images, by=generator) - 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean + tint


def cropped(
    images: Tensor, smallest: float, side_out: int, generator: Generator, most_turned: float = 0
) -> Tensor:
    """The batch with a random square of each image scaled to side_out × side_out.

    The square's area is drawn between `smallest` and 1 of the image's; its place is drawn too, and
    how far it is turned about its centre, by up to `most_turned` degrees either way. Corners that
    this moves out of the image show it reflected. Scaling is bilinear, or bicubic where it
    enlarges the images.
    side_out: pixels; 0 for the images' own.
    """
    n = len(images)
    shape = [n, images.shape[1], side_out, side_out] if side_out else list(images.shape)
    kernel = "bicubic" if side_out > images.shape[-1] else "bilinear"
    side = (smallest + (1 - smallest) * _random(n, like=images, by=generator)).sqrt()
    # The centre, in coordinates from -1 to 1, so that the square stays within the image.
    centre = (1 - side)[:, None] * (2 * _random(n, 2, like=images, by=generator) - 1)
    theta = torch.zeros(n, 2, 3, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = centre
    if most_turned:
        turn = math.radians(most_turned) * (2 * _random(n, like=images, by=generator) - 1)
        theta[:, 0, 0] = theta[:, 1, 1] = side * turn.cos()
        theta[:, 1, 0] = side * turn.sin()
        theta[:, 0, 1] = -theta[:, 1, 0]
    grid = functional.affine_grid(theta, shape, align_corners=False)
    return functional.grid_sample(
        images, grid, kernel, padding_mode="reflection", align_corners=False
    )


def greyed(images: Tensor, share: float, generator: Generator) -> Tensor:
    """The batch with about `share` of its images turned grey, by the weights of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    grey = (images * weights).sum(1, keepdim=True)
    chosen = _random(len(images), 1, 1, 1, like=images, by=generator) < share
    return torch.where(chosen, grey, images)


def cut_out(images: Tensor, side: int, generator: Generator) -> Tensor:
    """The batch with a square of each image, at a random place, in the batch's mean colour.

    The square's centre lies anywhere in the image, so that it may stick out
    (DeVries and Taylor, Cutout, arXiv:1708.04552).
    """
    n, _, height, width = images.shape
    device = images.device
    top = torch.randint(0, height, (n, 1, 1, 1), generator=generator, device=device) - side // 2
    left = torch.randint(0, width, (n, 1, 1, 1), generator=generator, device=device) - side // 2
    rows = torch.arange(height, device=device).view(1, 1, height, 1)
    columns = torch.arange(width, device=device).view(1, 1, 1, width)
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return torch.where(inside, images.mean((0, 2, 3), keepdim=True), images)


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """Images (n, …), in each of which a part may be another's of the batch.

    partners: (n,), whose; kept: the share of its area that each image has of its own.
    """

    images: Tensor
    partners: Tensor
    kept: float = 1.0


def cut_mixed(images: Tensor, share: float, generator: Generator) -> Mixed:
    """The batch, by a chance of `share` with a box of each image taken from another image.

    The box is the same for all; its area is drawn evenly, its centre anywhere, so that it may stick
    out (Yun et al., CutMix, arXiv:1905.04899).
    """
    n, _, height, width = images.shape
    device = images.device
    unmixed = Mixed(images, torch.arange(n, device=device))
    if not share:
        return unmixed  # without a wait for a GPU
    chance, own, y, x = torch.rand(4, generator=generator, device=device).tolist()
    if chance >= share:
        return unmixed
    partners = torch.randperm(n, generator=generator, device=device)
    side = math.sqrt(1 - own) / 2
    top, bottom = (min(max(round(height * (y + at)), 0), height) for at in (-side, side))
    left, right = (min(max(round(width * (x + at)), 0), width) for at in (-side, side))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
    return Mixed(mixed, partners, 1 - (bottom - top) * (right - left) / (height * width))
