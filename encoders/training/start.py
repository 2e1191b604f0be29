"""Start a training from the weights of a trained encoder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from encoders.networks import Network
from encoders.trained import TrainedEncoder
from encoders.training.batches.training_set import TrainingSet
from encoders.training.earlier import open_earlier
from encoders.training.optimization.losses import Term
from retrieval.contracts import Json
from retrieval.errors import BadInput
from retrieval.registry import trained_folder
from retrieval.storage.cards import IMAGES, Card


@dataclass(frozen=True, slots=True)
class Start:
    """Start of a run: an encoder and the images that it has seen; empty for random weights."""

    fingerprint: str = ""
    ids: frozenset[str] = frozenset()  # images of the run's own source
    sources: tuple[str, ...] = ()  # other sources as a whole, by name and by sha256
    classes: tuple[str, ...] = ()  # sorted
    minutes: float = 0.0  # training time, earlier starts included
    proxies: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # (dim,) of each class, if there are any

    def facts(self) -> dict[str, Json]:
        """Return the facts about the start for a card."""
        if not self.fingerprint:
            return {}
        return {
            "started_from": self.fingerprint,
            "start_minutes": self.minutes,
            "also_seen": [*self.sources],
            "also_seen_classes": [*self.classes],
        }

    def hand_over(
        self, terms: Iterable[object], classes: Sequence[str], share: float = 1.0
    ) -> None:
        """Turn the losses' class proxies by `share` of the way to the encoder's proxies.

        Proxies keep their lengths: losses that use directions only turn short ones faster.
        """
        for term in terms:
            proxies = term.proxies() if isinstance(term, Term) else None
            if proxies is None:
                continue
            for place, name in enumerate(classes):
                if name in self.proxies:
                    learned = functional.normalize(self.proxies[name].to(proxies.device), dim=0)
                    here = functional.normalize(proxies[place], dim=0)
                    turned = functional.normalize(here.lerp(learned, share), dim=0)
                    proxies[place] = turned * proxies[place].norm()

    def has_seen(self, data: TrainingSet, rows: NDArray[np.int64]) -> int:
        """Return the number of these rows that the encoder was trained on, as far as is known."""
        if {data.source, data.fingerprint} & {*self.sources}:
            return len(rows)
        return len(self.ids.intersection(data.ids[row] for row in rows.tolist()))


def start_from(spec: str, network: Network, data: TrainingSet) -> Start:
    """Load the weights of the trained encoder that `spec` names into the network.

    Weights that are fitted after the training, such as whitening, are loaded if they have the same
    shape; they are fitted again. Raises UnknownName for an unknown encoder, BadInput for one
    without a folder, with another network, or trained on images that are held out now.
    """
    encoder, folder = open_earlier("start", spec, "cpu"), trained_folder(spec)
    if not isinstance(encoder, TrainedEncoder) or folder is None:
        raise BadInput(
            f"start: {spec} is neither a folder that 'retr train' made nor an encoder that ships "
            "with weights; give one of these"
        )
    there = encoder.trained.state_dict()
    part = _part_to_start(spec, encoder.trained, network, there)
    fitting = {
        name: there[name]
        for name, tensor in part.state_dict().items()
        if name in there and there[name].shape == tensor.shape
    }
    part.load_state_dict(fitting, strict=False)
    start = _start(encoder, folder, data)
    if held_out := start.has_seen(data, data.held_out):
        listed = (
            f"; {IMAGES} in its folder lists them"
            if start.ids
            else ", as far as is known: its folder does not list them"
        )
        raise BadInput(
            f"start: {spec} was trained on {held_out:,} of the images that are held out now"
            f"{listed}, so that their scores would be too good; set data.validation to 0"
        )
    return start


def _part_to_start(
    spec: str, trained: Network, network: Network, there: Mapping[str, Tensor]
) -> Network:
    """Return the part of the network that starts from the trained one's weights.

    Raises BadInput unless the trained network has all parameters of that part.
    """
    part = network.part_like(trained)
    if part is None:
        raise BadInput(
            f"start: {spec} has another kind of network than the recipe; set encoder to that of "
            "its card"
        )
    for name, parameter in part.named_parameters():
        if name not in there or there[name].shape != parameter.shape:
            raise BadInput(
                f"start: {spec} has no weights for {name} {tuple(parameter.shape)}; set [network] "
                "to that of its card"
            )
    return part


def _start(encoder: TrainedEncoder, folder: Path, data: TrainingSet) -> Start:
    card = Card.read(folder)
    facts = card.training.data
    seen_before = facts.get("also_seen_classes", [])
    assert isinstance(seen_before, list)
    classes = tuple(sorted({*card.classes, *map(str, seen_before)}))
    source, sha256 = str(facts.get("source")), str(facts.get("sha256"))
    before = facts.get("also_seen", [])
    assert isinstance(before, list)
    sources = [str(name) for name in before]
    list_of_ids = folder / IMAGES
    if list_of_ids.is_file() and (source == data.source or sha256 == data.fingerprint):
        ids = frozenset(list_of_ids.read_text(encoding="utf-8").rstrip("\n").split("\n"))
    else:
        ids, sources = frozenset(), [*sources, source, sha256]
    minutes = card.training.minutes + cast(float, facts.get("start_minutes", 0.0))
    kept = encoder.trained.proxies
    return Start(
        encoder.fingerprint,
        ids,
        tuple(dict.fromkeys(sources)),
        classes,
        round(minutes, 2),
        {} if kept is None else dict(zip(card.classes, kept, strict=True)),
    )
