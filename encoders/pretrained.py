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
from encoders.timm.published import OFFLINE_MODEL, check_known, load_published
from encoders.trained import TrainedEncoder
from retrieval.contracts import Framing, Json, Metric, Resample
from retrieval.errors import BadInput
from retrieval.storage.cards import is_trained

VERSION = 1  # of this file's arithmetic; part of the fingerprint


@dataclass(frozen=True)
class PretrainedSettings(Settings):
    """The settings of a network, as a recipe's `[network]` has them."""

    model: str = OFFLINE_MODEL  # timm's name
    layers: tuple[str, ...] = ()  # see `Features`
    side: Amount = 0  # images are resized to side × side before the model; 0: left as they are
    embed_sides: tuple[Count, ...] = ()  # the same for embedding, averaged; none: `side` alone
    resample: Literal["bicubic", "bilinear"] = "bicubic"  # how; bilinearly JPEG noise stays softer
    head: Literal["linear", "hidden", "whitening"] = "linear"
    dim: Count = 128  # numbers from the head
    hidden: Count = 512  # units of the hidden layer
    frozen: bool = False  # train the head alone
    dropout: Share = 0.0  # of the features before the head
    drop_path: Share = 0.0  # of the model's residual branches, where it has any
    mirror: bool = False  # embed the mean of the image and its mirror image, at twice the time
    shift: Amount = 0  # and of both moved by so many pixels two ways, at three times that
    class_sharpness: Positive | None = None  # see `ClassShares`; None: the head's numbers alone
    class_weight: Positive = 2.0
    metric: Literal["cosine", "inner_product"] = "cosine"  # that embeddings are made for
    itq: bool = False  # turn the head's numbers so that their signs say most, see `Rotation`


class PretrainedNetwork(Network):
    """Images (n, 3, side, side) from 0 to 1, through a timm model, to embeddings (n, dim).

    `forward` gives the head's numbers, of unit length; what an embedding has, `PretrainedSettings`
    say.
    """

    settings_type = PretrainedSettings
    settings: PretrainedSettings
    precise = frozenset({"head.mean", "head.axes", "rotation.axes"})
    bfloat16_embeddings = False  # 0.984 for EfficientNet-Lite0
    at_once = 32

    def __init__(self, settings: PretrainedSettings, classes: int, side: int) -> None:
        """The published weights are fetched by `prepare`, not here."""
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
        """The largest of the sides at which the model is to see images."""
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
        """Take the model's published weights."""
        model, _ = load_published(self.settings.model)
        self.body.network.load_state_dict(model.state_dict())

    def fresh_parameters(self) -> Sequence[Tensor]:
        return [*self.head.parameters()]

    def train(self, mode: bool = True) -> "PretrainedNetwork":
        """As in torch; a frozen model stays in evaluation mode."""
        super().train(mode)
        if self.settings.frozen:
            self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.vectors(images, self.settings.side)

    def vectors(self, images: Tensor, side: int) -> Tensor:
        """Unit vectors (n, dim) of images of any size, seen at side × side pixels."""
        return functional.normalize(self.head(self.features_of(images, side)).float(), dim=1)

    def features_of(self, images: Tensor, side: int) -> Tensor:
        """The model's features (n, features) of images of any size, seen at side × side pixels."""
        if side and images.shape[-1] != side:
            images = functional.interpolate(
                images, (side, side), mode=self.settings.resample, antialias=True
            )
        features: Tensor = self.body(images)
        return features

    def features(self) -> nn.Module:
        """What the head is fitted to; with a head that is trained, what is turned.

        The turn is fitted to one view of each image: fitted to all views of an embedding, at
        their times the cost, codes rank no better.
        """
        if self.settings.head == "whitening":
            return _AsEmbedded(self, self.features_of)
        return self.folded()

    def fit(self, features: Tensor, labels: Tensor) -> None:
        if isinstance(self.head, Whitening):
            self.head.fit(features)
            features = features.to(self.head.mean.device)
            features = functional.normalize(self.head(features), dim=1).cpu()
        if self.settings.itq:
            self.rotation.fit(features)

    def embedder(self) -> nn.Module:
        unturned = self.with_shares(self._views())
        return nn.Sequential(unturned, self.rotation) if self.settings.itq else unturned

    def folded(self) -> "PretrainedNetwork":
        """The same function with norms folded into convolutions, for inference."""
        if self.settings.layers:
            return self
        network = copy.deepcopy(self).eval()
        network.body.fold()
        return network

    def _views(self) -> nn.Module:
        network, settings = self.folded(), self.settings
        seen = _AsEmbedded(network, network.vectors)
        return ViewsAveraged(seen, mirror=settings.mirror, shift=settings.shift)


def _bare(settings: PretrainedSettings) -> Any:
    """The model without its classifier and its weights. Raises BadInput where timm makes none."""
    try:
        return timm.create_model(
            settings.model,
            pretrained=False,
            num_classes=0,
            drop_path_rate=settings.drop_path or None,  # which not all models know
        )
    except (TypeError, RuntimeError) as error:
        raise BadInput(
            f"timm makes no {settings.model} with drop_path {settings.drop_path} ({error}); change "
            "network.model or network.drop_path"
        ) from None


class _AsEmbedded(nn.Module):
    """The mean of what a method of the network makes of images at each side for embedding.

    At a side that is larger than in training, objects look as large as they did in its random
    crops: Touvron et al., Fixing the train-test resolution discrepancy, arXiv:1906.06423.
    """

    def __init__(self, network: PretrainedNetwork, method: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.method = method
        self.sides = network.settings.embed_sides or (network.settings.side,)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.method(images, side) for side in self.sides]).mean(0)


class Pretrained(TrainedEncoder):
    """`pretrained:MODEL@LAYER+LAYER`: features of a timm model, made for cosine.

    Without layers, the globally pooled features that its classifier would see. Images are framed
    and normalised as the model's own configuration says. `pretrained:FOLDER` is one that
    `retr train` made of such a model.
    """

    plugin: ClassVar[str] = "pretrained"
    network_type = PretrainedNetwork

    def __init__(self, model: str = OFFLINE_MODEL, device: str = "auto") -> None:
        """Load a timm model by name, `resnet18` or with its tag `resnet18.a1_in1k`.

        device: auto, cpu or cuda. Raises UnknownName for a model that timm does not have or a
        layer that the model does not have, BadInput for one without published weights or whose
        input is not a square, RetrError where the hub cannot be reached.
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
            raise BadInput(f"{model} wants {width}x{height} pixels; choose one with square input")
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
        )
