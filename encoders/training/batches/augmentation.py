"""Augmentation of whole batches in torch: one call per batch, not per image.

Batches are (n, 3, height, width) float tensors from 0 to 1. All random numbers come from the
generator argument, which is on the batch's device.
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
    """Return the batch with the recipe's random changes; with two views, 2n images.

    epoch: from 0. coin: (n,) bool, fixed for each image, for the alternating flip. The two views
    of image i are i and n + i.
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
        images = recolored(images, settings.recolour, generator)
    if settings.greyscale:
        images = grayed(images, settings.greyscale, generator)
    if settings.cutout:
        images = cut_out(images, settings.cutout, generator)
    return images


def _random(*shape: int, like: Tensor, by: Generator) -> Tensor:
    return torch.rand(*shape, generator=by, device=like.device)


def flipped(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror the images selected by `mask` (n, bool) left to right."""
    return torch.where(mask.view(-1, 1, 1, 1), images.flip(-1), images)


def alternating_flip(epoch: int, coin: Tensor) -> Tensor:
    """Return a mask (n, bool) that mirrors each image in every other epoch.

    The image's `coin` (n, bool) decides whether it is mirrored in even or odd epochs. So two
    consecutive epochs show both views, with less repetition than independent draws
    (Jordan, 94% on CIFAR-10 in 3.29 seconds, arXiv:2404.00498).
    """
    return coin ^ bool(epoch % 2)


def shifted(images: Tensor, most: int, generator: Generator) -> Tensor:
    """Move each image by up to `most` pixels each way, edges reflected."""
    n, _, height, width = images.shape
    padded = functional.pad(images, (most,) * 4, mode="reflect")
    device = images.device
    offsets = torch.randint(0, 2 * most + 1, (2, n), generator=generator, device=device)
    rows = offsets[0].view(n, 1) + torch.arange(height, device=device)
    columns = offsets[1].view(n, 1) + torch.arange(width, device=device)
    which = torch.arange(n, device=device).view(n, 1, 1)
    # In channels-last memory, indexing copies three values at a time.
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def recolored(images: Tensor, most: float, generator: Generator) -> Tensor:
    """Change each image's contrast, and each channel's brightness, at random.

    Contrast is multiplied by 1 ± most around the image's mean. A channel's brightness changes by
    up to half of `most`. Values may leave the range from 0 to 1.
    """
    n = len(images)
    contrast = 1 + most * (2 * _random(n, 1, 1, 1, like=images, by=generator) - 1)
    tint = most / 2 * (2 * _random(n, 3, 1, 1, like=images, by=generator) - 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean + tint


def cropped(
    images: Tensor, smallest: float, side_out: int, generator: Generator, most_turned: float = 0
) -> Tensor:
    """Scale a random square of each image to side_out × side_out.

    The square's area, from `smallest` to 1 of the image's, its place and its rotation, by up to
    `most_turned` degrees either way, are drawn at random. Corners outside the image show its
    reflection. Scaling is bilinear, or bicubic if it enlarges the images.
    side_out: pixels; 0 for the images' side.
    """
    n = len(images)
    shape = [n, images.shape[1], side_out, side_out] if side_out else list(images.shape)
    kernel = "bicubic" if side_out > images.shape[-1] else "bilinear"
    side = (smallest + (1 - smallest) * _random(n, like=images, by=generator)).sqrt()
    # The center, in coordinates from -1 to 1, keeps the square inside the image.
    center = (1 - side)[:, None] * (2 * _random(n, 2, like=images, by=generator) - 1)
    theta = torch.zeros(n, 2, 3, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = center
    if most_turned:
        turn = math.radians(most_turned) * (2 * _random(n, like=images, by=generator) - 1)
        theta[:, 0, 0] = theta[:, 1, 1] = side * turn.cos()
        theta[:, 1, 0] = side * turn.sin()
        theta[:, 0, 1] = -theta[:, 1, 0]
    grid = functional.affine_grid(theta, shape, align_corners=False)
    return functional.grid_sample(
        images, grid, kernel, padding_mode="reflection", align_corners=False
    )


def grayed(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Turn about `share` of the images gray, by the weights of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    gray = (images * weights).sum(1, keepdim=True)
    chosen = _random(len(images), 1, 1, 1, like=images, by=generator) < share
    return torch.where(chosen, gray, images)


def cut_out(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Fill a square at a random place of each image with the batch's mean color.

    The square's center is anywhere in the image, so that the square may reach beyond the edge
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
    """Images (n, …), each of which may contain a part of another image of the batch.

    partners: (n,), the other image. kept: share of the area that is the image's own.
    """

    images: Tensor
    partners: Tensor
    kept: float = 1.0


def cut_mixed(images: Tensor, share: float, generator: Generator) -> Mixed:
    """Replace a box of each image by that of another image, with probability `share`.

    The box is the same for all images. Its area is drawn uniformly, and its center anywhere, so
    that the box may reach beyond the edge (Yun et al., CutMix, arXiv:1905.04899).
    """
    n, _, height, width = images.shape
    device = images.device
    unmixed = Mixed(images, torch.arange(n, device=device))
    if not share:
        return unmixed  # avoids waiting for a GPU
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
