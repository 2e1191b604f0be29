"""Labelled images in memory, as training wants them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.contracts import Framing, Images
from retrieval.images import load, open_source


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """Images (n, side, side, 3), their labels (n,) as numbers, and the labels' names."""

    images: Images
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    source: str
    fingerprint: str

    def split(self, validation: int, seed: int) -> "tuple[TrainingSet, TrainingSet]":
        """This set less `validation` images drawn by seed, and those images."""
        order = np.random.default_rng(seed).permutation(len(self.images))
        kept, held_out = np.sort(order[validation:]), np.sort(order[:validation])
        return self._taken(kept), self._taken(held_out)

    def _taken(self, rows: NDArray[np.int64]) -> "TrainingSet":
        return TrainingSet(
            self.images[rows], self.labels[rows], self.names, self.source, self.fingerprint
        )


def read_training_set(source: str, framing: Framing, data: Path | None = None) -> TrainingSet:
    """The training split of a data set, framed. Raises BadImage for the first unreadable one."""
    images = open_source(source, "train", data)
    pixels = np.empty((len(images), framing.side, framing.side, 3), np.uint8)
    labels = []
    for row, item in enumerate(images.items()):
        pixels[row] = load(item, framing)
        labels.append(item.label or "")
    names = tuple(sorted(set(labels)))
    number = {name: i for i, name in enumerate(names)}
    numbers = np.array([number[label] for label in labels], np.int64)
    return TrainingSet(pixels, numbers, names, images.name, images.fingerprint)
