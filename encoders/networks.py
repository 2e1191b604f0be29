"""What a network must offer so that `retr train` can train it and an encoder can run it."""

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
    """What the dataclasses that a recipe fills have in common: unknown keys are refused."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def to_json(self) -> dict[str, Json]:
        """All settings, defaults written out."""
        return cast(dict[str, Json], _jsonable(asdict(cast(Any, self))))


def _jsonable(value: object) -> object:
    if isinstance(value, dict):
        return {key: _jsonable(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inside) for inside in value]
    return value


class Outputs(NamedTuple):
    """What the losses of a training step see."""

    embeddings: Tensor  # (n, dim), for losses over classes, pairs and triplets
    drawn: Tensor | None = None  # (n, 3, height, width), for the loss of reconstruction


class Network(nn.Module, ABC):
    """Images (n, 3, side, side) from 0 to 1, to embeddings (n, dim).

    A subclass names the frozen dataclass of its settings, which a recipe's `[network]` fills.
    """

    settings_type: ClassVar[type[Settings]]
    settings: Any
    proxies: Tensor | None
    metric: Metric = Metric.COSINE
    draws: ClassVar[bool] = False  # whether its outputs have drawings
    most_images: ClassVar[int | None] = None  # to train on; None: any number
    fits_labels: ClassVar[bool] = False  # whether `fit` wants to know each image's class
    precise: frozenset[str] = frozenset()  # weights that are not saved as float16
    bfloat16_embeddings: ClassVar[bool] = True  # they keep a cosine of 0.999 to float32's
    at_once: ClassVar[int] = 250  # images to embed; their feature maps fit the processor's cache

    @abstractmethod
    def __init__(self, settings: Any, classes: int, side: int) -> None:
        """classes: how many the training data has; side: of its images, in pixels."""
        super().__init__()
        self.register_buffer("proxies", None)

    @classmethod
    def natural_side(cls, settings: Any) -> int:
        """The side in pixels of the images that it sees, unless a recipe says otherwise.

        Raises UnknownName for settings that name a model which is not there.
        """
        return 32

    @property
    @abstractmethod
    def training_dim(self) -> int:
        """How many numbers `Outputs.embeddings` has."""

    @property
    def dim(self) -> int:
        """How many numbers an embedding has."""
        return self.training_dim + (0 if self.proxies is None else len(self.proxies))

    def prepare(self, images: Tensor) -> None:
        """Set what is computed from a sample of the training images, before the first step."""

    def outputs(self, images: Tensor) -> Outputs:
        """What the losses see of a batch."""
        return Outputs(self(images))

    def fresh_parameters(self) -> Sequence[Tensor]:
        """Parameters that start from chance in a network that otherwise starts from weights."""
        return ()

    def make_proxies(self, classes: int) -> None:
        """Have a place for class proxies, whose shares will stand in the embedding."""
        self.register_buffer("proxies", torch.zeros(classes, self.training_dim))

    def keep_proxies(self, proxies: Tensor) -> None:
        """Keep the proxies (classes, training_dim) that the loss has learned."""
        assert self.proxies is not None
        self.proxies.copy_(functional.normalize(proxies, dim=1))

    def with_shares(self, embedder: nn.Module) -> nn.Module:
        """The embedder, with the classes' shares beside its numbers where there are proxies."""
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
        """How many principal axes of the features `fit` looks for; it wants more images."""
        return 0

    @property
    def needs_features(self) -> bool:
        """Whether `fit` must be given features."""
        return False

    def features(self) -> nn.Module:
        """What `fit` wants of each training image."""
        raise NotImplementedError

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Fit what is not trained, after the training.

        features: (n, numbers), those of all training images; labels: (n,), their classes.
        """

    def embedder(self) -> nn.Module:
        """What an encoder runs: in evaluation mode, a function of these weights alone."""
        return self
