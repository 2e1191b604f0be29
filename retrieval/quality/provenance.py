"""Provenance of encoders: the images that one was trained on, from the folder of its weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from retrieval.contracts import Mask
from retrieval.errors import BadData
from retrieval.quality.labelled import Labelled
from retrieval.registry import trained_folder
from retrieval.storage.cards import IMAGES, Card
from retrieval.storage.manifest import EncoderFacts, SourceFacts

WEIGHTS = "weights_sha256"  # in the configuration of an encoder that has a card


@dataclass(frozen=True, slots=True)
class Provenance:
    """The folder of a trained encoder and its card."""

    folder: Path
    card: Card

    @property
    def classes(self) -> frozenset[str]:
        """The classes that the encoder was trained on, and what it started from.

        Without labels there is one class, whose name is empty.
        """
        before = self.card.training.data.get("also_seen_classes", [])
        return frozenset({*self.card.classes, *map(str, cast(list[str], before))})

    def has_seen(self, source: SourceFacts, ids: Sequence[str]) -> Mask:
        """(n,): which of the source's images with these ids the encoder was trained on.

        Where the folder has no list of them, these are all images of the source that the card
        names. Of a source that the encoder it started from has seen, all images count. A source is
        known by its name, or as a copy by its fingerprint.
        """
        data = self.card.training.data
        before = data.get("also_seen")
        if isinstance(before, list) and (source.name in before or source.whole in before):
            return np.ones(len(ids), bool)
        if source.name != data.get("source") and source.whole != data.get("sha256"):
            return np.zeros(len(ids), bool)
        path = self.folder / IMAGES
        if not path.is_file():
            return np.ones(len(ids), bool)
        trained = set(path.read_text(encoding="utf-8").split("\n"))
        return np.array([name in trained for name in ids], bool)


def provenance_of(encoder: EncoderFacts) -> Provenance | None:
    """Return the provenance of the encoder's weights.

    Return None for an encoder without a card, or whose folder is missing or holds other weights.
    """
    folder = trained_folder(encoder.name) if has_card(encoder) else None
    if folder is None:
        return None
    try:
        card = Card.read(folder)
    except BadData:
        return None
    return Provenance(folder, card) if card.weights_sha256 == encoder.config[WEIGHTS] else None


def known_provenance(encoder: EncoderFacts, warn: Callable[[str], None]) -> Provenance | None:
    """Return the provenance of the encoder, and warn where its folder is lost."""
    found = provenance_of(encoder)
    if found is None and has_card(encoder):
        warn(
            f"the folder of encoder {encoder.name} is gone, or holds other weights by now: which "
            "images and classes it was trained on is not known"
        )
    return found


def seen(images: Labelled, source: SourceFacts, encoder: Provenance | None) -> Mask:
    """(n,): the images of the source that the encoder was trained on, as far as is known."""
    if encoder is None:
        return np.zeros(len(images), bool)
    return encoder.has_seen(source, ids_within(images, source))


def ids_within(images: Labelled, source: SourceFacts) -> list[str]:
    """Return the ids of the source's images within it, without its name."""
    prefix = f"{source.name}: "  # see `Labelled.of`
    return [name.removeprefix(prefix) for name in images.ids]


def has_card(encoder: EncoderFacts) -> bool:
    """Return whether the encoder came from a folder with a card, which may have moved since."""
    return WEIGHTS in encoder.config
