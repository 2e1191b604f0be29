"""The layer scorer: whether two images show one class, from differences in each layer of a CNN.

The network is an ImageNet CNN of timm's EfficientNet family. Its layers are the first
convolution, the projection at the end of each of the last 16 blocks, and the last convolution. The
mean squared differences of two images' feature maps are standardized and go into a small network,
which `retr train layers` fits to all pairs of a small labeled set. An image's maps are computed
once for all its pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from encoders.inference import TorchEncoder, fast_inference, floats
from encoders.networks import Count, Network, Positive, Settings, Share
from encoders.timm.features import LayerOutputs
from encoders.timm.published import OFFLINE_MODEL, check_known, load_published
from encoders.trained import TrainedEncoder
from retrieval.contracts import Framing, Images, Metric
from retrieval.errors import BadInput
from retrieval.images import check_framed

VERSION = 1  # raise it when the arithmetic here changes; part of the fingerprint
PROJECTION_BLOCKS = 16
HIDDEN_UNITS = (32, 64)
"""Units of the scorer's two hidden layers."""

PAIRS_PER_CHUNK = 64


@dataclass(frozen=True)
class LayersSettings(Settings):
    """Settings of the network; a recipe's `[network]` fills them."""

    model: str = OFFLINE_MODEL  # timm's name
    side: Count = 224  # images are resized to side × side before the model
    dropout: Share = 0.3  # after each hidden layer of the scorer
    scorer_epochs: Count = 100  # over all pairs
    scorer_batch: Count = 64  # pairs
    scorer_lr: Positive = 0.001  # learning rate of Adam


class LayersNetwork(Network):
    """A CNN whose embeddings (n, dim) are the means of its last layer's map, and the scorer."""

    settings_type = LayersSettings
    settings: LayersSettings
    precise = frozenset({"mean", "std"})
    at_once = 16
    max_images = 500  # their maps take 4 MB each, and their pairs grow with the square
    fits_labels = True
    mean: Tensor  # (layers,), mean and deviation of the differences in each layer
    std: Tensor

    def __init__(self, settings: LayersSettings, classes: int, side: int) -> None:
        """Build the network without weights; `prepare` loads the published ones.

        Raises UnknownName for a model that timm does not have, BadInput for one without such
        layers.
        """
        super().__init__(settings, classes, side)
        self.settings = settings
        check_known(settings.model)
        bare = timm.create_model(settings.model, pretrained=False, num_classes=0)
        self.body = LayerOutputs(settings.model, _layers(settings.model, bare), bare)
        self.body.requires_grad_(False)
        layers = len(self.body.layers)
        self.register_buffer("mean", torch.zeros(layers))
        self.register_buffer("std", torch.ones(layers))
        self.scorer = nn.Sequential(
            nn.Linear(layers, HIDDEN_UNITS[0]),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(*HIDDEN_UNITS),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(HIDDEN_UNITS[1], 1),
        )

    @classmethod
    def natural_side(cls, settings: LayersSettings) -> int:
        return settings.side

    @property
    def training_dim(self) -> int:
        return int(self.body.network.conv_head.out_channels)

    @property
    def needs_features(self) -> bool:
        return True

    def prepare(self, images: Tensor) -> None:
        """Load the model's published weights."""
        model, _ = load_published(self.settings.model)
        self.body.network.load_state_dict(model.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """Return the means of the last layer's map, of unit length."""
        return functional.normalize(self.maps(images)[-1].mean((2, 3)), dim=1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return each layer's map (n, channels, height, width)."""
        if images.shape[-1] != self.settings.side:
            side = (self.settings.side, self.settings.side)
            images = functional.interpolate(images, side, mode="bilinear", antialias=True)
        return self.body.run(images)[1]

    def features(self) -> nn.Module:
        return _Flat(self)

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Train the scorer on all pairs of images.

        features: (n, numbers), the maps of all layers, concatenated. labels: (n,), classes.
        """
        maps = features.split(self._sizes(), dim=1)
        first, second = torch.triu_indices(len(labels), len(labels), 1)
        alike = (labels[first] == labels[second]).float()
        if not 0 < alike.sum() < len(alike):
            raise BadInput(
                f"of {len(alike)} pairs of images {int(alike.sum())} show the same class; give "
                "2 classes or more, of 2 images or more"
            )
        differences = _differences(maps, first, second).to(self.mean.device)
        alike = alike.to(self.mean.device)
        # Weighted as if half of the pairs showed one class: probabilities refer to such a set.
        weight = (1 - alike.mean()) / alike.mean()
        self.mean.copy_(differences.mean(0))
        self.std.copy_(differences.std(0).clamp_min(1e-12))
        settings = self.settings
        optimizer = torch.optim.Adam(self.scorer.parameters(), settings.scorer_lr)
        self.scorer.train()
        for _ in range(settings.scorer_epochs):
            for rows in torch.randperm(len(alike)).split(settings.scorer_batch):
                optimizer.zero_grad()
                logits = self.logits(differences[rows])
                functional.binary_cross_entropy_with_logits(
                    logits, alike[rows], pos_weight=weight
                ).backward()
                optimizer.step()
        self.scorer.eval()

    def logits(self, differences: Tensor) -> Tensor:
        """Return the log-odds (pairs,) of one class, from differences (pairs, layers)."""
        logits: Tensor = self.scorer((differences - self.mean) / self.std)
        return logits.squeeze(1)

    def _sizes(self) -> list[int]:
        """Return the size of each layer's map."""
        with torch.inference_mode():
            side = self.settings.side
            return [m.numel() for m in self.maps(self.mean.new_zeros(1, 3, side, side))]


def _layers(model: str, network: Any) -> tuple[str, ...]:
    """Return the names of the layers. The last convolution of a block is its projection."""
    inside = dict(network.named_modules())
    blocks: dict[str, str] = {}
    for name, module in inside.items():
        if name.startswith("blocks.") and isinstance(module, nn.Conv2d):
            blocks[".".join(name.split(".")[:3])] = name
    found = ("conv_stem", *[*blocks.values()][-PROJECTION_BLOCKS:], "conv_head")
    if len(blocks) < PROJECTION_BLOCKS or not all(name in inside for name in found):
        raise BadInput(
            f"{model} lacks a first and a last convolution or {PROJECTION_BLOCKS} blocks; "
            f"choose a model such as {OFFLINE_MODEL} or mobilenetv2_100"
        )
    return found


class _Flat(nn.Module):
    """A network whose output (n, numbers) is all maps of an image, concatenated."""

    def __init__(self, network: LayersNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([layer.flatten(1) for layer in self.network.maps(images)], 1)


def _differences(maps: Sequence[Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared difference (pairs, layers) of rows of each layer's maps."""
    parts = [
        torch.stack(
            [(layer[a].float() - layer[b].float()).square().mean(1) for layer in maps], dim=1
        )
        for a, b in zip(first.split(PAIRS_PER_CHUNK), second.split(PAIRS_PER_CHUNK), strict=True)
    ]
    return torch.cat(parts)


class Layers(TrainedEncoder):
    """`layers`: means of the last layer, for the cosine distance; and the scorer of pairs."""

    plugin: ClassVar[str] = "layers"
    network_type = LayersNetwork
    trained: LayersNetwork

    def __init__(self, folder: str | None = None, device: str = "auto") -> None:
        """Open a folder that `retr train` made, or the published model.

        The published model gives differences of pairs, but no probabilities.
        """
        self.fitted = folder is not None
        if folder is not None:
            super().__init__(folder, device)
            return
        settings = LayersSettings()
        network = LayersNetwork(settings, 0, settings.side)
        network.prepare(torch.empty(0))
        self.trained = network
        TorchEncoder.__init__(
            self,
            network,
            name=self.plugin,
            dim=network.dim,
            metric=Metric.COSINE,
            framing=Framing(side=settings.side),
            config={"encoder": self.plugin, "version": VERSION, "network": settings.to_json()},
            weights=network.body.state_dict(),
            device=device,
            batch=network.at_once,
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, from the first to the last."""
        return self.trained.body.layers

    @torch.inference_mode()
    def maps(self, images: Images) -> list[NDArray[np.float16]]:
        """Return each layer's maps (n, numbers) of images; see `encode`."""
        check_framed(images, self.framing)
        batches = [*self._batches(images)]
        return [np.concatenate(layer) for layer in zip(*batches, strict=True)]

    def _batches(self, images: Images) -> Iterator[list[NDArray[np.float16]]]:
        for start in range(0, len(images), self.batch):
            pixels = floats(torch.from_numpy(images[start : start + self.batch]).to(self.device))
            with fast_inference(self.device):
                maps = self.trained.maps(pixels)
            yield [layer.flatten(1).half().cpu().numpy() for layer in maps]

    @torch.inference_mode()
    def differences(
        self,
        maps: Sequence[NDArray[np.float16]],
        first: NDArray[np.int64],
        second: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Return the mean squared difference (pairs, layers) of two rows of each layer's maps."""
        tensors = [torch.from_numpy(layer) for layer in maps]
        rows = torch.from_numpy(first), torch.from_numpy(second)
        return np.asarray(_differences(tensors, *rows).numpy())

    @torch.inference_mode()
    def probability(self, differences: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """Return the probability (pairs,) of one class, from differences (pairs, layers).

        None if the scorer is untrained.
        """
        if not self.fitted:
            return None
        on_device = torch.from_numpy(differences).to(self.device)
        return np.asarray(self.trained.logits(on_device).double().sigmoid().cpu().numpy())
