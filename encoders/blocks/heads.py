"""Last steps from a network to embeddings: class shares, views, whitening, rotation."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class ClassShares(nn.Module):
    """Extends unit vectors (n, dim) by each class's share, to (n, dim + classes).

    The shares are the softmax of `sharpness` times the cosines to the classes' proxies. They pull
    images of one class together, as a classifier would. The vector still distinguishes images
    within a class and images of unknown classes.

    With `unit_length`, for cosines, the shares are scaled to the length `weight`, and the result to
    unit length. Without, for inner products, they are multiplied by `weight`. The inner product of
    two images' shares is then the probability that both are of one class; it is lower if either is
    uncertain, which cosines do not show.
    """

    proxies: Tensor

    def __init__(
        self, proxies: Tensor, sharpness: float, weight: float, *, unit_length: bool = True
    ) -> None:
        """Keep the proxies (classes, dim), of unit length."""
        super().__init__()
        self.register_buffer("proxies", proxies.clone())
        self.sharpness = sharpness
        self.weight = weight
        self.unit_length = unit_length

    def forward(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            shares = (self.sharpness * vectors @ self.proxies.T).softmax(1)
            if not self.unit_length:
                return torch.cat((vectors, self.weight * shares), 1)
            shares = self.weight * functional.normalize(shares, dim=1)
            return functional.normalize(torch.cat((vectors, shares), 1), dim=1)


class ViewsAveraged(nn.Module):
    """Mean vector over several views of an image, of unit length if the vectors are.

    The views are the image; with `mirror`, its mirror image; with `shift`, both moved by `shift`
    pixels up and left, and down and right, edges reflected.
    """

    def __init__(
        self, network: nn.Module, *, mirror: bool, shift: int = 0, unit_length: bool = True
    ) -> None:
        super().__init__()
        self.network = network
        self.mirror = mirror
        self.shift = shift
        self.unit_length = unit_length

    def forward(self, images: Tensor) -> Tensor:
        views = self.views(images)
        total: Tensor = sum(self.network(view) for view in views)
        return functional.normalize(total, dim=1) if self.unit_length else total / len(views)

    def views(self, images: Tensor) -> list[Tensor]:
        """Yield each view of the batch (n, 3, side, side)."""
        views = [images]
        if self.shift:
            far, side = 2 * self.shift, images.shape[-1]
            padded = functional.pad(images, (self.shift,) * 4, mode="reflect")
            views += [padded[..., far:, far:], padded[..., :side, :side]]
        return [*views, *(view.flip(-1) for view in views)] if self.mirror else views


class Whitening(nn.Module):
    """Projection of features (n, features) onto `dim` principal axes, each of unit variance.

    Jégou and Chum, Negative evidences and co-occurrences in image retrieval (ECCV 2012). Axes are
    divided by their standard deviation to the given power. With a power below 1, weak axes, which
    are mostly noise, stay weaker. Before the fit, features pass unchanged.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, features: int, dim: int, power: float = 1.0) -> None:
        """Create the unfitted projection. Raises ValueError for more axes than features."""
        super().__init__()
        if dim > features:
            raise ValueError(f"{dim} principal axes of {features} features")
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("axes", torch.eye(features, dim))
        self.power = power

    def fit(self, features: Tensor) -> None:
        """Find the axes of the features (n, features) of a database, n above the number of axes.

        If the features vary in fewer directions, the output along the other axes is close to zero.
        """
        from sklearn.decomposition import PCA  # slow to import

        dim = self.axes.shape[1]
        with np.errstate(invalid="ignore"):  # shares of a total variance of 0
            found = PCA(dim, svd_solver="covariance_eigh").fit(features.numpy())
        variance = found.explained_variance_
        # Smaller deviations are rounding; they are not amplified.
        variance = np.maximum(variance, 1e-6 * variance[0] or 1.0)
        self.mean.copy_(torch.from_numpy(found.mean_))
        self.axes.copy_(torch.from_numpy(found.components_.T / variance ** (self.power / 2)))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return (features.float() - self.mean) @ self.axes


class Rotation(nn.Module):
    """Rotation of the first `dim` numbers of vectors (n, ≥ dim), for binary codes.

    It keeps lengths, cosines and the other numbers. The signs of the rotated numbers, less the
    database's mean, are codes that lose little: iterative quantization (ITQ), Gong and Lazebnik,
    Iterative Quantization: A Procrustean Approach to Learning Binary Codes (CVPR 2011). Before the
    fit, vectors pass unchanged.
    """

    STEPS = 50  # as published
    axes: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("axes", torch.eye(dim))

    def fit(self, vectors: Tensor) -> None:
        """Find the rotation with signs nearest to the vectors (n, dim), from a random start."""
        centered = (vectors - vectors.mean(0)).double()
        axes = torch.linalg.qr(torch.randn(len(self.axes), len(self.axes)).double())[0]
        for _ in range(self.STEPS):
            left, _, right = torch.linalg.svd(centered.T @ (centered @ axes).sign())
            axes = left @ right
        self.axes.copy_(axes)

    def forward(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            dim = len(self.axes)
            turned = vectors[:, :dim].float() @ self.axes
            return torch.cat((turned, vectors[:, dim:].float()), 1)
