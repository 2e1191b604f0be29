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
from retrieval.storage.sets.manifest import EncoderFacts, SourceFacts

WEIGHTS = "weights_sha256"  # in the configuration of an encoder that has a card


@dataclass(frozen=True, slots=True)
class Provenance:
    """The folder of a trained encoder and its card."""

    folder: Path
    card: Card

    @property
    def classes(self) -> frozenset[str]:
        """Names of the classes that the encoder, and the encoder it started from, was trained on.

        For a training without labels, this is one empty name.
        """
        before = self.card.training.data.get("also_seen_classes", [])
        return frozenset({*self.card.classes, *map(str, cast(list[str], before))})

    def has_seen(self, source: SourceFacts, ids: Sequence[str]) -> Mask:
        """Return whether the encoder was trained on each of the source's images, (n,).

        ids: of the images within the source. The encoder's folder may have a list of the images
        that it was trained on; without one, all images of the card's source count. All images of
        a source that the encoder it started from was trained on count, too. Sources are compared
        by name and by fingerprint, which finds copies.
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
    """Return the provenance of the encoder, and warn if its folder was lost."""
    found = provenance_of(encoder)
    if found is None and has_card(encoder):
        warn(
            f"the images and classes that encoder {encoder.name} was trained on are unknown: its "
            "folder is missing, or now holds other weights"
        )
    return found


def seen(images: Labelled, source: SourceFacts, encoder: Provenance | None) -> Mask:
    """Return whether the encoder is known to have been trained on each image, (n,)."""
    if encoder is None:
        return np.zeros(len(images), bool)
    return encoder.has_seen(source, ids_within(images, source))


def ids_within(images: Labelled, source: SourceFacts) -> list[str]:
    """Return the ids of the images without the name of the source."""
    prefix = f"{source.name}: "  # see `Labelled.of`
    return [name.removeprefix(prefix) for name in images.ids]


def has_card(encoder: EncoderFacts) -> bool:
    """Return whether the encoder came from a folder with a card, which may have moved since."""
    return WEIGHTS in encoder.config
