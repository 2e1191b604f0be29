"""The autoencoder: an image's latent under a convolutional autoencoder trained without labels.

Convolutions with stride 2 and ELU squeeze a 32×32 image into `dim` numbers, transposed
convolutions draw it again. It is trained by `encoders.training.autoencoder` to draw the image
as it was from a version that was shifted, mirrored and recoloured: what such a change does not
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
        channels = (width, 2 * width, 4 * width)
        inner = channels[-1] * (SIDE // 8) ** 2
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.ELU(),
                nn.Conv2d(after, after, 4, stride=2, padding=1),
                nn.ELU(),
            ]
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inner, dim))
        layers = [nn.Linear(dim, inner), nn.Unflatten(1, (channels[-1], SIDE // 8, SIDE // 8))]
        for before, after in zip(channels[::-1], (*channels[-2::-1], width), strict=True):
            layers += [nn.ELU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(*layers, nn.ELU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(self.encode(images)))

    def encode(self, images: Tensor) -> Tensor:
        """The latents (n, dim) of the images."""
        latents: Tensor = self.encoder(images - 0.5)
        return latents

    @classmethod
    def of_weights(cls, weights: dict[str, Tensor]) -> "AutoencoderNetwork":
        """The network whose width and dimension are those of its saved weights."""
        network = cls(len(weights["encoder.0.weight"]), weights["decoder.0.weight"].shape[1])
        network.load_state_dict(weights)
        return network


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
