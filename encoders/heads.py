"""What may stand between a network and its embeddings."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SWAPS_A_SIGN = 20
"""Tried for each sign of the classes' codes; those of ten classes are even after about five."""


class Shares(nn.Module):
    """Unit vectors (n, dim) to the shares (n, classes) that each class has in them.

    The shares are the softmax of `sharpness` times the cosines to the classes' proxies.
    """

    proxies: Tensor

    def __init__(self, proxies: Tensor, sharpness: float) -> None:
        """proxies: (classes, dim), of unit length."""
        super().__init__()
        self.register_buffer("proxies", proxies.clone())
        self.sharpness = sharpness

    def forward(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            return (self.sharpness * vectors.float() @ self.proxies.T).softmax(1)


class ClassShares(nn.Module):
    """Unit vectors (n, dim), and the classes' shares in them beside, to (n, dim + classes).

    They pull images of one class together as a classifier would, while the vector keeps what tells
    images of one class, or of no known class, apart.

    With `unit_length` they are scaled to the length `weight`, and the whole is of unit length
    again, for cosines. Else they are scaled by `weight` as they are, for inner products: that of
    two images' shares is the chance that both are of one class, which is less where either is in
    doubt, and which cosines do not see.
    """

    def __init__(self, shares: Shares, weight: float, *, unit_length: bool = True) -> None:
        super().__init__()
        self.shares = shares
        self.weight = weight
        self.unit_length = unit_length

    def forward(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            vectors, shares = vectors.float(), self.shares(vectors)
            if not self.unit_length:
                return torch.cat((vectors, self.weight * shares), 1)
            shares = self.weight * functional.normalize(shares, dim=1)
            return functional.normalize(torch.cat((vectors, shares), 1), dim=1)


class ClassCodes(nn.Module):
    """Shares of classes (n, classes) to numbers (n, bits) whose signs are codes that know doubt.

    Each class has a code, half of whose signs it has in common with that of any other, about. An
    image's code is the one whose agreement with other images' is nearest to the chance that both
    are of one class, in squares: an image in doubt lies between the codes of its classes, and in
    doubt between as many others as there are. What is learned of the others is their second
    moment and their mean with the shares, as in discrete optimisation of supervised hashing (Shen
    et al., Supervised Discrete Hashing, CVPR 2015); before the fit they are one of each class.

    The numbers are the mixture of the classes' codes by the shares, for inner products, plus twice
    the code, so that each sign stands clear of zero, and of a database's mean.
    """

    ROUNDS = 6  # of the fit
    SWEEPS = 4  # over the signs of a code; few change in the third
    codes: Tensor
    moment: Tensor
    pull: Tensor

    def __init__(self, classes: int, bits: int) -> None:
        """Without codes, which `prepare` makes, or which come with the weights."""
        super().__init__()
        self.register_buffer("codes", torch.zeros(classes, bits))
        self.register_buffer("moment", torch.zeros(bits, bits))
        self.register_buffer("pull", torch.zeros(classes, bits))

    def prepare(self) -> None:
        """Make the classes' codes."""
        self.codes.copy_(class_codes(*self.codes.shape))
        self._learn(torch.eye(len(self.codes), device=self.codes.device), self.codes)

    def fit(self, shares: Tensor) -> None:
        """Take these shares (n, classes) for those of the other images."""
        for _ in range(self.ROUNDS):
            self._learn(shares, self.signs(shares))

    def signs(self, shares: Tensor) -> Tensor:
        """The codes (n, bits) of shares (n, classes), as 1 and -1.

        Sign after sign is set to what is best beside the others, from the mixture's own.
        """
        linear = shares @ self.pull
        signs = torch.where(shares @ self.codes < 0, -1.0, 1.0)
        for _ in range(self.SWEEPS):
            for bit in range(signs.shape[1]):
                others = signs @ self.moment[bit] - signs[:, bit] * self.moment[bit, bit]
                signs[:, bit] = torch.where(linear[:, bit] < others, -1.0, 1.0)
        return signs

    def forward(self, shares: Tensor) -> Tensor:
        with torch.autocast(shares.device.type, enabled=False):
            shares = shares.float()
            return shares @ self.codes + 2 * self.signs(shares)

    def _learn(self, shares: Tensor, signs: Tensor) -> None:
        """Hold the moment and the pull of images with these shares and signs.

        Two images with shares s and t should agree in bits · s·t + apart · (1 - s·t): as a class
        does with itself, and as it does with another on average.
        """
        classes, bits = self.codes.shape
        together = self.codes @ self.codes.T
        apart = (together.sum() - classes * bits) / (classes * (classes - 1))
        self.moment.copy_(signs.T @ signs / len(signs))
        # The shares of an image add up to 1.
        self.pull.copy_((bits - apart) * shares.T @ signs / len(signs) + apart * signs.mean(0))


def class_codes(classes: int, bits: int) -> Tensor:
    """A code (bits,) of 1 and -1 for each of two or more classes, all about equally far apart.

    Each bit has as many classes on one side as on the other, which is as far as codes can lie
    apart (Plotkin's bound); swaps of two classes on one bit, as long as they help, even them out.
    """
    generator = np.random.default_rng(0)
    side = np.where(np.arange(classes) < classes // 2, 1.0, -1.0)
    codes = np.stack([generator.permutation(side) for _ in range(bits)], axis=1)
    together = codes @ codes.T
    for _ in range(SWAPS_A_SIGN * classes * bits):
        bit = generator.integers(bits)
        first, second = generator.integers(classes, size=2)
        column = codes[:, bit].copy()
        if column[first] == column[second]:
            continue
        # Both change sides: what each shares with the others on this bit turns its sign. Sums stay,
        # and so the sum of squares tells which is more even.
        others = column.copy()
        others[[first, second]] = 0
        ends = [first, second]
        gain = column[ends] @ (together[ends] @ others)
        if gain >= 2 * (classes - 2):
            change = 2 * column[ends, None] * others
            together[ends] -= change
            together[:, ends] -= change.T
            codes[ends, bit] *= -1
    return torch.from_numpy(codes).float()


class ViewsAveraged(nn.Module):
    """The mean of the vectors of several views of an image, of unit length where they are.

    The views: the image; with `mirror`, its mirror image; with `shift`, both again, moved by so
    many pixels up and left, and down and right, edges reflected.
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
        """Each view of the batch (n, 3, side, side)."""
        views = [images]
        if self.shift:
            far, side = 2 * self.shift, images.shape[-1]
            padded = functional.pad(images, (self.shift,) * 4, mode="reflect")
            views += [padded[..., far:, far:], padded[..., :side, :side]]
        return [*views, *(view.flip(-1) for view in views)] if self.mirror else views


class Whitening(nn.Module):
    """Features (n, features) turned onto their `dim` principal axes, each of unit variance.

    Jégou and Chum, Negative evidences and co-occurrences in image retrieval (ECCV 2012). With a
    power below 1 axes are divided by their standard deviation to that power, so that weak ones,
    which are mostly noise, stay weaker. Before the fit the features pass as they are.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, features: int, dim: int, power: float = 1.0) -> None:
        """Raises ValueError for more axes than features."""
        super().__init__()
        if dim > features:
            raise ValueError(f"{features} features have no {dim} principal axes")
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("axes", torch.eye(features, dim))
        self.power = power

    def fit(self, features: Tensor) -> None:
        """Find the axes of the features (n, features) of a database, n above the number of axes.

        Where the features vary in fewer directions, the axes behind these stay next to nothing.
        """
        from sklearn.decomposition import PCA  # slow to import

        dim = self.axes.shape[1]
        with np.errstate(invalid="ignore"):  # the shares of no variance at all
            found = PCA(dim, svd_solver="covariance_eigh").fit(features.numpy())
        variance = found.explained_variance_
        # What is left below is rounding, and stays as small.
        variance = np.maximum(variance, 1e-6 * variance[0] or 1.0)
        self.mean.copy_(torch.from_numpy(found.mean_))
        self.axes.copy_(torch.from_numpy(found.components_.T / variance ** (self.power / 2)))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return (features.float() - self.mean) @ self.axes


class Rotation(nn.Module):
    """The first numbers of vectors (n, ≥ dim) turned so that each is about as large as the others.

    What stands behind them, lengths and cosines stay. The signs of the numbers, less the database's
    mean, are then codes that lose little: iterative quantisation (ITQ), Gong and Lazebnik,
    Iterative Quantization: A Procrustean Approach to Learning Binary Codes (CVPR 2011). Before the
    fit nothing is turned.
    """

    STEPS = 50  # as published
    axes: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("axes", torch.eye(dim))

    def fit(self, vectors: Tensor) -> None:
        """Find the rotation for which signs are nearest to the vectors (n, dim), from chance."""
        centred = (vectors - vectors.mean(0)).double()
        axes = torch.linalg.qr(torch.randn(len(self.axes), len(self.axes)).double())[0]
        for _ in range(self.STEPS):
            left, _, right = torch.linalg.svd(centred.T @ (centred @ axes).sign())
            axes = left @ right
        self.axes.copy_(axes)

    def forward(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            dim = len(self.axes)
            turned = vectors[:, :dim].float() @ self.axes
            return torch.cat((turned, vectors[:, dim:].float()), 1)
