"""The autoencoder: an image's latent under a convolutional autoencoder trained without labels.

Convolutions and ELU squeeze a 32×32 image into `dim` numbers, transposed convolutions draw it
again. `encoders.training.autoencoder` trains it to draw what it was given, and to give two views
of one image latents that point the same way: what cropping, mirroring and recolouring do not
touch is what the latent keeps. docs/results.md has the figures and their conditions.
"""

from importlib.resources import as_file, files

import torch
from torch import Tensor, nn

from encoders.inference import TorchEncoder, load_weights
from retrieval.contracts import Framing, Metric, Resample

VERSION = 1  # of this file's arithmetic; part of the fingerprint
SIDE = 32


class AutoencoderNetwork(nn.Module):
    """Images (n, 3, 32, 32) from 0 to 1, to images of the same shape, through (n, dim)."""

    def __init__(self, width: int, dim: int) -> None:
        """`width`: channels after the first convolution; they double twice."""
        super().__init__()
        inner = 4 * width * (SIDE // 8) ** 2
        self.encoder = nn.Sequential(
            *_layer(nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False)),
            *_layer(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)),
            *_layer(nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1, bias=False)),
            *_layer(nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)),
            *_layer(nn.Conv2d(4 * width, 4 * width, 4, stride=2, padding=1, bias=False)),
            nn.Flatten(),
            nn.Linear(inner, dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(dim, inner),
            nn.Unflatten(1, (4 * width, SIDE // 8, SIDE // 8)),
            nn.ELU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
            nn.ELU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ELU(),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> Tensor:
        """The latents (n, dim) of the images."""
        latents: Tensor = self.encoder(images - 0.5)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """The images (n, 3, 32, 32) that the latents (n, dim) stand for."""
        drawn: Tensor = self.decoder(latents)
        return torch.sigmoid(drawn)

    @classmethod
    def of_weights(cls, weights: dict[str, Tensor]) -> "AutoencoderNetwork":
        """The network whose width and dimension are those of its saved weights."""
        network = cls(len(weights["encoder.0.weight"]), weights["decoder.0.weight"].shape[1])
        network.load_state_dict(weights)
        return network


def _layer(conv: nn.Conv2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    return conv, nn.BatchNorm2d(conv.out_channels), nn.ELU()


class Latent(nn.Module):
    """The mean of the latents of an image and of its mirror image."""

    def __init__(self, network: AutoencoderNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return (self.network.encode(images) + self.network.encode(images.flip(-1))) / 2


class Autoencoder(TorchEncoder):
    """`autoencoder`: the latent of an image framed to 32×32, made for cosine."""

    def __init__(self, device: str = "auto") -> None:
        """Load the weights that ship. device: auto, cpu or cuda."""
        with as_file(files("encoders") / "weights" / "autoencoder.safetensors") as path:
            weights = load_weights(path)
        network = AutoencoderNetwork.of_weights(weights)
        super().__init__(
            Latent(network),
            name="autoencoder",
            dim=weights["decoder.0.weight"].shape[1],
            metric=Metric.COSINE,
            framing=Framing(side=SIDE, resample=Resample.BICUBIC),
            config={"version": VERSION, "mirror": True},
            weights=weights,
            device=device,
            batch=250,
        )
