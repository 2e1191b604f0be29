"""The autoencoder: latents of a convolutional autoencoder that is trained without labels.

Convolutions with ELU reduce a 32×32 image to `dim` numbers, and transposed convolutions draw the
image from them. A recipe's losses decide what a latent keeps: the information to draw the image,
and what two views of one image have in common. docs/results.md has the figures and their
conditions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from encoders.blocks.heads import ViewsAveraged, Whitening
from encoders.inference import fast_inference, floats
from encoders.networks import Amount, Count, Network, Outputs, Settings, Share
from encoders.siamese import SiameseNetwork, SiameseSettings
from encoders.trained import TrainedEncoder
from retrieval.contracts import Images
from retrieval.images import check_framed


@dataclass(frozen=True)
class AutoencoderSettings(Settings):
    """Settings of the network; a recipe's `[network]` fills them."""

    width: Count = 32  # channels at the largest scale; they double twice
    blocks: tuple[Count, Count, Count] | None = None  # widths of the siamese network's blocks,
    # used in place of strided convolutions
    dim: Count = 64  # dimension of the latent
    projection: Amount = (
        64  # dimension of the projection that losses of embeddings see; 0: the latent
    )
    mirror: bool = True  # embed the mean of the image's latent and its mirror image's
    whitening: Share = 0.0  # power of the whitening, see `Whitening`
    frozen: bool = False  # train the decoder only


class AutoencoderNetwork(Network):
    """Images (n, 3, side, side) from 0 to 1, to latents (n, dim) and to images again."""

    settings_type = AutoencoderSettings
    draws = True
    settings: AutoencoderSettings
    precise = frozenset(
        {
            "whitening.mean",
            "whitening.axes",
            *(f"encoder.{name}" for name in SiameseNetwork.precise),
        }
    )

    def __init__(self, settings: AutoencoderSettings, classes: int, side: int) -> None:
        """Raises ValueError for images whose side is not a multiple of 8."""
        super().__init__(settings, classes, side)
        if side % 8:
            raise ValueError(f"the side of an autoencoder's images is {side}, not a multiple of 8")
        self.settings = settings
        width, dim = settings.width, settings.dim
        inner = 4 * width * (side // 8) ** 2
        self.encoder = (
            _strided(width, inner, dim)
            if settings.blocks is None
            else SiameseNetwork(
                SiameseSettings(settings.blocks, dim=dim, unit_length=False, mirror=False), 0, side
            )
        )
        self.decoder = nn.Sequential(
            nn.Linear(dim, inner),
            nn.Unflatten(1, (4 * width, side // 8, side // 8)),
            nn.ELU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
            nn.ELU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ELU(),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        )
        if settings.projection:
            # Dropped after the training, as in SimCLR, arXiv:2002.05709.
            hidden = 4 * dim
            self.projection = nn.Sequential(
                nn.Linear(dim, hidden, bias=False),
                nn.BatchNorm1d(hidden),
                nn.ELU(),
                nn.Linear(hidden, settings.projection),
            )

        if settings.frozen:
            self.requires_grad_(False)
            self.decoder.requires_grad_(True)
        if settings.whitening:
            self.whitening = Whitening(dim, dim, settings.whitening)

    @property
    def dim(self) -> int:
        return self.settings.dim

    @property
    def training_dim(self) -> int:
        return self.settings.projection or self.settings.dim

    def train(self, mode: bool = True) -> "AutoencoderNetwork":
        """Set the mode of the network; frozen parts stay in evaluation mode."""
        super().train(mode and not self.settings.frozen)
        self.decoder.train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the latents (n, dim) of the images."""
        # The siamese network centers images itself.
        centered = images - 0.5 if self.settings.blocks is None else images
        latents: Tensor = self.encoder(centered)
        return latents

    def prepare(self, images: Tensor) -> None:
        if isinstance(self.encoder, SiameseNetwork):
            self.encoder.prepare(images)

    def fresh_parameters(self) -> Sequence[Tensor]:
        """Return the parameters that no norm follows, which Muon is not made for."""
        projection = self.projection.parameters() if self.settings.projection else ()
        return [*self.decoder.parameters(), *projection]

    def outputs(self, images: Tensor) -> Outputs:
        latents = self(images)
        seen = self.projection(latents) if self.settings.projection else latents
        return Outputs(functional.normalize(seen.float(), dim=1), self.decode(latents))

    def decode(self, latents: Tensor) -> Tensor:
        """Draw images (n, 3, side, side) from latents (n, dim)."""
        drawn: Tensor = self.decoder(latents)
        return torch.sigmoid(drawn.float())

    @property
    def fitted_axes(self) -> int:
        return self.settings.dim if self.settings.whitening else 0

    @property
    def needs_features(self) -> bool:
        return bool(self.settings.whitening)

    def fit(self, features: Tensor, labels: Tensor) -> None:
        self.whitening.fit(features)

    def embedder(self) -> nn.Module:
        latents = self.features()
        return nn.Sequential(latents, self.whitening) if self.settings.whitening else latents

    def features(self) -> nn.Module:
        encoder = self.encoder.embedder() if isinstance(self.encoder, SiameseNetwork) else self
        return ViewsAveraged(encoder, mirror=self.settings.mirror, unit_length=False)


def _strided(width: int, inner: int, dim: int) -> nn.Sequential:
    """Build convolutions with ELU, three of which halve the image, and a linear layer to `dim`."""
    return nn.Sequential(
        *_layer(nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False)),
        *_layer(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)),
        *_layer(nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1, bias=False)),
        *_layer(nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)),
        *_layer(nn.Conv2d(4 * width, 4 * width, 4, stride=2, padding=1, bias=False)),
        nn.Flatten(),
        nn.Linear(inner, dim),
    )


def _layer(conv: nn.Conv2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    return conv, nn.BatchNorm2d(conv.out_channels), nn.ELU()


class Autoencoder(TrainedEncoder):
    """`autoencoder`: latents of images framed to 32×32, for the cosine distance."""

    plugin: ClassVar[str] = "autoencoder"
    network_type = AutoencoderNetwork

    @torch.inference_mode()
    def reconstruct(self, images: Images) -> NDArray[np.float32]:
        """Draw images (n, side, side, 3), from 0 to 1, from the latents of these images.

        images: see `encode`. Each is drawn from its own latent, without the mirror image's.
        """
        check_framed(images, self.framing)
        drawn = np.empty(images.shape, np.float32)
        for start in range(0, len(images), self.batch):
            pixels = floats(torch.from_numpy(images[start : start + self.batch]).to(self.device))
            with fast_inference(self.device):
                output = self.trained.outputs(pixels).drawn
            assert output is not None
            drawn[start : start + len(pixels)] = output.permute(0, 2, 3, 1).float().cpu().numpy()
        return drawn


class Autoencoder10(Autoencoder):
    """`autoencoder-10`: latents of ten numbers, which redraw images better than PCA does."""

    ships_as: ClassVar[str] = "autoencoder-10"
