"""The siamese encoder: a small convolutional network whose cosine says "same class".

The network follows the shape of Jordan's airbench (arXiv:2404.00498): a frozen 2×2 whitening
convolution, three blocks of two 3×3 convolutions, and a linear neck to `dim` numbers of unit
length. Two images are embedded by the same weights (the siamese branches) and compared by
cosine. The weights that ship were trained from scratch by `encoders.training.siamese` on the
50,000 training images of CIFAR-10; docs/results.md has the figures and their conditions.
"""

import copy
from importlib.resources import as_file, files

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from encoders.inference import TorchEncoder, load_weights
from retrieval.contracts import Framing, Metric, Resample

VERSION = 1  # of this file's arithmetic; part of the fingerprint
SIDE = 32
WHITENING_FILTERS = 24  # 2 signs × (2 × 2 pixels × 3 channels)


class Block(nn.Module):
    """Two 3×3 convolutions, each normalised and through GELU; the first halves the image."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.norm1 = FixedScaleNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = FixedScaleNorm(channels)
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.norm1(functional.max_pool2d(self.conv1(x), 2)))
        return functional.gelu(self.norm2(self.conv2(x)))


class FixedScaleNorm(nn.BatchNorm2d):
    """Batch norm that learns a shift and no scale: its scale stays positive (see `folded`)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5, momentum=0.2)
        nn.init.ones_(self.weight)
        self.weight.requires_grad_(False)


class SiameseNetwork(nn.Module):
    """Images (n, 3, 32, 32) with values from 0 to 1, to unit vectors (n, dim)."""

    mean: Tensor
    std: Tensor

    def __init__(self, widths: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))
        self.whitening = nn.Conv2d(3, WHITENING_FILTERS, 2)
        self.whitening.weight.requires_grad_(False)
        channels = (WHITENING_FILTERS, *widths)
        self.blocks = nn.Sequential(*(Block(*pair) for pair in zip(channels, widths, strict=False)))
        self.neck = nn.Linear(widths[-1], dim, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = (images - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
        x = self.blocks(functional.gelu(self.whitening(x)))
        x = self.neck(functional.max_pool2d(x, 3).flatten(1))
        return functional.normalize(x.float(), dim=1)

    def folded(self) -> "SiameseNetwork":
        """The same function with normalisation folded into the convolutions, for inference.

        The norm behind the pooling moves in front of it, since its scale is positive and the
        maximum of scaled values is the scaled maximum.
        """
        network = copy.deepcopy(self).eval()
        with torch.no_grad():
            # (x - mean) / std, for the 2 × 2 pixels that each whitening filter sees
            weight = network.whitening.weight / self.std.view(1, 3, 1, 1)
            bias = network.whitening.bias
            assert bias is not None
            bias -= (weight * self.mean.view(1, 3, 1, 1)).sum((1, 2, 3))
            network.whitening.weight.copy_(weight)
            network.mean.zero_()
            network.std.fill_(1)
        for block in network.blocks:
            for number in (1, 2):
                conv, norm = (getattr(block, f"{part}{number}") for part in ("conv", "norm"))
                setattr(block, f"conv{number}", fuse_conv_bn_eval(conv, norm))
                setattr(block, f"norm{number}", nn.Identity())
        return network

    @classmethod
    def of_weights(cls, weights: dict[str, Tensor]) -> "SiameseNetwork":
        """The network whose widths and dimension are those of its saved weights."""
        first, second, third = (len(weights[f"blocks.{i}.conv1.weight"]) for i in range(3))
        network = cls((first, second, third), len(weights["neck.weight"]))
        network.load_state_dict(weights)
        return network


class MirrorAveraged(nn.Module):
    """The unit vector half way between those of an image and of its mirror image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        both = self.network(images) + self.network(images.flip(-1))
        return functional.normalize(both, dim=1)


class Siamese(TorchEncoder):
    """`siamese`: 128 numbers of unit length for an image framed to 32×32, made for cosine.

    The embedding is the mean of those of the image and of its mirror image, at unit length
    again: the second view doubles the time.
    """

    def __init__(self, device: str = "auto") -> None:
        """Load the weights that ship. device: auto, cpu or cuda."""
        with as_file(files("encoders") / "weights" / "siamese.safetensors") as path:
            weights = load_weights(path)
        network = SiameseNetwork.of_weights(weights)
        super().__init__(
            MirrorAveraged(network.folded()),
            name="siamese",
            dim=network.neck.out_features,
            metric=Metric.COSINE,
            framing=Framing(side=SIDE, resample=Resample.BICUBIC),
            config={"version": VERSION, "mirror": True},
            weights=weights,
            device=device,
            batch=250,  # with its feature maps in the processor's cache
        )
