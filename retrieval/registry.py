"""Find encoders and indexers by name, and import them only then.

A plug-in is an entry point in the group `retr.encoders` or `retr.indexers`; retr's own are
registered in the same way, in pyproject.toml.
"""

import inspect
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast, get_type_hints

from retrieval.choices import choice
from retrieval.contracts import Encoder, Indexer, PairScorer
from retrieval.embedding.runtimes.contract import Quantizer, Runtime
from retrieval.errors import BadInput, UnknownName
from retrieval.storage.cards import CARD, Card, is_trained
from retrieval.trainer_contract import Trainer
from retrieval.values import named_options, shown, words

ENCODERS = "retr.encoders"
INDEXERS = "retr.indexers"
TRAINERS = "retr.trainers"
RUNTIMES = "retr.runtimes"
QUANTIZERS = "retr.quantizers"


def encoder_names() -> list[str]:
    """Return the registered encoders, sorted."""
    return sorted({point.name for point in _registered(ENCODERS)})


def indexer_names() -> list[str]:
    """Return the registered backends, sorted."""
    return sorted({point.name for point in _registered(INDEXERS)})


def encoder_plugin(name: str) -> type[Any]:
    """Return the class of the encoder that is registered as `name`. Raises UnknownName."""
    return cast(type[Any], _named(ENCODERS, "encoder", name).load())


def indexer_plugin(name: str) -> type[Any]:
    """Return the class of the backend that is registered as `name`. Raises UnknownName."""
    return cast(type[Any], _named(INDEXERS, "backend", name).load())


def encoder_module(spec: str) -> str:
    """Return the name of the module with the encoder's plug-in, without importing it.

    Raises UnknownName, and BadData for a damaged folder.
    """
    name = spec.partition(":")[0]
    if name not in encoder_names() and is_trained(folder := Path(spec).expanduser()):
        name = Card.read(folder).encoder
    return _named(ENCODERS, "encoder", name).module


def trained_folder(spec: str) -> Path | None:
    """Return the folder of the trained encoder that `spec` names; None if it has no folder."""
    name, _, argument = spec.partition(":")
    if name not in encoder_names():
        folder = Path(spec).expanduser()
    elif argument:
        folder = Path(argument).expanduser()
    elif hasattr(plugin := encoder_plugin(name), "shipped"):
        folder = plugin.shipped()
    else:
        return None
    return folder if is_trained(folder) else None


def open_trainer() -> Trainer:
    """Return the plug-in that runs training recipes."""
    return cast(Trainer, _named(TRAINERS, "trainer", "recipes").load()())


def runtime_names() -> list[str]:
    """Return the registered runtimes, sorted; their libraries may not be installed."""
    return sorted({point.name for point in _registered(RUNTIMES)})


def open_runtime(name: str) -> Runtime:
    """Return the runtime. Raises UnknownName, and BadInput if its library is not installed."""
    point = _named(RUNTIMES, "runtime", name)
    try:
        return cast(Runtime, point.load()())
    except ImportError as error:
        raise BadInput(
            f"runtime '{name}' needs a library that cannot be imported ({error}); "
            f"pip install {str(error.name or name).partition('.')[0]}"
        ) from None


def open_quantizer() -> Quantizer:
    """Return the plug-in that rewrites networks in integers."""
    return cast(Quantizer, _named(QUANTIZERS, "quantizer", "qdq").load()())


def open_encoder(spec: str | PathLike[str], device: str = "auto") -> Encoder:
    """Return the encoder that `spec` names.

    spec: `NAME`; `NAME:ARGUMENT`, as in `pretrained:resnet18`; or the folder of a trained one
        (a folder of the same name as an encoder is written `./siamese`).
    device: auto, cpu or cuda.

    Raises UnknownName, BadInput for an argument that the encoder does not take or a device that
    is not there, BadData for a folder that is damaged.
    """
    if not isinstance(spec, str | PathLike):
        raise BadInput(f"the encoder is {shown(spec)}; give its name, or its folder")
    spec = fspath(spec)
    name, colon, argument = spec.partition(":")
    if name not in encoder_names():
        folder = Path(spec).expanduser()
        if is_trained(folder):
            return open_encoder(f"{Card.read(folder).encoder}:{folder.resolve()}", device)
        if spec and (folder.is_dir() or "/" in name):
            raise BadInput(
                f"{spec} is not a trained encoder (no {CARD}); give a folder that 'retr train' "
                f"made, or one of {', '.join(encoder_names())}"
            )
    plugin = _named(ENCODERS, "encoder", name).load()
    arguments = (argument,) if colon else ()
    try:
        inspect.signature(plugin).bind(*arguments, device=device)
    except TypeError:
        usage = f"write '{name}'" if colon else f"write '{name}:ARGUMENT'"
        problem = "takes no argument" if colon else "needs an argument"
        raise BadInput(f"encoder '{name}' {problem}, got '{spec}'; {usage}") from None
    return cast(Encoder, plugin(*arguments, device=device))


def open_scorer(spec: str, device: str = "auto") -> PairScorer:
    """Return the scorer of pairs that `spec` names, as for `open_encoder`.

    Raises as `open_encoder` does, and BadInput for an encoder that scores no pairs.
    """
    scorer = open_encoder(spec, device)
    if not isinstance(scorer, PairScorer):
        raise BadInput(
            f"encoder '{spec}' cannot score pairs; give 'layers', or a folder that "
            "'retr train layers' made"
        )
    return scorer


def make_indexer(name: str, options: Mapping[str, object]) -> Indexer:
    """Return the backend `name` with these options; options given as text take their field's type.

    Raises UnknownName for a backend or option that is not there, BadInput for a value that the
    option cannot take.
    """
    plugin = indexer_plugin(name)
    return cast(Indexer, plugin(**typed_options(name, plugin, options)))


def typed_options(
    backend: str, plugin: type[Any], options: Mapping[str, object]
) -> dict[str, object]:
    """Return the options with values given as text turned into the type of the plug-in's field."""
    hints = get_type_hints(plugin)
    known = {field.name for field in fields(plugin)}
    typed = {}
    for option, value in named_options(options).items():
        if option not in known:
            raise UnknownName(f"option of backend {backend}", option, known)
        typed[option] = _typed(option, value, hints[option])
    return typed


def _typed(option: str, value: object, hint: Any) -> object:
    """`value` as one of the types that `hint` admits: a type, or a union of types and None."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = [k for k in (typing.get_args(hint) if union else (hint,)) if k is not type(None)]
    optional = union and type(None) in typing.get_args(hint)
    if optional and value in (None, "auto", "none"):
        return None
    for kind in kinds:
        if issubclass(kind, StrEnum):
            return choice(kind, value, option)
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
        if kind is bool:
            if str(value).lower() in ("true", "false"):
                return str(value).lower() == "true"
            continue
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            continue  # 1.5 lists are not 1
        try:
            return kind(value)
        except (TypeError, ValueError):
            continue
    raise BadInput(f"option {option} cannot be '{value}'; give it {words(kinds)}")


def _named(group: str, kind: str, name: str) -> EntryPoint:
    for point in _registered(group):
        if point.name == name:
            return point
    raise UnknownName(kind, name, (point.name for point in _registered(group)))


def _registered(group: str) -> EntryPoints:
    return cast(EntryPoints, _all_entry_points(tuple(sys.path)).select(group=group))


@cache
def _all_entry_points(path: tuple[str, ...]) -> Any:
    """Return the entry points of all packages on the path, read once: it opens many files."""
    return entry_points()
