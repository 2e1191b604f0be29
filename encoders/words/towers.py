"""The two towers of open_clip's models: built by its code, with weights from safetensors only."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import open_clip
import timm
import torch
from open_clip.factory import load_checkpoint
from open_clip.hf_configs import arch_dict
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from encoders.hub import LocalFolder
from encoders.words.checkpoints import CONFIG, Checkpoint
from encoders.words.hub_tokenizer import check_no_code, check_transformers, read_settings
from retrieval.contracts import Framing, Json, Resample
from retrieval.errors import BadData, BadInput

# Keys that do not decide what the network computes. Weights and tokenizer count for themselves.
WEIGHT_SOURCES = {"hf_model_name", "hf_model_pretrained", "timm_model_pretrained"}
TRANSFORMER_ORIGIN = {"_name_or_path", "transformers_version"}
TOKENIZER_KEYS = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}

# Functions that fill a weight with random numbers.
DRAWS = frozenset(
    {
        nn.init.kaiming_uniform_,
        nn.init.normal_,
        nn.init.uniform_,
        Tensor.normal_,
        Tensor.uniform_,
        Tensor.erfinv_,
    }
)


class ImageTower(nn.Module):
    """From images (n, 3, side, side) with values from 0 to 1 to unit vectors (n, dim)."""

    mean: Tensor
    std: Tensor

    def __init__(self, visual: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        features = self.visual((images - self.mean) / self.std)
        if isinstance(features, tuple):  # CoCa's has tokens too
            features = features[0]
        return functional.normalize(features, dim=-1)


class TextTower(nn.Module):
    """From tokens (n, context) to unit vectors (n, dim)."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model of open_clip without its image tower."""
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary_of(model)

    def forward(self, tokens: Tensor) -> Tensor:
        # A tokenizer may have a few more tokens, which no text contains but on purpose.
        tokens = tokens.clamp(max=self.vocabulary - 1)
        vectors: Tensor = cast(Any, self.model).encode_text(tokens, normalize=True)
        return vectors


class _WithoutRandomWeights(TorchFunctionMode):
    """Leave new weights as they are in memory: all are replaced, and drawing them takes seconds."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_model(checkpoint: Checkpoint) -> tuple[Any, dict[str, Json]]:
    """Return open_clip's model with its weights in float32, and its configuration as a key.

    The key has all that the towers compute by, besides the weights: two checkpoints with equal keys
    and weights are the same network. Raises BadData if the files are damaged or do not belong
    together, BadInput if transformers is needed and missing.
    """
    config = deepcopy(checkpoint.model)
    key = _key(config)
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        path = _transformer_config(checkpoint)
        key["transformer"] = {
            name: value
            for name, value in read_settings(path).items()
            if name not in TRANSFORMER_ORIGIN
        }
        text["hf_model_name"] = str(path.parent)
    _check_timm(config["vision_cfg"].get("timm_model_name"))
    with _root_logger_untouched(), torch.random.fork_rng(devices=[]):
        with _WithoutRandomWeights():
            model = _built(config, checkpoint)
        try:
            load_checkpoint(model, str(checkpoint.weights))
        except Exception as error:  # from several libraries
            remedy = (
                "save the model again"
                if isinstance(checkpoint.home, LocalFolder)
                else "delete the file, and it will be fetched again"
            )
            raise BadData(
                f"cannot load the weights {checkpoint.weights.resolve()} ({_line(error)}); {remedy}"
            ) from None
    if hasattr(model, "text_decoder"):
        del model.text_decoder  # CoCa's, which writes captions
    return model.eval(), key


def vocabulary_of(model: Any) -> int:
    """Return the number of tokens that the text tower has embeddings of."""
    return int(model.vocab_size if hasattr(model, "vocab_size") else model.text.vocab_size)


def framing_of(preprocess: Mapping[str, Any]) -> tuple[Framing, list[float], list[float]]:
    """Return the framing of open_clip's preprocessing, and mean and std of the three channels.

    Raises BadInput for an input that is not a square or is padded, BadData for a wrong value.
    """
    try:
        settings = open_clip.transform.PreprocessCfg(**preprocess)
        normalize = open_clip.transform.image_transform_v2(settings, is_train=False).transforms[-1]
        mean, std = ([float(value) for value in part] for part in (normalize.mean, normalize.std))
        height, width = open_clip.transform.to_2tuple(settings.size)
        if len(mean) != 3 or len(std) != 3 or 0 in std:
            raise ValueError(f"mean {mean}, std {std}")
    except (TypeError, ValueError, AssertionError) as error:
        raise BadData(
            f"{CONFIG} has a wrong preprocess_cfg ({_line(error)}); save the model again"
        ) from None
    if height != width:
        raise BadInput(f"the model takes {width}x{height} pixels; choose one with square input")
    if settings.resize_mode == "longest":
        raise BadInput("the model pads images to a square; choose one that crops or squashes them")
    framing = Framing(
        side=height,
        resample=Resample.BILINEAR if settings.interpolation == "bilinear" else Resample.BICUBIC,
        squash=settings.resize_mode == "squash",
    )
    return framing, mean, std


def _built(config: dict[str, Any], checkpoint: Checkpoint) -> Any:
    """Return the model without weights, built from a folder that holds only its configuration."""
    try:
        with TemporaryDirectory() as folder:
            whole = {"model_cfg": config, "preprocess_cfg": checkpoint.preprocess}
            (Path(folder) / CONFIG).write_text(json.dumps(whole), encoding="utf-8")
            return open_clip.create_model(
                f"local-dir:{folder}",
                load_weights=False,
                pretrained_image=False,
                pretrained_text=False,
            )
    except Exception as error:  # from several libraries
        raise BadData(
            f"open_clip cannot build the model of {checkpoint.name} ({_line(error)}); "
            "save it again with this version of open_clip"
        ) from None


def _key(config: Mapping[str, Any]) -> dict[str, Json]:
    """Return the configuration without names of repositories, folders and tokenizers."""
    key = {name: value for name, value in config.items() if name != "multimodal_cfg"}
    for part in ("text_cfg", "vision_cfg"):
        key[part] = {
            name: value
            for name, value in config[part].items()
            if name not in WEIGHT_SOURCES | TOKENIZER_KEYS
        }
    return key


def _transformer_config(checkpoint: Checkpoint) -> Path:
    """Return the `config.json` of a text tower of transformers; its weights are not fetched."""
    check_transformers()
    name = str(checkpoint.text["hf_model_name"])
    home = checkpoint.home
    found = home.find("config.json") if isinstance(home, LocalFolder) else None
    found = found or checkpoint.repository(name).find("config.json")
    if found is None:
        raise BadInput(f"{name} has no config.json; name another repository")
    check_no_code(found)
    kind = read_settings(found).get("model_type")
    if kind not in arch_dict:  # others may fetch weights when they are built
        raise BadInput(
            f"open_clip has no text tower of the kind '{kind}'; "
            f"choose one of {', '.join(arch_dict)}"
        )
    return found


def _check_timm(name: object) -> None:
    """Raise BadData unless timm has the model; timm would look up other names on the hub."""
    if name is not None and str(name).partition(".")[0] not in timm.list_models():
        raise BadData(f"timm has no model '{name}', which {CONFIG} names; install a newer timm")


@contextmanager
def _root_logger_untouched() -> Iterator[None]:
    """Keep open_clip from adding a handler to the root logger, and drop its messages."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(_never)
    try:
        yield
    finally:
        root.removeFilter(_never)
        root.removeHandler(handler)


def _never(record: logging.LogRecord) -> bool:
    return False


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] if str(error) else type(error).__name__
