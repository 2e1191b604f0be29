"""Near-identical images: proposed by their embeddings, confirmed by their pixels.

An encoder puts copies of an image next to each other, and much else as well; pixels tell these
apart, but comparing all pairs by them would take too long. So each image's nearest neighbours are
compared by their pixels, as they are and mirrored.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.contracts import Framing, Images, Json, Metric, Resample
from retrieval.cores import usable_cores
from retrieval.errors import BadImage, BadInput, Mismatch
from retrieval.images import frame, read_image
from retrieval.quality.labelled import Labelled
from retrieval.registry import make_indexer

NEIGHBORS = 10  # of each image that are compared with it by their pixels
LEAST_CORRELATION = 0.95  # of near-identical images
SEEN = Framing(side=32, resample=Resample.BILINEAR)  # what is compared; details are noise
MOST = 200_000  # pairs that are compared by pixels: the nearest
BLOCK = 1024  # pairs whose pixels are compared at once

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


@dataclass(frozen=True, slots=True)
class Found:
    """Duplicates, the most alike first; how many pairs were compared by pixels, of how many that
    the embeddings proposed; and the images that could not be read."""

    duplicates: list[Duplicate]
    compared: int
    proposed: int
    unreadable: list[BadImage]


def find_duplicates(
    first: Labelled,
    second: Labelled | None,
    metric: Metric,
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
    a, b, distances = _proposed(first, second, metric, neighbors)
    proposed = len(a)
    nearest = np.argsort(distances, kind="stable")[:MOST]
    a, b, distances = a[nearest], b[nearest], distances[nearest]
    pixels = _Pixels(_paths_of(first), None if second is None else _paths_of(second))
    pixels.read(a, b, progress)
    duplicates = [
        Duplicate(int(a[i]), int(b[i]), float(distances[i]), correlation, mirrored)
        for i, correlation, mirrored in pixels.correlations(a, b)
        if correlation >= least
    ]
    duplicates.sort(key=lambda pair: (-pair.correlation, pair.first, pair.second))
    return Found(duplicates, len(a), proposed, pixels.unreadable)


def _proposed(
    first: Labelled, second: Labelled | None, metric: Metric, neighbors: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
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


def _paths_of(images: Labelled) -> list[str]:
    paths = images.known_paths()
    if None in paths:
        raise BadInput("the embeddings do not say where their images are; encode them anew")
    return [str(path) for path in paths]


class _Pixels:
    """The pixels of the images that are compared, read once each."""

    def __init__(self, first: Sequence[str], second: Sequence[str] | None) -> None:
        self.sets = [first] if second is None else [first, second]
        self.images: list[NDArray[np.uint8]] = []
        self.place: list[NDArray[np.int64]] = []  # of each row in these; -1: not read
        self.unreadable: list[BadImage] = []

    def read(self, a: NDArray[np.int64], b: NDArray[np.int64], progress: Progress) -> None:
        """Read the images of these pairs."""
        rows = (
            [np.unique(np.concatenate((a, b)))]
            if len(self.sets) == 1
            else [*map(np.unique, (a, b))]
        )
        total, done = sum(map(len, rows)), 0
        with ThreadPoolExecutor(usable_cores()) as threads:
            for paths, wanted in zip(self.sets, rows, strict=True):
                images = np.zeros((len(wanted), SEEN.side, SEEN.side, 3), np.uint8)
                place = np.full(len(paths), -1)
                for i, found in enumerate(threads.map(_read, (paths[row] for row in wanted))):
                    if isinstance(found, BadImage):
                        self.unreadable.append(found)
                    else:
                        images[i] = found
                        place[wanted[i]] = i
                    done += 1
                    progress(done, total)
                self.images.append(images)
                self.place.append(place)

    def correlations(
        self, a: NDArray[np.int64], b: NDArray[np.int64]
    ) -> Iterator[tuple[int, float, bool]]:
        """Of each pair both of whose images were read: its number, the correlation of the
        pixels, and whether that is of a mirror image."""
        at_a, at_b = self.place[0][a], self.place[-1][b]
        known = np.flatnonzero((at_a >= 0) & (at_b >= 0))
        for start in range(0, len(known), BLOCK):
            pairs = known[start : start + BLOCK]
            one = self.images[0][at_a[pairs]]
            two = self.images[-1][at_b[pairs]]
            plain, turned = _correlation(one, two), _correlation(one, two[:, :, ::-1])
            yield from zip(
                pairs.tolist(),
                np.maximum(plain, turned).tolist(),
                (turned > plain).tolist(),
                strict=True,
            )


def _correlation(one: Images, two: Images) -> NDArray[np.float64]:
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


def _read(path: str) -> Images | BadImage:
    try:
        return frame(read_image(path, SEEN), SEEN)
    except BadImage as error:
        return error


def to_json(found: Found, first: Labelled, second: Labelled | None) -> dict[str, Json]:
    """As `retr duplicates --json` prints it."""
    other = first if second is None else second
    return {
        "duplicates": [
            {
                "a": str(first.ids[pair.first]),
                "b": str(other.ids[pair.second]),
                "label_a": first.labels[pair.first],
                "label_b": other.labels[pair.second],
                "distance": pair.distance,
                "correlation": pair.correlation,
                "mirrored": pair.mirrored,
            }
            for pair in found.duplicates
        ],
        "images": len(first) if second is None else [len(first), len(second)],
        "compared": found.compared,
        "proposed": found.proposed,
        "unreadable": [str(error) for error in found.unreadable],
    }
