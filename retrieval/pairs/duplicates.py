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

NEIGHBORS = 10  # of each image that are compared with it by their pixels
LEAST_CORRELATION = 0.95  # of near-identical images
COARSE_SIDE = 16  # pixels of the whole images that are compared first
KEPT_FRAMES = 2048  # in memory while pairs are compared, each of 200 kB at most
MOST = 200_000  # pairs that are compared by pixels: the nearest
BLOCK = 1024  # images read, and pairs compared, at once

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two near-identical images, by their row in the first set and in the second.

    distance: of the embeddings. correlation: of the pixels, at most 1. mirrored: whether it is
    that of one image and the mirror image of the other.
    """

    first: int
    second: int
    distance: float
    correlation: float
    mirrored: bool


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """Duplicates between two sets, which may be one and the same, the most alike first.

    compared: how many pairs were compared by pixels; proposed: how many the embeddings proposed.
    """

    first: Labelled
    second: Labelled
    duplicates: list[Duplicate]
    compared: int
    proposed: int
    unreadable: list[BadImage]

    def rows(self) -> list[dict[str, Json]]:
        """Each pair, as `retr duplicates` writes it."""
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
    """Near-identical images within `first`, or for each image of `first` in `second`.

    neighbors: how many of each image are compared with it by pixels. least: the correlation of
    the pixels from which images count as near-identical; below LEAST_CORRELATION, single pixels may
    differ by more, in proportion. progress: is told how many images are read, of how many.

    Raises BadInput where rows do not say where their image is, or a number is out of range, and
    Mismatch for embeddings of unlike dimensions.
    """
    metric = choice(Metric, metric)
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
    paths = first.all_paths()
    behind = 0  # of all paths, where those of the second set begin
    if second is not None:
        behind = len(paths)
        paths += second.all_paths()
    a, b, distances = _proposed(first, second, metric, neighbors)
    proposed = len(a)
    nearest = np.argsort(distances, kind="stable")[:MOST]
    a, b, distances = a[nearest], b[nearest], distances[nearest]
    pixels, place, unreadable = _read(paths, np.union1d(a, behind + b), progress)
    close = _close(pixels, place[a], place[behind + b], least)
    frame_of = lru_cache(KEPT_FRAMES)(_read_frame)
    tolerance = max(1.0, (1 - least) / (1 - LEAST_CORRELATION))

    def compared(pair: int) -> Duplicate | None:
        one, two = frame_of(paths[a[pair]]), frame_of(paths[behind + b[pair]])
        if one is None or two is None:
            return None
        found = [
            (correlation, turned)
            for turned in (False, True)
            if close[pair, int(turned)]
            and (correlation := likeness(mirrored(one) if turned else one, two, tolerance))
            and correlation >= least
        ]
        if not found:
            return None
        correlation, turned = max(found, key=lambda each: each[0])
        return Duplicate(int(a[pair]), int(b[pair]), float(distances[pair]), correlation, turned)

    with ThreadPoolExecutor(usable_cores()) as threads:
        found = threads.map(compared, np.flatnonzero(close.any(axis=1)))
        duplicates = [pair for pair in found if pair is not None]
    duplicates.sort(key=lambda pair: (-pair.correlation, pair.first, pair.second))
    return Duplicates(first, other, duplicates, len(a), proposed, unreadable)


def _proposed(
    first: Labelled, second: Labelled | None, metric: Metric, neighbors: int
) -> tuple[Rows, Rows, NDArray[np.float32]]:
    """Rows of the first set and of the second, and their distance, of pairs of neighbors."""
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
    """Pixels (n, side, side, 3) of the images wanted, at which place among these that of each path
    is, -1 where it is not, and what could not be read."""
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
    """(pairs, 2): whether images at places a and b correlate, as they are and mirrored.

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
    """The frame of an image; None where it has gone since it was read first."""
    try:
        return framed(read_image(path, Framing(LARGEST_SIDE)))
    except BadImage:
        return None
