"""The siamese encoder: a small convolutional network whose cosine says "same class".

The network follows the shape of Jordan's airbench (arXiv:2404.00498): a frozen 2×2 whitening
convolution, three blocks of 3×3 convolutions, and a linear neck to vectors of unit length. Two
images are embedded by the same weights (the siamese branches) and compared by cosine. The weights
that ship were trained from scratch on the training images of CIFAR-10; their card holds the
recipe. docs/results.md has the figures and their conditions.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from encoders.blocks.convolution import Conv3x3, TwoPartConv
from encoders.blocks.heads import ViewsAveraged
from encoders.networks import Amount, Count, Network, Positive, Settings
from encoders.trained import TrainedEncoder
from retrieval.contracts import Metric

MIN_VARIANCE_SHARE = 1e-6
"""Share of the largest variance of 2×2 patches below which variance is rounding."""

WHITENING_FILTERS = 24  # 2 signs × (2 × 2 pixels × 3 channels)


@dataclass(frozen=True)
class SiameseSettings(Settings):
    """Settings of the network; a recipe's `[network]` fills them."""

    widths: tuple[Count, Count, Count] = (64, 256, 256)  # channels of each block
    depth: Count = 2  # convolutions of a block
    dim: Count = 128  # dimension of the neck's output
    unit_length: bool = True  # for the cosine distance; else Euclidean
    mirror: bool = True  # also embed the mirror image, at twice the time
    shift: Amount = 0  # pixels; also embed views moved two ways, at three times the time
    class_sharpness: Positive | None = None  # see `ClassShares`; None: no shares
    class_weight: Positive = 2.0


class SiameseNetwork(Network):
    """A network from images (n, 3, side, side), with values from 0 to 1, to vectors (n, dim)."""

    settings_type = SiameseSettings
    settings: SiameseSettings
    # On gray images, filters are large where channels cancel out to the last bits.
    precise = frozenset({"mean", "std", "whitening.weight", "whitening.bias"})
    mean: Tensor
    std: Tensor

    def __init__(self, settings: SiameseSettings, classes: int, side: int) -> None:
        super().__init__(settings, classes, side)
        self.settings = settings
        self.metric = Metric.COSINE if settings.unit_length else Metric.EUCLIDEAN
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))
        self.whitening = nn.Conv2d(3, WHITENING_FILTERS, 2)
        self.whitening.weight.requires_grad_(False)
        channels = (WHITENING_FILTERS, *settings.widths)
        self.blocks = nn.Sequential(
            *(
                Block(before, after, settings.depth)
                for before, after in zip(channels, settings.widths, strict=False)
            )
        )
        self.neck = nn.Linear(settings.widths[-1], settings.dim, bias=False)
        if settings.class_sharpness is not None:
            self.make_proxies(classes)

    @property
    def training_dim(self) -> int:
        return self.settings.dim

    def prepare(self, images: Tensor) -> None:
        """Set mean, deviation and whitening from a sample of the training images."""
        self.mean.copy_(images.mean((0, 2, 3)))
        self.std.copy_(images.std((0, 2, 3)))
        standardized = (images - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
        self.whitening.weight.data.copy_(whitening_filters(standardized))
        assert self.whitening.bias is not None
        nn.init.zeros_(self.whitening.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = (images - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
        # Its filters amplify differences of pixels that bfloat16 would round away.
        with torch.autocast(x.device.type, enabled=False):
            x = self.whitening(x.float())
        x = self.blocks(functional.gelu(x))
        x = functional.max_pool2d(x, x.shape[-1]).flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            x = self.neck(x.float())
        return functional.normalize(x, dim=1) if self.settings.unit_length else x

    def embedder(self) -> nn.Module:
        views = ViewsAveraged(
            self.folded(),
            mirror=self.settings.mirror,
            shift=self.settings.shift,
            unit_length=self.settings.unit_length,
        )
        return self.with_shares(views)

    def folded(self) -> "SiameseNetwork":
        """Return an equivalent network with norms folded into convolutions, for inference.

        The first convolution sees whitened pixels, and its weights need more than 8 bits. The norm
        after the pooling moves before it: its scale is positive, and the maximum of scaled values
        is the scaled maximum.
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
            assert isinstance(block, Block)
            for i, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True)):
                assert isinstance(conv, Conv3x3)
                assert isinstance(norm, FixedScaleNorm)
                block.convs[i] = fuse_conv_bn_eval(conv, norm)
                block.norms[i] = nn.Identity()
        first = network.blocks[0]
        assert isinstance(first, Block) and isinstance(first.convs[0], nn.Conv2d)
        first.convs[0] = TwoPartConv(first.convs[0])
        return network


class Block(nn.Module):
    """3×3 convolutions, each followed by a norm and GELU; the first halves the image.

    With three or more, a shortcut leads from the first one's output to the last one's, as in the
    largest airbench network.
    """

    def __init__(self, channels_in: int, channels: int, depth: int) -> None:
        super().__init__()
        before = (channels_in, *(channels for _ in range(depth - 1)))
        self.convs = nn.ModuleList(Conv3x3(n, channels) for n in before)
        self.norms = nn.ModuleList(FixedScaleNorm(channels) for _ in before)

    def forward(self, x: Tensor) -> Tensor:
        last = len(self.convs) - 1
        shortcut = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            if i == 0:
                x = functional.max_pool2d(x, 2)
            x = norm(x)
            if i == last >= 2:
                x = x + shortcut
            x = functional.gelu(x)
            if i == 0:
                shortcut = x
        return x


class FixedScaleNorm(nn.BatchNorm2d):
    """Batch norm that learns a shift but no scale: the scale stays positive (see `folded`)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5, momentum=0.2)
        nn.init.ones_(self.weight)
        self.weight.requires_grad_(False)


def whitening_filters(images: Tensor, eps: float = 5e-4) -> Tensor:
    """Return the eigenvectors of 2×2 patches, scaled to unit variance, with both signs.

    Those with the largest variance come first. Gray images have fewer directions of variance; these
    are repeated in place of directions that are only rounding. A norm after a channel without
    variance would make gradients grow without bound.
    """
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # (n, 3, rows, columns, 2, 2)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / torch.sqrt(values + eps)).flip(1).T.reshape(12, 3, 2, 2).float()
    alive = max(1, int((values > MIN_VARIANCE_SHARE * values[-1]).sum()))
    filters = filters[torch.arange(len(filters)) % alive]
    return torch.cat((filters, -filters))


class Siamese(TrainedEncoder):
    """`siamese`: vectors of unit length for images framed to 32×32, for the cosine distance."""

    plugin: ClassVar[str] = "siamese"
    network_type = SiameseNetwork


class SiameseQuick(Siamese):
    """`siamese-quick`: a smaller network, whose embeddings average two views instead of six."""

    ships_as: ClassVar[str] = "siamese-quick"
