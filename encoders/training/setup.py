"""Set up a run from a recipe: network, losses, images, and the encoder to start from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from encoders.inference import torch_device
from encoders.networks import Network
from encoders.training.batches.training_set import TrainingSet, read_training_set
from encoders.training.checks import check_data, check_network
from encoders.training.optimization.losses import OF_NETWORKS, Term
from encoders.training.recipe import Recipe, typed
from encoders.training.seeds import seed_of
from encoders.training.start import Start, start_from
from retrieval.contracts import Framing, Json
from retrieval.errors import BadInput, Mismatch, UnknownName
from retrieval.registry import encoder_names, encoder_plugin


@dataclass(frozen=True, slots=True, eq=False)
class RunSetup:
    """The inputs of a run, checked against each other.

    terms: the losses of embeddings. start: the encoder that the training starts from, if any.
    """

    recipe: Recipe
    network: Network
    terms: nn.ModuleList
    data: TrainingSet
    start: Start
    device: torch.device

    @property
    def framing(self) -> Framing:
        """The square that images are framed to."""
        return _framing(self.recipe)

    def origin(self) -> dict[str, Json]:
        """Return the facts about images and start that a checkpoint and a card keep."""
        facts = self.data.facts() | self.start.facts()
        also = dict.fromkeys((*self.data.also, *self.start.sources))
        return facts | {"also_seen": [*also]} if also else facts

    def check_origin(self, file: Path, made_from: Mapping[str, Json]) -> None:
        """Raise Mismatch unless the file was made from the same images and the same start."""
        if made_from != self.origin():
            raise Mismatch(
                f"{file} was made from other images of {self.data.source}, or its start encoder "
                "has changed since; name another folder with --out, or delete it"
            )


def set_up(recipe: Recipe, data_folder: Path | None, device: str) -> RunSetup:
    """Read the images of a complete recipe, and build its network and losses.

    Raises BadInput and its kinds where the recipe, the images and the network do not fit.
    """
    network_type, settings = _network_of(recipe)
    where = torch_device(device)
    framing = _framing(recipe)
    data = read_training_set(recipe.data, framing, recipe.seed, data_folder)
    check_data(recipe, network_type, data)
    torch.manual_seed(seed_of(recipe.seed, "network"))
    network = _build_network(network_type, settings, data, framing)
    start = start_from(recipe.start, network, data) if recipe.start else Start()
    terms = _loss_terms(recipe, network, len(data.names))
    start.hand_over(terms, data.names)
    check_network(recipe, network, terms, len(data.training))
    return RunSetup(recipe, network, terms, data, start, where)


def complete(recipe: Recipe) -> Recipe:
    """Return the recipe with the defaults of its network and the side of its images written out.

    Raises UnknownName for an encoder that cannot be trained, BadInput for wrong settings.
    """
    network_type, settings = _network_of(recipe)
    side = recipe.data.side or network_type.natural_side(settings)
    return replace(recipe, network=settings.to_json(), data=replace(recipe.data, side=side))


def check_same_recipe(file: Path, made_by: Mapping[str, Json], recipe: Recipe) -> None:
    """Raise Mismatch unless the file was made by this recipe.

    A setting that the file's recipe lacks, because it is newer, counts as its default.
    """
    wanted = recipe.to_json()
    kind = _network_of(recipe)[0].settings_type
    try:
        before = cast(Recipe, typed(Recipe, made_by, str(file)))
        before = replace(before, network=typed(kind, before.network, str(file)).to_json())
        made_by = before.to_json()
    except BadInput:
        pass  # another encoder's recipe, or one with settings that no longer exist
    for key in sorted({*made_by, *wanted} - {"about"}):
        met, given = made_by.get(key), wanted.get(key)
        if met != given:
            raise Mismatch(
                f"{file} is of another recipe (its {key} is {met}, not {given}); name another "
                "folder with --out, or delete it"
            )


def network_settings(recipe: Recipe) -> dict[str, Json]:
    """Return the settings of the recipe's network, defaults included."""
    settings: dict[str, Json] = _network_of(recipe)[1].to_json()
    return settings


def _network_of(recipe: Recipe) -> tuple[type[Network], Any]:
    network_type = _trainable(recipe.encoder) if recipe.encoder in encoder_names() else None
    if network_type is None:
        trainable = [name for name in encoder_names() if _trainable(name) is not None]
        raise UnknownName("trainable encoder", recipe.encoder, trainable)
    return network_type, typed(network_type.settings_type, recipe.network, "network")


def _trainable(name: str) -> type[Network] | None:
    """Return the network that training this encoder makes; None if it cannot be trained.

    Several encoders may run one network. Only the one whose `plugin` is its own name is trained.
    """
    plugin = encoder_plugin(name)
    is_own = getattr(plugin, "plugin", None) == name
    return getattr(plugin, "network_type", None) if is_own else None


def _framing(recipe: Recipe) -> Framing:
    return Framing(side=recipe.data.side)


def _build_network(
    network_type: type[Network], settings: Any, data: TrainingSet, framing: Framing
) -> Network:
    try:
        return network_type(settings, len(data.names), framing.side)
    except ValueError as error:
        raise BadInput(
            f"the network cannot be built: {error}; change [network] or data.side"
        ) from None


def _loss_terms(recipe: Recipe, network: Network, classes: int) -> nn.ModuleList:
    """Build the losses of embeddings."""
    terms = [
        Term(
            loss,
            recipe.data.clusters if loss.labels == "cluster" else classes,
            network.training_dim,
        )
        for loss in recipe.losses
        if loss.name not in OF_NETWORKS
    ]
    return nn.ModuleList(terms)
