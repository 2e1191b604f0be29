"""Near-identical images: proposed by their embeddings, confirmed by their pixels.

An encoder puts copies of an image next to each other, and much else as well; pixels tell these
apart, but comparing all pairs by them would take too long. So each image's nearest neighbors are
compared by their pixels, as they are and mirrored. Whole images at 16 × 16 pixels rule out most
pairs; `retrieval.pairs.likeness` decides on the others, whose images are read once more.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Framing, Images, Json, Metric, Rows
from retrieval.errors import BadImage, BadInput, Mismatch
from retrieval.images import read_each, read_image
from retrieval.pairs.likeness import (
    LARGEST_SIDE,
    Frame,
    Patterns,
    framed,
    likeness,
    mirrored,
    stretched,
)
from retrieval.quality.labelled import Labelled
from retrieval.registry import make_indexer
from retrieval.runtime.threads import usable_cores

NEIGHBORS = 10  # neighbors that an image is compared with by pixels
LEAST_CORRELATION = 0.95  # minimum correlation of near-identical images
COARSE_SIDE = 16  # pixels of the whole images that are compared first
KEPT_FRAMES = 2048  # in memory while pairs are compared, each of 200 kB at most
MAX_COMPARED_PAIRS = 200_000  # the nearest pairs are compared by pixels
BLOCK = 1024  # images read, and pairs compared, at once

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two near-identical images: a row in the first set and a row in the second.

    distance: of the embeddings. correlation: of the pixels, at most 1. mirrored: whether one of the
    images was mirrored for the correlation.
    """

    first: int
    second: int
    distance: float
    correlation: float
    mirrored: bool


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """Duplicates between two sets, or within one set; the highest correlation first.

    compared: number of pairs that were compared by pixels. proposed: number of pairs of neighbors.
    """

    first: Labelled
    second: Labelled
    duplicates: list[Duplicate]
    compared: int
    proposed: int
    unreadable: list[BadImage]

    def rows(self) -> list[dict[str, Json]]:
        """Return a row for each pair, as `retr duplicates` writes it."""
        return [
            {
                "a": self.first.ids[pair.first],
                "b": self.second.ids[pair.second],
                "label_a": self.first.labels[pair.first],
                "label_b": self.second.labels[pair.second],
                "distance": pair.distance,
                "correlation": pair.correlation,
                "mirrored": pair.mirrored,
            }
            for pair in self.duplicates
        ]


def find_duplicates(
    first: Labelled,
    second: Labelled | None,
    metric: Metric | str,
    *,
    neighbors: int = NEIGHBORS,
    least: float = LEAST_CORRELATION,
    progress: Progress = lambda done, total: None,
) -> Duplicates:
    """Return near-identical images within `first`, or for each image of `first` in `second`.

    neighbors: number of neighbors that each image is compared with by pixels.
    least: minimum correlation of the pixels. Below LEAST_CORRELATION, single pixels may differ by
        more, in proportion.
    progress: called with the images that were read, and their total.

    Raises BadInput where rows have no path of an image, or a number is out of range, and Mismatch
    for embeddings of different dimensions.
    """
    metric = choice(Metric, metric)
    _check(first, second, neighbors, least)
    paths = first.all_paths()
    second_start = 0  # position of the second set among all paths
    if second is not None:
        second_start = len(paths)
        paths += second.all_paths()
    a, b, distances = _proposed(first, second, metric, neighbors)
    proposed = len(a)
    nearest = np.argsort(distances, kind="stable")[:MAX_COMPARED_PAIRS]
    a, b, distances = a[nearest], b[nearest], distances[nearest]
    pixels, place, unreadable = _read(paths, np.union1d(a, second_start + b), progress)
    close = _close(pixels, place[a], place[second_start + b], least)
    compare = _Comparison(least)

    def compared(pair: int) -> Duplicate | None:
        found = compare(paths[a[pair]], paths[second_start + b[pair]], close[pair])
        if found is None:
            return None
        correlation, turned = found
        return Duplicate(int(a[pair]), int(b[pair]), float(distances[pair]), correlation, turned)

    with ThreadPoolExecutor(usable_cores()) as threads:
        found = threads.map(compared, np.flatnonzero(close.any(axis=1)))
        duplicates = [pair for pair in found if pair is not None]
    duplicates.sort(key=lambda pair: (-pair.correlation, pair.first, pair.second))
    other = first if second is None else second
    return Duplicates(first, other, duplicates, len(a), proposed, unreadable)


def _check(first: Labelled, second: Labelled | None, neighbors: int, least: float) -> None:
    """Raise BadInput for numbers out of range and for empty sets, Mismatch for other dimensions."""
    if neighbors < 1:
        raise BadInput(f"{neighbors} neighbors cannot be compared; give 1 or more")
    if not 0 < least <= 1:
        raise BadInput(f"a correlation of {least} marks no duplicates; give one above 0, up to 1")
    other = first if second is None else second
    if len(first) == 0 or len(other) == 0:
        raise BadInput("there are no embeddings to compare; encode some images first")
    if first.vectors.shape[1] != other.vectors.shape[1]:
        raise Mismatch(
            f"embeddings of {first.vectors.shape[1]} and of {other.vectors.shape[1]} dimensions "
            "cannot be compared; encode both with the same encoder"
        )


class _Comparison:
    """Compares images by their pixels; frames that were read are kept. Safe in threads."""

    def __init__(self, least: float) -> None:
        """least: the correlation from which images count as near-identical."""
        self._least = least
        self._tolerance = max(1.0, (1 - least) / (1 - LEAST_CORRELATION))
        self._frame = lru_cache(KEPT_FRAMES)(_read_frame)

    def __call__(
        self, path_a: str, path_b: str, close: NDArray[np.bool_]
    ) -> tuple[float, bool] | None:
        """Return the correlation and whether it is mirrored; None where it is too low.

        close: (2,), whether to compare the images as they are, and mirrored. None also where an
        image has gone.
        """
        a, b = self._frame(path_a), self._frame(path_b)
        if a is None or b is None:
            return None
        found = [
            (correlation, turned)
            for turned in (False, True)
            if close[int(turned)]
            and (correlation := likeness(mirrored(a) if turned else a, b, self._tolerance))
            and correlation >= self._least
        ]
        return max(found, key=lambda each: each[0], default=None)


def _proposed(
    first: Labelled, second: Labelled | None, metric: Metric, neighbors: int
) -> tuple[Rows, Rows, NDArray[np.float32]]:
    """Return pairs of neighbors: rows in the first set, rows in the second, and distances, (n,)."""
    other = first if second is None else second
    index = make_indexer("exact", {"metric": metric}).build(other.vectors)
    wanted = neighbors + 1 if second is None else neighbors  # an image is its own neighbor
    hits = index.search(first.vectors, min(wanted, len(other)))
    a = np.repeat(np.arange(len(first)), hits.rows.shape[1])
    b, distances = hits.rows.ravel(), hits.distances.ravel()
    if second is None:
        low, high = np.minimum(a, b), np.maximum(a, b)
        _, once = np.unique(low * len(first) + high, return_index=True)
        once = once[low[once] < high[once]]
        return low[once], high[once], distances[once]
    return a, b, distances


def _read(
    paths: Sequence[str], wanted: Rows, progress: Progress
) -> tuple[Images, Rows, list[BadImage]]:
    """Return pixels (n, side, side, 3) of the wanted images, and the images that cannot be read.

    The second value is the place of each path among the pixels, -1 where it is not.
    """
    pixels = np.zeros((len(wanted), COARSE_SIDE, COARSE_SIDE, 3), np.uint8)
    place = np.full(len(paths), -1)
    unreadable: list[BadImage] = []
    for start in range(0, len(wanted), BLOCK):
        some = [paths[row] for row in wanted[start : start + BLOCK]]
        coarse = read_each(some, Framing(COARSE_SIDE), lambda image: stretched(image, COARSE_SIDE))
        for i, found in enumerate(coarse, start):
            if isinstance(found, BadImage):
                unreadable.append(found)
            else:
                pixels[i], place[wanted[i]] = found, i
        progress(min(start + BLOCK, len(wanted)), len(wanted))
    return pixels, place, unreadable


def _close(pixels: Images, a: Rows, b: Rows, least: float) -> NDArray[np.bool_]:
    """Return whether images at places a and b correlate, as they are and mirrored: (pairs, 2).

    False where a place is -1.
    """
    close = np.zeros((len(a), 2), bool)
    patterns = Patterns.of(pixels)
    for start in range(0, len(a), BLOCK):
        some = slice(start, start + BLOCK)
        one, two = patterns.take(a[some]), patterns.take(b[some])
        close[some, 0] = one.correlations(two) >= least
        close[some, 1] = one.mirrored().correlations(two) >= least
    close[(a < 0) | (b < 0)] = False
    return close


def _read_frame(path: str) -> Frame | None:
    """Return the frame of an image; None where it has gone since the first reading."""
    try:
        return framed(read_image(path, Framing(LARGEST_SIDE)))
    except BadImage:
        return None
