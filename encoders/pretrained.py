"""Pretrained CNNs: features of any timm model, by its name, as they are or trained further.

Weights come from the model's hub, or from the offline package, see `encoders.timm.published`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from encoders.blocks.heads import Rotation, ViewsAveraged, Whitening
from encoders.inference import TorchEncoder
from encoders.networks import Amount, Count, Network, Positive, Settings, Share
from encoders.timm.features import Features
from encoders.timm.published import OFFLINE_MODEL, check_known, load_published, published_files
from encoders.trained import TrainedEncoder
from retrieval.contracts import Framing, Json, Metric, Resample
from retrieval.errors import BadInput
from retrieval.storage.cards import is_trained

VERSION = 1  # raise it when the arithmetic here changes; part of the fingerprint


@dataclass(frozen=True)
class PretrainedSettings(Settings):
    """Settings of the network; a recipe's `[network]` fills them."""

    model: str = OFFLINE_MODEL  # timm's name
    layers: tuple[str, ...] = ()  # see `Features`
    side: Amount = 0  # pixels; images are resized to side × side before the model; 0: not resized
    embed_sides: tuple[Count, ...] = ()  # sides for embedding, averaged; none: `side`
    resample: Literal["bicubic", "bilinear"] = "bicubic"  # bilinear suppresses JPEG noise
    head: Literal["linear", "hidden", "whitening"] = "linear"
    dim: Count = 128  # dimension of the head's output
    hidden: Count = 512  # units of the hidden layer
    frozen: bool = False  # train the head only
    dropout: Share = 0.0  # share of the features, before the head
    drop_path: Share = 0.0  # share of the model's residual branches
    mirror: bool = False  # also embed the mirror image, at twice the time
    shift: Amount = 0  # pixels; also embed views moved two ways, at three times the time
    class_sharpness: Positive | None = None  # see `ClassShares`; None: no shares
    class_weight: Positive = 2.0
    metric: Literal["cosine", "inner_product"] = "cosine"  # intended for embeddings
    itq: bool = False  # rotate embeddings for binary codes, see `Rotation`


class PretrainedNetwork(Network):
    """A timm model with a head, from images (n, 3, side, side) to embeddings (n, dim).

    `forward` returns the head's output, of unit length. The settings decide how an embedding is
    computed from it.
    """

    settings_type = PretrainedSettings
    settings: PretrainedSettings
    precise = frozenset({"head.mean", "head.axes", "rotation.axes"})
    bfloat16_embeddings = False  # cosine to float32's: 0.984 for EfficientNet-Lite0
    at_once = 32

    def __init__(self, settings: PretrainedSettings, classes: int, side: int) -> None:
        """Build the network without weights; `prepare` loads the published ones."""
        super().__init__(settings, classes, side)
        self.settings = settings
        self.metric = Metric(settings.metric)
        check_known(settings.model)
        bare = _bare(settings)
        self.body = Features(settings.model, settings.layers, bare)
        if settings.frozen or settings.head == "whitening":
            self.body.requires_grad_(False)
        self.head = self._made_head(self.body.dim)
        if settings.class_sharpness is not None:
            self.make_proxies(classes)
        if settings.itq:
            self.rotation = Rotation(settings.dim)

    @classmethod
    def natural_side(cls, settings: PretrainedSettings) -> int:
        """Return the largest side at which the model sees images, in pixels."""
        check_known(settings.model)
        if largest := max((settings.side, *settings.embed_sides)):
            return largest
        try:
            own = timm.get_pretrained_cfg(settings.model, allow_unregistered=False)
        except RuntimeError as error:
            raise BadInput(
                f"timm has no {settings.model} ({error}); change network.model"
            ) from None
        return int(own.input_size[-1])

    def _made_head(self, features: int) -> nn.Module:
        settings = self.settings
        if settings.head == "whitening":
            return Whitening(features, settings.dim)
        dropout = nn.Dropout(settings.dropout)
        if settings.head == "linear":
            return nn.Sequential(dropout, nn.Linear(features, settings.dim, bias=False))
        return nn.Sequential(
            dropout,
            nn.Linear(features, settings.hidden),
            nn.GELU(),
            nn.Linear(settings.hidden, settings.dim, bias=False),
        )

    @property
    def training_dim(self) -> int:
        return int(self.settings.dim)

    @property
    def fitted_axes(self) -> int:
        return self.settings.dim if self.settings.head == "whitening" else 0

    @property
    def needs_features(self) -> bool:
        return self.settings.head == "whitening" or self.settings.itq

    def prepare(self, images: Tensor) -> None:
        """Load the model's published weights."""
        model, _ = load_published(self.settings.model)
        self.body.network.load_state_dict(model.state_dict())

    def fresh_parameters(self) -> Sequence[Tensor]:
        return [*self.head.parameters()]

    def train(self, mode: bool = True) -> "PretrainedNetwork":
        """Set the mode of the network; a frozen model stays in evaluation mode."""
        super().train(mode)
        if self.settings.frozen:
            self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.vectors(images, self.settings.side)

    def vectors(self, images: Tensor, side: int) -> Tensor:
        """Return unit vectors (n, dim) of images, resized to side × side pixels."""
        return functional.normalize(self.head(self.features_of(images, side)).float(), dim=1)

    def features_of(self, images: Tensor, side: int) -> Tensor:
        """Return the model's features (n, features) of images, resized to side × side pixels."""
        if side and images.shape[-1] != side:
            images = functional.interpolate(
                images, (side, side), mode=self.settings.resample, antialias=True
            )
        features: Tensor = self.body(images)
        return features

    def features(self) -> nn.Module:
        """Return the network for the features that the head or the rotation is fitted to.

        The rotation is fitted to one view of each image. To fit it to all views of an embedding
        takes several times as long, and its codes do not rank better.
        """
        if self.settings.head == "whitening":
            return _MeanOverSides(self, self.features_of)
        return self.folded()

    def fit(self, features: Tensor, labels: Tensor) -> None:
        if isinstance(self.head, Whitening):
            self.head.fit(features)
            features = features.to(self.head.mean.device)
            features = functional.normalize(self.head(features), dim=1).cpu()
        if self.settings.itq:
            self.rotation.fit(features)

    def embedder(self) -> nn.Module:
        unrotated = self.with_shares(self._views())
        return nn.Sequential(unrotated, self.rotation) if self.settings.itq else unrotated

    def folded(self) -> "PretrainedNetwork":
        """Return an equivalent network with norms folded into convolutions, for inference."""
        if self.settings.layers:
            return self
        network = copy.deepcopy(self).eval()
        network.body.fold()
        return network

    def _views(self) -> nn.Module:
        network, settings = self.folded(), self.settings
        seen = _MeanOverSides(network, network.vectors)
        return ViewsAveraged(seen, mirror=settings.mirror, shift=settings.shift)


def _bare(settings: PretrainedSettings) -> Any:
    """Build the model without classifier and weights. Raises BadInput if timm cannot."""
    try:
        return timm.create_model(
            settings.model,
            pretrained=False,
            num_classes=0,
            drop_path_rate=settings.drop_path or None,  # not all models have the option
        )
    except (TypeError, RuntimeError) as error:
        raise BadInput(
            f"timm cannot build {settings.model} with drop_path {settings.drop_path} ({error}); "
            "change network.model or network.drop_path"
        ) from None


class _MeanOverSides(nn.Module):
    """Mean output of a method of the network over the sides for embedding.

    At a side that is larger than in training, objects look as large as in the random
    crops of training: Touvron et al., Fixing the train-test resolution discrepancy,
    arXiv:1906.06423.
    """

    def __init__(self, network: PretrainedNetwork, method: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.method = method
        self.sides = network.settings.embed_sides or (network.settings.side,)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.method(images, side) for side in self.sides]).mean(0)


class Pretrained(TrainedEncoder):
    """`pretrained:MODEL@LAYER+LAYER`: features of a timm model, for the cosine distance.

    Without layers, embeddings are the globally pooled features before the classifier. Images are
    framed and standardized as the model's configuration says. `pretrained:FOLDER` is a model that
    `retr train` fine-tuned.
    """

    plugin: ClassVar[str] = "pretrained"
    network_type = PretrainedNetwork

    def __init__(self, model: str = OFFLINE_MODEL, device: str = "auto") -> None:
        """Load a timm model by name, `resnet18` or with its tag `resnet18.a1_in1k`.

        device: auto, cpu or cuda. Raises UnknownName for a model that timm does not have or a
        layer that the model does not have, BadInput for a model without published weights or with
        an input that is not a square, RetrError if the hub cannot be reached.
        """
        folder = Path(model).expanduser()
        if is_trained(folder):
            super().__init__(str(folder), device)
        else:
            self._open_published(model, device)

    def _open_published(self, spec: str, device: str) -> None:
        model, at, layers = spec.partition("@")
        network, weights_from = load_published(model)
        weights = network.state_dict()
        settings = resolve_model_data_config(network)
        _, height, width = settings["input_size"]
        if height != width:
            raise BadInput(f"{model} takes {width}x{height} pixels; choose one with square input")
        known = set(Resample)
        resample = settings["interpolation"]
        body = Features(model, layers.split("+") if at else (), network)
        config: Mapping[str, Json] = {
            "encoder": self.plugin,
            "version": VERSION,
            "model": model,
            "weights": weights_from,
            "mean": list(settings["mean"]),
            "std": list(settings["std"]),
        }
        body.fold()
        TorchEncoder.__init__(
            self,
            body,
            name=f"pretrained:{spec}",
            dim=body.dim,
            metric=Metric.COSINE,
            framing=Framing(
                side=height,
                crop=settings["crop_pct"],
                resample=Resample(resample) if resample in known else Resample.BICUBIC,
            ),
            config={**config, "layers": [*body.layers]} if at else config,
            weights=weights,
            device=device,
            batch=self.network_type.at_once,
            bfloat16=self.network_type.bfloat16_embeddings,
            files=published_files(model),
        )
