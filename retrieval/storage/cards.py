"""Trained encoders on disk: a folder with weights and the card that says how they came about.

`card.json` names the plug-in that runs the weights, the settings of its network, the recipe and
the data of the training, and the weights' sha256. docs/formats.md writes the format out.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from retrieval.choices import resolve_choices
from retrieval.contracts import Framing, Json, Metric
from retrieval.errors import BadData
from retrieval.storage.document import read_document
from retrieval.storage.files import sha256_of, write_sealed

FORMAT = "retr-encoder"
VERSION = 2  # 1 had no checksum
CARD = "card.json"
WEIGHTS = "weights.safetensors"
LOG = "log.csv"  # a row for each epoch
IMAGES = "training-images.txt"  # the ids of what was trained on, one a line


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """Origin of weights."""

    recipe: Mapping[str, Json]  # every setting, defaults written out
    data: Mapping[str, Json]  # source, its sha256, classes, images trained on and held out
    seed: int
    machine: str
    versions: Mapping[str, Json]
    minutes: float
    metrics: Mapping[str, Json]  # on which images, and what was reached


@dataclass(frozen=True, slots=True)
class Card:
    """Facts about a trained encoder."""

    encoder: str  # the plug-in that runs the weights
    network: Mapping[str, Json]  # the settings of its network
    classes: tuple[str, ...]  # classes of the training images, sorted
    dim: int
    metric: Metric
    framing: Framing
    weights_sha256: str
    training: TrainingFacts

    def __post_init__(self) -> None:
        resolve_choices(self)

    def write(self, folder: Path) -> None:
        """Write the card into the folder, whole or not at all."""
        write_sealed(folder / CARD, FORMAT, VERSION, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the card of the folder. Raises BadData if it is not there or not understood."""
        remedy = "copy it from the original folder, or train again"
        return read_document(folder / CARD, cls, FORMAT, VERSION, remedy)

    def check_weights(self, folder: Path) -> Path:
        """Return the file of the weights. Raises BadData if it is missing or not the card's."""
        path = folder / WEIGHTS
        if not path.is_file():
            raise BadData(f"{path} is missing; copy it from the original folder, or train again")
        if sha256_of(path) != self.weights_sha256:
            raise BadData(f"{path} has a checksum mismatch with {CARD}; train again")
        return path


def is_trained(folder: Path) -> bool:
    """Return whether the folder is a trained encoder."""
    return (folder / CARD).is_file()
