"""Find near-identical images: propose them by embeddings, and confirm them by pixels.

Copies of an image have near embeddings, but other images do, too. Pixels distinguish them, but to
compare all pairs by pixels would take too long. So each image is compared by pixels with its
nearest neighbors only, as it is and mirrored. A comparison at 16 × 16 pixels rules out most pairs.
For the other pairs, the images are read again, and `retrieval.pairs.likeness` decides.
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
    MAX_SIDE,
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
MIN_CORRELATION = 0.95  # near-identical images have at least this correlation
COARSE_SIDE = 16  # pixels a side of the images that are compared first
MAX_CACHED_FRAMES = 2048  # each takes at most 200 kB
MAX_COMPARED_PAIRS = 200_000  # pairs that are compared by pixels, the nearest ones
BLOCK_SIZE = 1024  # images read, and pairs compared, in one step

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two near-identical images: a row in the first set and a row in the second.

    distance: of the embeddings. correlation: of the pixels, at most 1. mirrored: True if the
    correlation is that of one image and the mirrored other.
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
    least: float = MIN_CORRELATION,
    progress: Progress = lambda done, total: None,
) -> Duplicates:
    """Return near-identical images within `first`, or for each image of `first` in `second`.

    neighbors: number of neighbors that each image is compared with by pixels.
    least: minimum correlation of the pixels. A value below MIN_CORRELATION also lets single pixels
        differ by more, in proportion.
    progress: called with the images that were read, and their total.

    Raises BadInput if a row has no path of an image, no image can be read, or a number is out of
    range; Mismatch if the sets differ in dimension.
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
    read = np.union1d(a, second_start + b)
    pixels, place, unreadable = _read(paths, read, progress)
    if 0 < len(read) == len(unreadable):
        raise BadInput(
            f"none of the {len(read):,} images could be read, the first is {unreadable[0]}; "
            "if their folder was moved, name the new one with --root"
        )
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
    """Raise BadInput for numbers out of range and empty sets, Mismatch if dimensions differ."""
    if neighbors < 1:
        raise BadInput(f"neighbors is {neighbors}; give 1 or more")
    if not 0 < least <= 1:
        raise BadInput(f"the minimum correlation is {least}; give one above 0, up to 1")
    other = first if second is None else second
    if len(first) == 0 or len(other) == 0:
        raise BadInput("there are no embeddings to compare; encode some images first")
    if first.vectors.shape[1] != other.vectors.shape[1]:
        raise Mismatch(
            f"embeddings have {first.vectors.shape[1]} and {other.vectors.shape[1]} dimensions; "
            "encode both with the same encoder"
        )


class _Comparison:
    """Compares images by their pixels, with a cache of frames. Thread-safe."""

    def __init__(self, least: float) -> None:
        """least: minimum correlation of near-identical images."""
        self._least = least
        self._tolerance = max(1.0, (1 - least) / (1 - MIN_CORRELATION))
        self._frame = lru_cache(MAX_CACHED_FRAMES)(_read_frame)

    def __call__(
        self, path_a: str, path_b: str, close: NDArray[np.bool_]
    ) -> tuple[float, bool] | None:
        """Return the correlation, and whether an image was mirrored for it; None if it is too low.

        close: (2,), whether to compare the images as they are, and mirrored. An image that can no
        longer be read gives None, too.
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

    The second value is the position of each path in the pixels, -1 if it is not there.
    """
    pixels = np.zeros((len(wanted), COARSE_SIDE, COARSE_SIDE, 3), np.uint8)
    place = np.full(len(paths), -1)
    unreadable: list[BadImage] = []
    for start in range(0, len(wanted), BLOCK_SIZE):
        some = [paths[row] for row in wanted[start : start + BLOCK_SIZE]]
        coarse = read_each(some, Framing(COARSE_SIDE), lambda image: stretched(image, COARSE_SIDE))
        for i, found in enumerate(coarse, start):
            if isinstance(found, BadImage):
                unreadable.append(found)
            else:
                pixels[i], place[wanted[i]] = found, i
        progress(min(start + BLOCK_SIZE, len(wanted)), len(wanted))
    return pixels, place, unreadable


def _close(pixels: Images, a: Rows, b: Rows, least: float) -> NDArray[np.bool_]:
    """Return whether images correlate, as they are and mirrored, (pairs, 2).

    a, b: (pairs,), positions in the pixels. A position of -1 gives False.
    """
    close = np.zeros((len(a), 2), bool)
    patterns = Patterns.of(pixels)
    for start in range(0, len(a), BLOCK_SIZE):
        some = slice(start, start + BLOCK_SIZE)
        one, two = patterns.take(a[some]), patterns.take(b[some])
        close[some, 0] = one.correlations(two) >= least
        close[some, 1] = one.mirrored().correlations(two) >= least
    close[(a < 0) | (b < 0)] = False
    return close


def _read_frame(path: str) -> Frame | None:
    """Return the frame of an image; None if it can no longer be read."""
    try:
        return framed(read_image(path, Framing(MAX_SIDE)))
    except BadImage:
        return None
