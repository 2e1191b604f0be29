"""Protocols: the labelled images that are queries, and those that are the database.

Published results on CIFAR-10 use one of these. docs/metrics.md describes them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Json, Mask
from retrieval.errors import BadData, BadInput, Mismatch
from retrieval.quality.draws import draw_of_each_class
from retrieval.quality.labelled import Labelled
from retrieval.quality.provenance import known_provenance, seen
from retrieval.quality.ranking import Rows
from retrieval.storage.files import made_folder, read_sealed, write_sealed
from retrieval.storage.sets.embeddings import Embeddings

DRAW = "retr-draw"
VERSION = 2  # 1 had no checksum

QUERIES_PER_CLASS = 100
TRAINING_IMAGES_PER_CLASS = 500


class Protocol(StrEnum):
    """Protocols, by the names that `retr eval --protocol` takes."""

    OFFICIAL = "official"  # queries: test images; database: training images
    UNSEEN = "unseen"  # both: test images, each left out of its own ranking
    HASHING_54K = "hashing-54k"  # 1,000 test images; all others but 5,000 trained on
    HASHING_59K = "hashing-59k"  # 1,000 test images; all others

    @property
    def draws(self) -> bool:
        """True if the protocol draws at random."""
        return self in (Protocol.HASHING_54K, Protocol.HASHING_59K)

    @property
    def needs_training(self) -> bool:
        """True if the protocol needs the images that the encoder was trained on."""
        return self is Protocol.HASHING_54K


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """The two sides of an evaluation, and the draw that chose them.

    protocol: None for all queries and the whole database.
    left_out: ids of the images that are on neither side, for the record.
    """

    queries: Labelled
    database: Labelled
    protocol: Protocol | None
    seed: int
    left_out: list[str]

    def __post_init__(self) -> None:
        resolve_choices(self)

    @property
    def name(self) -> str | None:
        """Return the name of the protocol; None without one."""
        return None if self.protocol is None else self.protocol.value

    def write_draw(self, path: Path) -> None:
        """Write the ids of the queries, and of the images on neither side, as JSON.

        Raises BadInput without a protocol.
        """
        if self.protocol is None:
            raise BadInput("there is no draw without a protocol; name a protocol")
        made_folder(path.parent)
        content = {
            "protocol": self.protocol.value,
            "seed": self.seed,
            "queries": [*self.queries.ids],
            "left_out": [*self.left_out],
        }
        write_sealed(path, DRAW, VERSION, content)


def read_draw(path: Path, protocol: Protocol | str, test: Labelled, train: Labelled) -> Sides:
    """Return the sides of an earlier draw, from a file of `Sides.write_draw`.

    Raises BadData for another file or a damaged one; Mismatch if the draw has another protocol, or
    an image that is not among the embeddings.
    """
    protocol = choice(Protocol, protocol)
    draw = read_sealed(path, DRAW, VERSION, "delete it, and draw again")
    if draw.get("protocol") != protocol:
        raise Mismatch(
            f"{path} is a draw for protocol {draw.get('protocol')}, not {protocol}; "
            "name another file"
        )
    queries, left_out, seed = (draw.get(key) for key in ("queries", "left_out", "seed"))
    if not isinstance(queries, list) or not isinstance(left_out, list) or not isinstance(seed, int):
        raise BadData(f"{path} lacks queries, left_out or seed; delete it, and draw again")
    asked, others = _rows(path, test, queries), _rows(path, train, left_out)
    return _split(protocol, test, train, asked, others, seed)


def sides_of_folders(
    queries: Embeddings,
    database: Embeddings,
    protocol: Protocol | str | None = None,
    seed: int = 0,
    draw: Path | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Sides:
    """Return the sides of the protocol, from folders of embeddings.

    protocol: None for all queries and the whole database.
    draw: a file to read the draw from, or to write it to if it does not exist.
    warn: called with a warning if the encoder's training is unknown.

    Raises the errors of `read_draw` and `sides_of`.
    """
    protocol = None if protocol is None else choice(Protocol, protocol)
    test, train = Labelled.of(queries), Labelled.of(database)
    if protocol is None:
        return Sides(test, train, None, seed, [])
    if draw is not None and draw.exists():
        return read_draw(draw, protocol, test, train)
    facts = database.facts
    trained = known_provenance(facts.encoder, warn) if protocol.needs_training else None
    sides = sides_of(protocol, test, train, seen(train, facts.source, trained), seed)
    if draw is not None:
        sides.write_draw(draw)
    return sides


def sides_of(
    protocol: Protocol | str, test: Labelled, train: Labelled, trained_on: Mask, seed: int = 0
) -> Sides:
    """Return the two sides of a protocol, from the embeddings of both splits.

    trained_on: (train,), True for each training image that the encoder was trained on.

    Images are drawn by class and by seed. `hashing-54k` leaves out the images that the encoder was
    trained on; for an encoder that was trained on none, it leaves out 500 random ones per class.

    Raises BadInput for a class with too few images, and in `hashing-54k` for an encoder that was
    not trained on 500 images of each class.
    """
    protocol = choice(Protocol, protocol)
    if protocol is Protocol.OFFICIAL:
        return Sides(test, train, protocol, seed, [])
    if protocol is Protocol.UNSEEN:
        return Sides(test, test, protocol, seed, [])
    generator = np.random.default_rng(seed)
    asked = _drawn(test, QUERIES_PER_CLASS, "queries", generator)
    left_out = np.array([], np.int64)
    if protocol is Protocol.HASHING_54K:
        left_out = np.flatnonzero(trained_on)
        if not len(left_out):
            left_out = _drawn(train, TRAINING_IMAGES_PER_CLASS, "training images", generator)
        elif len(left_out) != TRAINING_IMAGES_PER_CLASS * len(train.classes()):
            raise BadInput(
                f"{protocol} is for encoders trained on {TRAINING_IMAGES_PER_CLASS} images of each "
                f"class, and this one was trained on {len(left_out):,} in all; use "
                f"{Protocol.HASHING_59K}"
            )
    return _split(protocol, test, train, asked, left_out, seed)


def _split(
    protocol: Protocol, test: Labelled, train: Labelled, asked: Rows, left_out: Rows, seed: int
) -> Sides:
    rest = test.take(np.setdiff1d(np.arange(len(test)), asked))
    others = train.take(np.setdiff1d(np.arange(len(train)), left_out))
    return Sides(
        test.take(asked),
        rest.with_rows_of(others),
        protocol,
        seed,
        [train.ids[i] for i in left_out.tolist()],
    )


def _rows(path: Path, images: Labelled, ids: list[Json]) -> Rows:
    row: dict[Json, int] = {name: i for i, name in enumerate(images.ids)}
    missing = next((name for name in ids if name not in row), None)
    if missing is not None:
        raise Mismatch(
            f"image '{missing}' of the draw {path} is not among the embeddings; name another file"
        )
    return np.array([row[name] for name in ids], np.int64)


def _drawn(images: Labelled, count: int, what: str, generator: np.random.Generator) -> Rows:
    """Return `count` random rows of each class, ascending."""
    return draw_of_each_class(
        np.array(images.labels, dtype=object),
        images.classes(),
        count,
        generator,
        why=f"the protocol draws {count} {what} of each class",
        remedy="use official or unseen",
    )
