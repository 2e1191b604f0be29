"""Images that a trained encoder has not been trained on."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from retrieval.contracts import Images
from retrieval.errors import BadInput
from retrieval.images import load, open_source
from retrieval.storage.cards import IMAGES, Card


def unseen(
    card: Card,
    folder: Path,
    split: str,
    limit: int | None = None,
    classes: Collection[str] | None = None,
) -> tuple[Images, list[str], list[str | None]]:
    """The first images of the split that were not trained on, their ids and labels.

    They are those of the data set that the encoder was trained on; classes: of these alone.
    Raises BadInput for none.
    """
    trained = set()
    if split == "train":
        trained = set((folder / IMAGES).read_text(encoding="utf-8").split("\n"))
    source = open_source(str(card.training.data["source"]).split("/")[0], split)
    items = [
        item
        for item in source.items()
        if item.id not in trained and (classes is None or item.label in classes)
    ][:limit]
    if not items:
        raise BadInput(f"{folder} was trained on all images; train with data.validation")
    images = np.stack([load(item, card.framing) for item in items])
    return images, [item.id for item in items], [item.label for item in items]
