"""Images that an encoder was not trained on."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from retrieval.contracts import Images
from retrieval.errors import BadInput
from retrieval.images import load, open_source
from retrieval.quality.provenance import Provenance
from retrieval.storage.cards import Card
from retrieval.storage.sets.manifest import SourceFacts


def unseen(
    card: Card,
    folder: Path,
    split: str,
    limit: int | None = None,
    classes: Collection[str] | None = None,
) -> tuple[Images, list[str], list[str | None]]:
    """Return the first images of the split that were not trained on, their ids and labels.

    The data set is that of the recipe. classes: only images of these. Raises BadInput if there are
    none.
    """
    source = open_source(_source_of(card), split)
    items = [item for item in source.items() if classes is None or item.label in classes]
    facts = SourceFacts(source.name, source.fingerprint, len(source))
    seen = Provenance(folder, card).has_seen(facts, [item.id for item in items])
    items = [item for item, known in zip(items, seen, strict=True) if not known][:limit]
    if not items:
        raise BadInput(f"{folder} was trained on all images; train with data.validation")
    images = np.stack([load(item, card.framing) for item in items])
    return images, [item.id for item in items], [item.label for item in items]


def _source_of(card: Card) -> str:
    data = card.training.recipe["data"]
    assert isinstance(data, dict)
    return str(data["source"])
