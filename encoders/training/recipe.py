"""Recipes: all settings of a training run, as a TOML file.

Recipe, data, machine and library versions determine the weights. Recipes that ship are in
`encoders/recipes/`; docs/recipes.md explains each key.
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
class Also(Settings):
    """Images of a further source."""

    source: str
    classes: tuple[str, ...] = ()  # classes to train on; empty: all
    per_class: Amount = 0  # images drawn of each class; 0: all


@dataclass(frozen=True)
class Data(Settings):
    """Images to train on."""

    source: str = "cifar10"  # see `retr encode`; its training split if it has one
    side: Amount = 0  # pixels; images are framed to side × side; 0: see `Network.natural_side`
    classes: tuple[str, ...] = ()  # classes to train on; empty: all
    per_class: Amount = 0  # images drawn of each class; 0: all
    also: tuple[Also, ...] = ()  # further sources, with classes of other names
    validation: Amount = 0  # images that are held out and scored after each epoch
    clusters: Amount = 0  # number of clusters of images, for losses with labels = "cluster"
    clustered_by: str = ""  # encoder whose embeddings are clustered


@dataclass(frozen=True)
class Captions(Settings):
    """Captions of images, made by rule: a template with a name of the image's class in it."""

    templates: tuple[str, ...] = ("{}",)  # sentences with {} for the name
    names: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # names of a class; none: its label
    per_class: Count = 1  # captions of each class in a step


@dataclass(frozen=True)
class Sampler(Settings):
    """Composition of batches."""

    name: Literal["shuffled", "balanced", "pairs"] = "shuffled"
    batch: Count = 500  # images; with `pairs`, half as many pairs
    per_class: Count = 4  # images of a class in a batch, for `balanced`


@dataclass(frozen=True)
class Augmentation(Settings):
    """Random changes to an image in each step."""

    flip: Literal["none", "random", "alternating"] = "none"
    translate: Amount = 0  # pixels, each way, edges reflected
    cutout: Amount = 0  # side in pixels of a square in the mean color
    smallest_crop: Annotated[float, Gt(0), Le(1)] = (
        1.0  # smallest share of the area; the crop is scaled up
    )
    crop_side: Amount = 0  # side in pixels of scaled crops; 0: the image's
    rotate: Annotated[float, Ge(0), Le(180)] = 0.0  # maximum degrees, either way
    recolour: Share = 0.0  # maximum change of contrast; half of it for a channel's brightness
    greyscale: Share = 0.0  # share of images that become gray
    cutmix: Share = 0.0  # share of batches in which each image has a part of another
    views: Literal[1, 2] = 1  # views of each image in a batch


@dataclass(frozen=True)
class Optimizer(Settings):
    """Optimizer and learning rates."""

    name: Literal["muon", "adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3  # learning rate; with `muon`, for matrices and filters
    momentum: Share = 0.6  # for muon and sgd
    other_lr: Positive | None = None  # for other parameters and losses; None: `lr`
    weight_decay: NotNegative = 0.0
    schedule: Literal["linear", "cosine"] = "linear"  # down to zero
    warmup: Share = 0.0  # share of the run in which learning rates rise from zero


@dataclass(frozen=True)
class Miner(Settings):
    """Selection of pairs or triplets of a batch for a loss."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss(Settings):
    """One term of the loss, by its name in `encoders.training.optimization.losses`."""

    name: str
    weight: NotNegative = 1.0
    labels: Literal["class", "image", "cluster"] = "class"  # label that similar images share
    distance: Literal["cosine", "euclidean", "unit-euclidean"] | None = (
        None  # None: the loss's default
    )
    miner: Miner | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe(Settings):
    """All settings of a training run."""

    encoder: str
    network: dict[str, Any] = field(default_factory=dict)  # settings of the network
    start: str = ""  # trained encoder to start from, with the same kind of network
    keep_start: Share = 0.0  # weight of the start in the mean with the trained weights
    losses: tuple[Loss, ...] = ()
    epochs: Amount = 10
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0  # the range of k-means' seeds
    about: str = ""
    data: Data = Data()
    captions: Captions = Captions()
    sampler: Sampler = Sampler()
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship, sorted."""
    folder = files("encoders") / "recipes"
    return sorted(f.name.removesuffix(SUFFIX) for f in folder.iterdir() if f.name.endswith(SUFFIX))


def read_recipe(name: str, changes: Iterable[str] = ()) -> Recipe:
    """Return the recipe in a TOML file, or a shipped recipe, with `KEY=VALUE` changes applied.

    A key is a path, `optimizer.lr` or `losses.0.weight`. A value is TOML, or else text. Raises
    BadInput for a file that is not TOML, UnknownName for an unknown recipe, key or loss.
    """
    path = Path(name)
    if path.suffix == SUFFIX:
        if not path.is_file():
            raise BadInput(
                f"recipe {path} not found; give a TOML file or the name of a recipe that ships"
            )
        text, where = path.read_bytes(), str(path)
    elif name in recipe_names():
        text = (files("encoders") / "recipes" / (name + SUFFIX)).read_bytes()
        where = f"recipe {name}"
    else:
        raise UnknownName("recipe", name, recipe_names())
    try:
        table = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, or nested too deep
        raise BadInput(f"{where} is not TOML ({error}); correct it") from None
    for change in changes:
        _apply(table, change)
    _gather_options(table)
    return cast(Recipe, typed(Recipe, table, where))


def typed(kind: type[Any], table: Mapping[str, object], where: str) -> Any:
    """Return the settings dataclass `kind` with the values of a table, each checked by its type.

    Raises UnknownName for an unknown key, BadInput for a value of a wrong type.
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
    """Return the dataclass at a path, from `kind` through its fields and their tuples."""
    for part in place:
        if part.isdigit():
            continue
        hint = next(f.type for f in fields(kind) if f.name == part)
        inside = [hint, *get_args(hint)]
        kind = next(h for h in inside if is_dataclass(h))  # type: ignore[assignment]
    return kind


def _apply(table: dict[str, Any], change: str) -> None:
    """Set the value of `KEY=VALUE` at the path KEY, and create tables on the way."""
    key, equals, text = change.partition("=")
    key, text = key.strip(), text.strip()
    if not (key and equals and text):
        raise BadInput(f"--set {change} has no key, = and value; write --set KEY=VALUE")
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
            f"--set {key}: no term '{part}'; the {n} terms are numbered from 0 to {n - 1}"
        ) from None


def _gather_options(table: dict[str, Any]) -> None:
    """Move keys of a loss or a miner that are not retr's own into its `options`."""
    losses = table.get("losses")
    terms = losses if isinstance(losses, list) else []
    for loss in (term for term in terms if isinstance(term, dict)):
        for owner, kind in ((loss, Loss), (loss.get("miner"), Miner)):
            if isinstance(owner, dict):
                known = {f.name for f in fields(kind)}
                options = {key: owner.pop(key) for key in [*owner] if key not in known}
                if isinstance(owner.setdefault("options", {}), dict):
                    owner["options"].update(options)
