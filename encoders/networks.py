"""The contract of networks that `retr train` trains and an encoder runs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, NamedTuple, cast

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional

from encoders.blocks.heads import ClassShares
from retrieval.choices import choice
from retrieval.contracts import Json, Metric

Count = Annotated[int, Ge(1)]
Amount = Annotated[int, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]


class Settings:
    """Base of the dataclasses that a recipe fills; unknown keys are refused."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def to_json(self) -> dict[str, Json]:
        """Return all settings, defaults included."""
        return cast(dict[str, Json], _jsonable(asdict(cast(Any, self))))


def _jsonable(value: object) -> object:
    if isinstance(value, dict):
        return {key: _jsonable(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inside) for inside in value]
    return value


class Outputs(NamedTuple):
    """Outputs of a network in a training step, for the losses."""

    embeddings: Tensor  # (n, dim), for losses of classes, pairs and triplets
    drawn: Tensor | None = None  # (n, 3, height, width), for the reconstruction loss


class Network(nn.Module, ABC):
    """A network from images (n, 3, side, side), with values from 0 to 1, to embeddings (n, dim).

    A subclass names the frozen dataclass of its settings, which a recipe's `[network]` fills.
    """

    settings_type: ClassVar[type[Settings]]
    settings: Any
    proxies: Tensor | None
    metric: Metric = Metric.COSINE
    draws: ClassVar[bool] = False  # the outputs have drawings
    max_images: ClassVar[int | None] = None  # maximum of training images; None: no maximum
    fits_labels: ClassVar[bool] = False  # `fit` needs the class of each image
    precise: frozenset[str] = frozenset()  # names of weights that are saved as float32
    bfloat16_embeddings: ClassVar[bool] = True  # cosine to float32's embeddings above 0.999
    at_once: ClassVar[int] = 250  # images per forward pass; maps fit the CPU cache

    @abstractmethod
    def __init__(self, settings: Any, classes: int, side: int) -> None:
        """Build the network. classes: of the training data. side: of its images, in pixels."""
        super().__init__()
        self.register_buffer("proxies", None)

    @classmethod
    def natural_side(cls, settings: Any) -> int:
        """Return the default side of training images, in pixels.

        Raises UnknownName for settings that name an unknown model.
        """
        return 32

    @property
    @abstractmethod
    def training_dim(self) -> int:
        """Dimension of `Outputs.embeddings`."""

    @property
    def dim(self) -> int:
        """Dimension of an embedding."""
        return self.training_dim + (0 if self.proxies is None else len(self.proxies))

    def prepare(self, images: Tensor) -> None:
        """Compute initial weights from a sample of the training images, before the first step."""

    def outputs(self, images: Tensor) -> Outputs:
        """Return the outputs for a batch, for the losses."""
        return Outputs(self(images))

    def fresh_parameters(self) -> Sequence[Tensor]:
        """Return the parameters that start at random while the others start from weights."""
        return ()

    def part_like(self, trained: "Network") -> "Network | None":
        """Return the part that can start from this trained network's weights; None without one."""
        return self if type(self) is type(trained) else None

    def caption_logits(self, embeddings: Tensor, texts: Sequence[str]) -> Tensor | None:
        """Return the logits (n, texts) that embeddings (n, dim) and texts belong together.

        None for a network without a text tower.
        """
        return None

    def make_proxies(self, classes: int) -> None:
        """Add class proxies, which extend an embedding by its shares in the classes."""
        self.register_buffer("proxies", torch.zeros(classes, self.training_dim))

    def keep_proxies(self, proxies: Tensor) -> None:
        """Set the proxies (classes, training_dim) to those that the loss has learned."""
        assert self.proxies is not None
        self.proxies.copy_(functional.normalize(proxies, dim=1))

    def with_shares(self, embedder: nn.Module) -> nn.Module:
        """Return the embedder, extended by shares in the classes if there are proxies."""
        if self.proxies is None:
            return embedder
        settings = self.settings
        shares = ClassShares(
            self.proxies,
            settings.class_sharpness,
            settings.class_weight,
            unit_length=choice(Metric, self.metric) is not Metric.INNER_PRODUCT,
        )
        return nn.Sequential(embedder, shares)

    @property
    def fitted_axes(self) -> int:
        """Number of principal axes that `fit` computes; it needs more images than that."""
        return 0

    @property
    def needs_features(self) -> bool:
        """True if `fit` must be called after the training."""
        return False

    def features(self) -> nn.Module:
        """Return the network whose outputs for the training images `fit` is given."""
        raise NotImplementedError

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Fit the parts that are not trained, after the training.

        features: (n, numbers), of all training images. labels: (n,), their classes.
        """

    def embedder(self) -> nn.Module:
        """Return the network that an encoder runs in evaluation mode."""
        return self
