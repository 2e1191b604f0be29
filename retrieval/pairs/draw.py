"""Draw pairs of images from a labelled set. A pair is alike if its images have the same label.

Half of the pairs are alike, so that a random guess is right half of the time.
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
"""(n,): the number of each row's class, -1 if it is unknown."""

DEFAULT_PAIRS = 10_000
BLOCK_PAIRS = 8_192  # pairs of a block, whose vectors fit into a processor's cache


class Scheme(StrEnum):
    """Schemes to draw pairs.

    RANDOM: a random image and a random image of its class, or of the other classes.
    CONSECUTIVE: each image and the next image of its class, then each image and the image at the
        same position in a random other class. This is the scheme of the Keras example of a Siamese
        network, which many have copied.
    """

    RANDOM = "random"
    CONSECUTIVE = "consecutive"


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pairs of rows, `first` (n,) and `second` (n,). alike: (n,), True for pairs of one class."""

    first: Rows
    second: Rows
    alike: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)

    def images(self) -> int:
        """Return the number of distinct images in the pairs."""
        return len(np.union1d(self.first, self.second))


def draw_pairs(
    labels: Labels, count: int | None, scheme: Scheme | str, seed: int | Sequence[int]
) -> Pairs:
    """Return random pairs, half of them alike.

    labels: (n,), the number of each row's class, -1 if unknown; or labels of any kind. Rows without
        a label are in no pair. A class with a single image is in no pair that is alike, and in no
        pair of CONSECUTIVE.
    count: number of pairs. None: 10,000 for RANDOM, all pairs for CONSECUTIVE.

    Raises BadInput if no pair can be drawn, for an odd count, and for more pairs than CONSECUTIVE
    has.
    """
    scheme = choice(Scheme, scheme)
    labels = _class_numbers(labels)
    if count is not None and (count < 2 or count % 2):
        raise BadInput(f"the number of pairs is {count}; give an even number, 2 or more")
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    classes, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    if len(classes) < 2:
        raise BadInput(
            f"pairs of different classes need 2 classes, and there are {len(classes)}; give images "
            "of more classes"
        )
    if sizes.max() < 2:
        raise BadInput(
            "pairs of one class need 2 images of a class, and each class has 1; give more images"
        )
    generator = np.random.default_rng(seed)
    if scheme is Scheme.CONSECUTIVE:
        return _consecutive(order, starts, sizes, count, generator)
    half = (DEFAULT_PAIRS if count is None else count) // 2
    return _random(order, starts, sizes, half, generator)


def _class_numbers(labels: Any) -> Labels:
    """Return the number (n,) of each label, in the order of labels; -1 if unknown.

    Integers are returned as they are.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        return labels
    texts = as_labels(labels)
    number = {name: i for i, name in enumerate(sorted({*texts} - {None}, key=str))}
    return np.array([-1 if name is None else number[name] for name in texts], np.int64)


def _random(
    order: Rows, starts: Rows, sizes: Rows, half: int, generator: np.random.Generator
) -> Pairs:
    """Draw `half` pairs that are alike, then `half` that are not.

    order: the rows, class by class. Class i has sizes[i] rows from starts[i] in `order`.
    """
    of_class = np.repeat(np.arange(len(sizes)), sizes)

    with_partner = np.flatnonzero(sizes[of_class] > 1)
    first = with_partner[generator.integers(len(with_partner), size=half)]
    start, size = starts[of_class[first]], sizes[of_class[first]]
    # Another row of the class: 1 to size - 1 steps ahead, in a circle.
    step = generator.integers(1, size)
    second = start + (first - start + step) % size

    other_first = generator.integers(len(order), size=half)
    start, size = starts[of_class[other_first]], sizes[of_class[other_first]]
    # A row of another class: positions after the class's start skip the class.
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
            f"{shortest + 1} images; ask for at most {all_pairs}, or use the scheme random"
        )
    place = np.arange(shortest)
    this = starts[:, None] + place  # (classes, shortest)
    # Another class: 1 to classes - 1 steps ahead, in a circle.
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
    """Return the distance (pairs,) between the two vectors of each pair. vectors: (n, dim)."""
    metric = choice(Metric, metric)
    distances = np.empty(len(pairs))

    def write(start: int) -> None:
        block = slice(start, start + BLOCK_PAIRS)
        first, second = vectors[pairs.first[block]], vectors[pairs.second[block]]
        distances[block] = pairwise(first.astype(np.float64), second.astype(np.float64), metric)

    with ThreadPoolExecutor(usable_cores()) as threads:
        list(
            threads.map(write, range(0, len(pairs), BLOCK_PAIRS))
        )  # list() raises the errors of threads
    return distances
