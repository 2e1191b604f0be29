"""Pairs of images, drawn by seed from a labelled set: alike where the labels are.

Half of the pairs are alike, so that guessing is right half of the time. Every pair's answer follows
from the labels of its images and from nothing else.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadInput
from retrieval.labels import as_labels
from retrieval.quality.ranking import Distances, Rows, pairwise
from retrieval.runtime.threads import usable_cores

Labels = NDArray[np.int64]
"""(n,): the number of each row's class, -1 where it is unknown."""

PAIRS = 10_000
BLOCK = 8_192  # pairs whose distances are computed at once; their vectors fit a processor's cache


class Scheme(StrEnum):
    """Schemes to draw pairs.

    RANDOM: a random image, with a random one of its class, or of any other class.
    CONSECUTIVE: each image with the next of its class, then with the one at its own place in
        another class, which is drawn by seed: the scheme of the Keras example of a Siamese
        network, which many have copied.
    """

    RANDOM = "random"
    CONSECUTIVE = "consecutive"


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Rows `first` (n,) and `second` (n,), and whether they show the same class, `alike` (n,)."""

    first: Rows
    second: Rows
    alike: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)

    def images(self) -> int:
        """Number of images that are in any pair."""
        return len(np.union1d(self.first, self.second))


def draw_pairs(
    labels: Labels, count: int | None, scheme: Scheme | str, seed: int | Sequence[int]
) -> Pairs:
    """`count` pairs, half of them alike; None: 10,000, or in CONSECUTIVE all that there are.

    labels: (n,), the number of each row's class, -1 where it is unknown; or labels of any kind.
    Rows without a label are in no pair, and a class with a single image is in none that is alike,
    and in CONSECUTIVE in none at all.
    Raises BadInput where no pair can be drawn, for an odd count, and for more pairs than
    CONSECUTIVE has.
    """
    scheme = choice(Scheme, scheme)
    labels = _class_numbers(labels)
    if count is not None and (count < 2 or count % 2):
        raise BadInput(f"{count} pairs cannot be half alike; give an even number, 2 or more")
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    classes, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    if len(classes) < 2:
        raise BadInput(
            f"images of {len(classes)} classes make no pairs that differ; give 2 classes or more"
        )
    if sizes.max() < 2:
        raise BadInput("each class has a single image, so that no pair is alike; give more")
    generator = np.random.default_rng(seed)
    if scheme is Scheme.CONSECUTIVE:
        return _consecutive(order, starts, sizes, count, generator)
    half = (PAIRS if count is None else count) // 2
    return _random(order, starts, sizes, half, generator)


def _class_numbers(labels: Any) -> Labels:
    """Return the numbers as they are; labels of another kind by their order, -1 where one is
    unknown.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        return labels
    texts = as_labels(labels)
    number = {name: i for i, name in enumerate(sorted({*texts} - {None}, key=str))}
    return np.array([-1 if name is None else number[name] for name in texts], np.int64)


def _random(
    order: Rows, starts: Rows, sizes: Rows, half: int, generator: np.random.Generator
) -> Pairs:
    """`order` has the rows class by class; class i is sizes[i] of them from starts[i] on."""
    of_class = np.repeat(np.arange(len(sizes)), sizes)

    with_partner = np.flatnonzero(sizes[of_class] > 1)
    first = with_partner[generator.integers(len(with_partner), size=half)]
    start, size = starts[of_class[first]], sizes[of_class[first]]
    # One of the others of the class: the first itself is stepped over.
    step = generator.integers(1, size)
    second = start + (first - start + step) % size

    other_first = generator.integers(len(order), size=half)
    start, size = starts[of_class[other_first]], sizes[of_class[other_first]]
    # One of the rows outside of the class, which is stepped over.
    place = generator.integers(len(order) - size)
    other_second = np.where(place < start, place, place + size)

    return Pairs(
        order[np.concatenate((first, other_first))],
        order[np.concatenate((second, other_second))],
        np.arange(2 * half) < half,
    )


def _consecutive(
    order: Rows, starts: Rows, sizes: Rows, count: int | None, generator: np.random.Generator
) -> Pairs:
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    if len(sizes) < 2:
        raise BadInput("consecutive pairs need 2 classes of 2 images or more; give more images")
    shortest = int(sizes.min()) - 1
    all_pairs = 2 * len(sizes) * shortest
    if count is not None and count > all_pairs:
        raise BadInput(
            f"there are {all_pairs} consecutive pairs, as the smallest class has "
            f"{shortest + 1} images; ask for at most so many, or for the scheme random"
        )
    place = np.arange(shortest)
    this = starts[:, None] + place  # (classes, shortest)
    # Another class: 1 to classes - 1 steps on.
    steps = generator.integers(1, len(sizes), size=this.shape)
    others = (np.arange(len(sizes))[:, None] + steps) % len(sizes)
    first = order[this].reshape(-1)
    after = order[this + 1].reshape(-1)
    other = order[starts[others] + place].reshape(-1)
    if count is not None:
        chosen = np.sort(generator.permutation(len(first))[: count // 2])
        first, after, other = first[chosen], after[chosen], other[chosen]
    return Pairs(
        np.concatenate((first, first)),
        np.concatenate((after, other)),
        np.arange(2 * len(first)) < len(first),
    )


def pair_distances(vectors: Vectors, pairs: Pairs, metric: Metric | str) -> Distances:
    """(pairs,): how far the vectors (n, dim) of each pair are from each other."""
    metric = choice(Metric, metric)
    distances = np.empty(len(pairs))

    def write(start: int) -> None:
        block = slice(start, start + BLOCK)
        first, second = vectors[pairs.first[block]], vectors[pairs.second[block]]
        distances[block] = pairwise(first.astype(np.float64), second.astype(np.float64), metric)

    with ThreadPoolExecutor(usable_cores()) as threads:
        list(threads.map(write, range(0, len(pairs), BLOCK)))  # list() raises the errors of threads
    return distances
