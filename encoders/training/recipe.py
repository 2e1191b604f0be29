"""Recipes: every setting of a training run, as a TOML file.

With the data, the machine and the versions, a recipe decides the weights. The project's own lie
in `encoders/recipes/`; docs/recipes.md explains each key.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from annotated_types import Ge, Gt, Le
from pydantic import TypeAdapter, ValidationError

from encoders.networks import Amount, Count, NotNegative, Positive, Settings, Share
from retrieval.errors import BadInput, UnknownName

SUFFIX = ".toml"


@dataclass(frozen=True)
class Data(Settings):
    """Which images are trained on."""

    source: str = "cifar10"  # what `retr encode` takes; its training split where it has one
    side: Amount = 0  # images are framed to side × side, and kept in memory so; 0: see `Network`
    classes: tuple[str, ...] = ()  # these alone; all where empty
    per_class: Amount = 0  # images of each class, drawn by seed; 0: all
    validation: Amount = 0  # images held out of the training and scored after each epoch
    clusters: Amount = 0  # images are sorted into so many by an encoder, for losses that ask
    clustered_by: str = ""  # which encoder that is


@dataclass(frozen=True)
class Sampler(Settings):
    """Which images meet in a batch."""

    name: Literal["shuffled", "balanced", "pairs"] = "shuffled"
    batch: Count = 500  # images; with `pairs`, half as many pairs
    per_class: Count = 4  # images of a class in a batch, for `balanced`


@dataclass(frozen=True)
class Augmentation(Settings):
    """How an image is changed each time that it is seen."""

    flip: Literal["none", "random", "alternating"] = "none"
    translate: Amount = 0  # pixels, each way, edges reflected
    cutout: Amount = 0  # the side in pixels of a square that is greyed
    smallest_crop: Annotated[float, Gt(0), Le(1)] = 1.0  # share of the area, scaled up
    crop_side: Amount = 0  # to so many pixels, for speed; 0: those of the image
    rotate: Annotated[float, Ge(0), Le(180)] = 0.0  # the most degrees, either way
    recolour: Share = 0.0  # the most by which contrast changes; half of it, a channel
    greyscale: Share = 0.0  # the share of images that lose their colours
    cutmix: Share = 0.0  # the share of batches whose images have a part of another's
    views: Literal[1, 2] = 1  # how often each image stands in the batch, changed anew


@dataclass(frozen=True)
class Optimizer(Settings):
    """How weights are moved."""

    name: Literal["muon", "adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3  # of all weights; of matrices and filters with `muon`
    momentum: Share = 0.6  # of muon and sgd
    other_lr: Positive | None = None  # of what muon leaves, and the losses' own; else `lr`
    weight_decay: NotNegative = 0.0
    schedule: Literal["linear", "cosine"] = "linear"  # down to zero
    warmup: Share = 0.0  # the share of the run in which learning rates rise from zero


@dataclass(frozen=True)
class Miner(Settings):
    """Which pairs or triplets of a batch a loss looks at."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss(Settings):
    """One term of the loss, by its name in `encoders.training.optimization.losses`."""

    name: str
    weight: NotNegative = 1.0
    labels: Literal["class", "image", "cluster"] = "class"  # what images that are alike share
    distance: Literal["cosine", "euclidean", "unit-euclidean"] | None = None  # None: the loss's
    miner: Miner | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe(Settings):
    """Every setting of a training run."""

    encoder: str
    network: dict[str, Any] = field(default_factory=dict)  # settings of the encoder's network
    start: str = ""  # a trained encoder of such a network, whose weights are trained on
    keep_start: Share = 0.0  # the share of its weights in the mean with those trained
    losses: tuple[Loss, ...] = ()
    epochs: Amount = 10
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0  # the range of k-means
    about: str = ""
    data: Data = Data()
    sampler: Sampler = Sampler()
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()


def recipe_names() -> list[str]:
    """The recipes that ship, sorted."""
    folder = files("encoders") / "recipes"
    return sorted(f.name.removesuffix(SUFFIX) for f in folder.iterdir() if f.name.endswith(SUFFIX))


def read_recipe(name: str, changes: Iterable[str] = ()) -> Recipe:
    """The recipe of a file, or one that ships by its name, with `KEY=VALUE` changes applied.

    A key is a path, `optimizer.lr` or `losses.0.weight`; a value is TOML, or else text. Raises
    BadInput for a file that is not TOML, UnknownName for a recipe, key or loss that is not
    there, with the nearest that is.
    """
    path = Path(name)
    if path.suffix == SUFFIX:
        if not path.is_file():
            raise BadInput(f"recipe {path} is not there; give a TOML file or one of retr's own")
        text, where = path.read_bytes(), str(path)
    elif name in recipe_names():
        text = (files("encoders") / "recipes" / (name + SUFFIX)).read_bytes()
        where = f"recipe {name}"
    else:
        raise UnknownName("recipe", name, recipe_names())
    try:
        table = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # also of what is not UTF-8, or nested too deep
        raise BadInput(f"{where} is not TOML ({error}); mend it there") from None
    for change in changes:
        _apply(table, change)
    _gather_options(table)
    return cast(Recipe, typed(Recipe, table, where))


def typed(kind: type[Any], table: Mapping[str, object], where: str) -> Any:
    """The settings dataclass `kind` with the values of a table, each checked against its type.

    Raises UnknownName for a key that it lacks and BadInput for a value of another type.
    """
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(dict(table))
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            owner = _settings_at(kind, place[:-1])
            section = ".".join(place[:-1])
            described = f"key of [{section}] in {where}" if section else f"key of {where}"
            raise UnknownName(described, place[-1], (f.name for f in fields(owner))) from None
        message = first["msg"].removesuffix(".")
        if first["type"] in ("missing", "missing_argument"):
            raise BadInput(f"{where} lacks {'.'.join(place)}; add it") from None
        raise BadInput(
            f"{'.'.join(place)} of {where} cannot be {first['input']!r}: {message}; change it"
        ) from None


def _settings_at(kind: type[Any], place: list[str]) -> type[Any]:
    """The dataclass that the path leads to, from `kind` through its fields and their tuples."""
    for part in place:
        if part.isdigit():
            continue
        hint = next(f.type for f in fields(kind) if f.name == part)
        inside = [hint, *get_args(hint)]
        kind = next(h for h in inside if is_dataclass(h))  # type: ignore[assignment]
    return kind


def _apply(table: dict[str, Any], change: str) -> None:
    """Put the value of `KEY=VALUE` where the path KEY leads, making tables on the way."""
    key, equals, text = change.partition("=")
    key, text = key.strip(), text.strip()
    if not (key and equals and text):
        raise BadInput(f"--set {change} is not understood; write --set KEY=VALUE")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text
    *path, last = key.split(".")
    place: Any = table
    for part in path:
        place = place.setdefault(part, {}) if isinstance(place, dict) else _item(place, part, key)
    if isinstance(place, dict):
        place[last] = value
    elif isinstance(place, list):
        _item(place, last, key)
        place[int(last)] = value
    else:
        raise BadInput(f"--set {change}: {'.'.join(path)} is a value and has no {last}")


def _item(place: Any, part: str, key: str) -> Any:
    try:
        return place[int(part)]
    except (ValueError, IndexError, TypeError):
        n = len(place) if isinstance(place, list) else 0
        raise BadInput(
            f"--set {key}: there is no '{part}'; number the {n} terms from 0 to {n - 1}"
        ) from None


def _gather_options(table: dict[str, Any]) -> None:
    """Move what a loss or a miner has beside retr's own keys into its `options`."""
    losses = table.get("losses")
    terms = losses if isinstance(losses, list) else []
    for loss in (term for term in terms if isinstance(term, dict)):
        for owner, kind in ((loss, Loss), (loss.get("miner"), Miner)):
            if isinstance(owner, dict):
                known = {f.name for f in fields(kind)}
                options = {key: owner.pop(key) for key in [*owner] if key not in known}
                if isinstance(owner.setdefault("options", {}), dict):
                    owner["options"].update(options)
