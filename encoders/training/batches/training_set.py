"""Labeled images for training, in memory once, as bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoders.training import recipe
from encoders.training.earlier import open_earlier
from retrieval.contracts import Framing, Images, Json, Metric
from retrieval.errors import BadImage, BadInput, UnknownName
from retrieval.images import FAST_RESIZE_IMAGES, load, open_source
from retrieval.quality.draws import draw_of_each_class
from retrieval.storage.names import nfc

NO_LABEL = ""
"""Class name of images without a label."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """Images (n, side, side, 3), their labels (n,) as numbers, the labels' names, the images' ids.

    clusters: (n,), of training images if `data.clusters` is set, else 0.
    training, held_out: rows to train on, and rows that are only scored.
    """

    images: Images
    labels: NDArray[np.int64]
    clusters: NDArray[np.int64]
    names: tuple[str, ...]
    ids: tuple[str, ...]
    training: NDArray[np.int64]
    held_out: NDArray[np.int64]
    source: str
    fingerprint: str
    clustered_by: str  # fingerprint of the encoder that found the clusters, or empty
    unreadable: tuple[str, ...] = ()  # errors of images that were left out
    also: tuple[str, ...] = ()  # names and fingerprints of the further sources

    def facts(self) -> dict[str, Json]:
        """Return the facts about the data for a card."""
        facts: dict[str, Json] = {
            "source": self.source,
            "sha256": self.fingerprint,
            "images": len(self.training),
            "held_out": len(self.held_out),
        }
        if self.clustered_by:
            facts["clustered_by"] = self.clustered_by
        if self.also:
            facts["also_seen"] = [*self.also]
        if self.unreadable:
            facts["unreadable"] = [*self.unreadable]
        return facts


def read_training_set(
    settings: recipe.Data, framing: Framing, seed: int, folder: Path | None = None
) -> TrainingSet:
    """Return the images that the recipe selects, framed, without those that cannot be read.

    seed: seed of the random draws. folder: folder of data sets.

    Raises UnknownName for a class that a source lacks, BadInput for a class with too few images,
    or a class that two sources have.
    """
    generator = np.random.default_rng(seed)
    wanted = [
        recipe.Also(settings.source, settings.classes, settings.per_class),
        *settings.also,
    ]
    parts = [_read_part(each, framing, generator, folder) for each in wanted]
    _check_classes(parts)
    names = tuple(sorted(name for part in parts for name in part.names))
    number = {name: i for i, name in enumerate(names)}
    labels = [number[part.names[label]] for part in parts for label in part.labels.tolist()]
    first, *others = parts
    ids = [*first.ids, *(f"{part.source}: {name}" for part in others for name in part.ids)]
    if settings.validation >= len(ids):
        raise BadInput(
            f"data.validation {settings.validation:,} leaves none of {len(ids):,} images to "
            "train on; set it lower"
        )
    images = np.concatenate([part.images for part in parts]) if others else first.images
    order = generator.permutation(len(ids))
    training = np.sort(order[settings.validation :])
    clusters, clustered_by = _clustered(settings, images, training, framing, seed)
    return TrainingSet(
        images,
        np.array(labels, np.int64),
        clusters,
        names,
        tuple(ids),
        training,
        np.sort(order[: settings.validation]),
        first.source,
        first.fingerprint,
        clustered_by,
        tuple(reason for part in parts for reason in part.unreadable),
        tuple(fact for part in others for fact in (part.source, part.fingerprint)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The images (n, side, side, 3) of one source, with labels (n,) as numbers of its names."""

    images: Images
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    ids: list[str]
    source: str
    fingerprint: str
    unreadable: list[str]


def _read_part(
    settings: recipe.Also, framing: Framing, generator: np.random.Generator, folder: Path | None
) -> _Part:
    source = open_source(settings.source, data_dir=folder)
    given = [item.label or NO_LABEL for item in source.items()]
    names = _classes(settings, given)
    number = {name: i for i, name in enumerate(names)}
    rows = np.array([row for row, name in enumerate(given) if name in number])
    labels = np.array([number[given[row]] for row in rows], np.int64)
    drawn = _drawn(labels, names, settings.per_class, generator)
    rows, labels = rows[drawn], labels[drawn]
    ids: list[str] = []
    read: list[int] = []
    unreadable: list[str] = []
    images = np.empty((len(rows), framing.side, framing.side, 3), np.uint8)
    wanted = set(rows.tolist())
    chosen = (item for row, item in enumerate(source.items()) if row in wanted)
    for place, item in enumerate(chosen):
        try:
            images[len(ids)] = load(item, framing, len(rows) >= FAST_RESIZE_IMAGES)
        except BadImage as error:
            unreadable.append(str(error))
            continue
        ids.append(item.id)
        read.append(place)
    return _Part(
        images[: len(ids)], labels[read], names, ids, source.name, source.fingerprint, unreadable
    )


def _check_classes(parts: Sequence[_Part]) -> None:
    """Raise BadInput for a class, or a source, that is there twice."""
    owner: dict[str, str] = {}
    for part in parts:
        for name in (part.source, *part.names):
            if name in owner:
                raise BadInput(
                    f"data.also: {owner[name]} and {part.source} both have '{name}'; name the "
                    "classes of each with classes, or leave one out"
                )
            owner[name] = part.source


def _classes(settings: recipe.Also, labels: Iterable[str]) -> tuple[str, ...]:
    there = set(labels)
    wanted = {*map(nfc, settings.classes)}
    for name in sorted(wanted - there):
        raise UnknownName(f"class of {settings.source}", name, there)
    return tuple(sorted(wanted or there))


def _clustered(
    settings: recipe.Data,
    images: Images,
    training: NDArray[np.int64],
    framing: Framing,
    seed: int,
) -> tuple[NDArray[np.int64], str]:
    """Return the cluster (n,) of each training image, and the fingerprint of the encoder for it.

    Clusters are those of k-means over the embeddings, on the unit sphere for cosines. Training on
    clusters of a network's features is from Caron et al., Deep Clustering for Unsupervised
    Learning of Visual Features, arXiv:1807.05520.
    """
    clusters = np.zeros(len(images), np.int64)
    if not settings.clusters:
        return clusters, ""
    from sklearn.cluster import KMeans  # slow to import
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    encoder = open_earlier("data.clustered_by", settings.clustered_by)
    if encoder.framing != framing:
        raise BadInput(
            f"data.clustered_by: {encoder.name} takes images of {encoder.framing.side} pixels, and "
            f"data.side is {framing.side}; set it to that, or name another encoder"
        )
    if settings.clusters > len(training):
        raise BadInput(
            f"data.clusters {settings.clusters:,} is more than the number of training images, "
            f"{len(training):,}; set it lower"
        )
    parts = np.split(training, range(1000, len(training), 1000))
    vectors = np.concatenate([encoder.encode(images[rows]) for rows in parts])
    if encoder.metric == Metric.COSINE:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    with threadpool_limits(1):  # threads would add in a random order
        found = KMeans(settings.clusters, n_init=1, random_state=seed).fit_predict(vectors)
    clusters[training] = found
    return clusters, encoder.fingerprint


def _drawn(
    labels: NDArray[np.int64],
    names: tuple[str, ...],
    per_class: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the places of `per_class` images of each class, or of all if it is 0, ascending."""
    if not per_class:
        return np.arange(len(labels))
    return draw_of_each_class(
        np.array(names, dtype=object)[labels],
        names,
        per_class,
        generator,
        why=f"data.per_class wants {per_class}",
        remedy="set it lower, or leave the class out with data.classes",
    )
