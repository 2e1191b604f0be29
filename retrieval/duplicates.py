"""Near-identical images: proposed by their embeddings, confirmed by their pixels.

An encoder puts copies of an image next to each other, and much else as well; pixels tell these
apart, but comparing all pairs by them would take too long. So each image's nearest neighbours are
compared by their pixels, as they are and mirrored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Framing, Images, Json, Metric, Resample, Rows
from retrieval.errors import BadImage, BadInput, Mismatch
from retrieval.images import read_framed
from retrieval.quality.labelled import Labelled
from retrieval.registry import make_indexer

NEIGHBORS = 10  # of each image that are compared with it by their pixels
LEAST_CORRELATION = 0.95  # of near-identical images
SEEN = Framing(side=32, resample=Resample.BILINEAR)  # what is compared; details are noise
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
class Found:
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
) -> Found:
    """Near-identical images within `first`, or for each image of `first` in `second`.

    neighbors: how many of each image are compared with it by pixels. least: the correlation of
    the pixels, 32 × 32 of the centre, from which images count as near-identical. progress: is told
    how many images are read, of how many.

    Raises BadInput where rows do not say where their image is, or a number is out of range, and
    Mismatch for embeddings of unlike dimensions.
    """
    metric = choice(Metric, metric)
    if neighbors < 1:
        raise BadInput(f"{neighbors} neighbours cannot be compared; give 1 or more")
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
    duplicates: list[Duplicate] = []
    for start in range(0, len(a), BLOCK):
        some = slice(start, start + BLOCK)
        at_a, at_b = place[a[some]], place[behind + b[some]]
        one, two = pixels[at_a], pixels[at_b]
        plain, turned = _correlations(one, two), _correlations(one, two[:, :, ::-1])
        most = np.where((at_a >= 0) & (at_b >= 0), np.maximum(plain, turned), 0)
        duplicates += (
            Duplicate(
                int(a[start + i]),
                int(b[start + i]),
                float(distances[start + i]),
                float(most[i]),
                bool(turned[i] > plain[i]),
            )
            for i in np.flatnonzero(most >= least)
        )
    duplicates.sort(key=lambda pair: (-pair.correlation, pair.first, pair.second))
    return Found(first, other, duplicates, len(a), proposed, unreadable)


def _proposed(
    first: Labelled, second: Labelled | None, metric: Metric, neighbors: int
) -> tuple[Rows, Rows, NDArray[np.float32]]:
    """Rows of the first set and of the second, and their distance, of pairs of neighbours."""
    other = first if second is None else second
    index = make_indexer("exact", {"metric": metric}).build(other.vectors)
    wanted = neighbors + 1 if second is None else neighbors  # an image is its own neighbour
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
    pixels = np.zeros((len(wanted), SEEN.side, SEEN.side, 3), np.uint8)
    place = np.full(len(paths), -1)
    unreadable: list[BadImage] = []
    for start in range(0, len(wanted), BLOCK):
        some = [paths[row] for row in wanted[start : start + BLOCK]]
        for i, found in enumerate(read_framed(some, SEEN), start):
            if isinstance(found, BadImage):
                unreadable.append(found)
            else:
                pixels[i], place[wanted[i]] = found, i
        progress(min(start + BLOCK, len(wanted)), len(wanted))
    return pixels, place, unreadable


def _correlations(one: Images, two: Images) -> NDArray[np.float64]:
    """(n,): Pearson's, of images (n, side, side, 3). Of images of one colour: 1 if it is the same,
    else 0."""
    flat = [images.reshape(len(images), -1).astype(np.float64) for images in (one, two)]
    a, b = (values - values.mean(axis=1, keepdims=True) for values in flat)
    scale = np.sqrt(np.vecdot(a, a) * np.vecdot(b, b))
    same = (flat[0] == flat[1]).all(axis=1)
    values: NDArray[np.float64] = np.where(
        scale > 0, np.vecdot(a, b) / np.where(scale > 0, scale, 1), same
    )
    return np.minimum(values, 1)
