"""Find near-identical images: propose pairs, and confirm them by pixels.

Exact copies are found by the hashes of their bytes. Only one of them takes part in what follows.

Two ways propose pairs. Copies of an image have near embeddings, but other images do, too, and a
rotated copy may not. So each image is compared with its nearest neighbors. In addition, a search
over small thumbnails finds the pairs that are similar in one of eight turns: mirrored or not,
rotated by 0, 90, 180 or 270 degrees. A comparison at 16 × 16 pixels rules out most pairs. For the
other pairs, the images are read again, and `retrieval.pairs.likeness` decides.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Framing, Json, Metric, Rows, Vectors
from retrieval.errors import BadImage, BadInput, Mismatch
from retrieval.images import read_image
from retrieval.pairs.crops.search import CropSearch
from retrieval.pairs.draw import Pairs, pair_distances
from retrieval.pairs.exact_copies import Distinct
from retrieval.pairs.likeness import (
    AS_IT_IS,
    MAX_SIDE,
    TURNS,
    Frame,
    Turn,
    framed,
    likeness,
    turned,
)
from retrieval.pairs.match import EXACT, Crop, Match
from retrieval.pairs.stored import StoredThumbnails
from retrieval.pairs.thumbnails import Thumbnails, indexer_for
from retrieval.quality.labelled import Labelled
from retrieval.runtime.threads import usable_cores

NEIGHBORS = 10  # neighbors that an image is compared with by pixels
MIN_CORRELATION = 0.95  # near-identical images have at least this correlation
MAX_CACHED_FRAMES = 2048  # each takes at most 200 kB
MAX_COMPARED_PAIRS = 200_000  # pairs of neighbors that are compared by pixels, the nearest ones
MIN_ADVANTAGE = 1e-3  # in correlation, of a turned image over one as it is

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two near-identical images: a row in the first set and a row in the second.

    distance: of the embeddings. correlation: of the pixels, at most 1. mirrored, rotated: how the
    first image is turned for this correlation; see `Turn`. exact: the files have the same bytes.
    crop: None unless one image is a crop of the other.
    """

    first: int
    second: int
    distance: float
    correlation: float
    mirrored: bool
    rotated: int = 0
    crop: Crop | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """Duplicates between two sets, or within one set; exact copies and high correlations first.

    Of several exact copies, only the first row takes part in pairs with other images.

    compared: number of pairs that were compared by pixels. proposed: number of pairs of neighbors.
    distinct: the images without their exact copies. matches: their pairs that are near-identical,
    the smaller number first. comparison: compares them. cropping: finds crops among them; None if
    they were not asked for.
    """

    first: Labelled
    second: Labelled
    duplicates: list[Duplicate]
    compared: int
    proposed: int
    unreadable: list[BadImage]
    distinct: Distinct
    matches: dict[tuple[int, int], Match]
    comparison: "Comparison"
    cropping: CropSearch | None = None

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
                "rotated": pair.rotated,
                "exact": pair.exact,
                "crop": pair.crop and ("b" if pair.crop.of_first else "a"),
                "box": pair.crop and [round(share, 4) for share in pair.crop.box],
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
    turns: Sequence[Turn] = TURNS,
    crops: bool = False,
    contents: Sequence[Sequence[bytes | None]] | None = None,
    stored: Sequence[StoredThumbnails] | None = None,
    progress: Progress = lambda done, total: None,
) -> Duplicates:
    """Return near-identical images within `first`, or for each image of `first` in `second`.

    neighbors: number of neighbors that each image is compared with by pixels.
    least: minimum correlation of the pixels. A value below MIN_CORRELATION also lets single pixels
        differ by more, in proportion.
    turns: how images are turned; `(AS_IT_IS,)` for neither mirrored nor rotated ones.
    crops: also find images that are crops of others, among the same neighbors; see
        `retrieval.pairs.crops.rectangle`.
    contents: for each set, the hash of each image's bytes, as `current_contents` returns them.
    stored: for each set, the thumbnails that it holds. Images without one are read.
    progress: called with the images whose thumbnail is there, and their total.

    Raises BadInput if a row has no path of an image, no image can be read, or a number is out of
    range; Mismatch if the sets differ in dimension.
    """
    metric = choice(Metric, metric)
    _check(first, second, neighbors, least)
    sets = (first,) if second is None else (first, second)
    distinct = Distinct.of(contents or [[None] * len(each) for each in sets])
    paths, vectors = [each.all_paths() for each in sets], [each.vectors for each in sets]
    places = distinct.firsts()
    images = np.stack([vectors[part][row] for part, row in places])
    members = [np.unique(numbers) for numbers in distinct.of_rows]
    a, b, distances = _proposed(images, members, metric, neighbors)
    nearest = np.argsort(distances, kind="stable")[:MAX_COMPARED_PAIRS]
    where = [paths[part][row] for part, row in places]
    thumbnails = Thumbnails.read(where, progress, _gathered(stored, places))
    comparison = Comparison.of(where, thumbnails, least, turns)
    compared = comparison.with_partners(a[nearest], b[nearest], members)
    matches = comparison.matches(*compared)
    cropping = comparison.crop_search() if crops else None
    if cropping is not None:
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        others = np.array([pair not in matches for pair in pairs], np.bool_)
        matches |= cropping.matches(a[others], b[others])
    return Duplicates(
        first,
        sets[-1],
        _duplicates(images, distinct, matches, metric),
        len(compared[0]),
        len(compared[0]) + len(a) - len(nearest),
        [*thumbnails.unreadable, *comparison.unreadable.values()],
        distinct,
        matches,
        comparison,
        cropping,
    )


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


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Compares images, by number, by their pixels. Thread-safe.

    least: minimum correlation of near-identical images. unreadable: errors of images that have a
    stored thumbnail, by path.
    """

    paths: Sequence[str]
    thumbnails: Thumbnails
    least: float
    turns: Sequence[Turn]
    frame: Callable[[str], Frame | None]
    unreadable: dict[str, BadImage]

    @classmethod
    def of(
        cls, paths: Sequence[str], thumbnails: Thumbnails, least: float, turns: Sequence[Turn]
    ) -> "Comparison":
        """Return the comparison of the images. Raises BadInput if none could be read."""
        if not thumbnails.known.any():
            raise BadInput(
                f"none of the {len(paths):,} images could be read, the first is "
                f"{thumbnails.unreadable[0]}; if their folder was moved, name the new one with "
                "--root"
            )
        unreadable: dict[str, BadImage] = {}

        def read(path: str) -> Frame | None:
            try:
                return framed(read_image(path, Framing(MAX_SIDE)))
            except BadImage as error:
                unreadable[path] = error
                return None

        frame = lru_cache(MAX_CACHED_FRAMES)(read)
        return cls(paths, thumbnails, least, turns, frame, unreadable)

    def with_partners(self, a: Rows, b: Rows, members: Sequence[Rows]) -> tuple[Rows, Rows]:
        """Return the pairs (n,), and those that thumbnails add, each once."""
        least = max(self.least, MIN_CORRELATION)  # a lower one has too many pairs
        second = None if len(members) == 1 else members[1]
        more_a, more_b = self.thumbnails.partners(members[0], second, least)
        likely = self.thumbnails.alike(more_a, more_b, self.least, self.turns).any(axis=1)
        pairs = np.stack(
            (np.concatenate((a, more_a[likely])), np.concatenate((b, more_b[likely]))), axis=1
        )
        a, b = np.unique(pairs, axis=0).T
        return a, b

    def crop_search(self) -> CropSearch:
        """Return the search for crops among the images."""
        tolerance = tolerance_of(self.least)
        return CropSearch.of(self.paths, self.thumbnails, self.least, tolerance, self.unreadable)

    def matches(self, a: Rows, b: Rows) -> dict[tuple[int, int], Match]:
        """Return the pairs (n,) that are near-identical, and how."""
        alike = self.thumbnails.alike(a, b, self.least, self.turns)

        def compare(pair: int) -> Match | None:
            turns = [turn for turn, may in zip(self.turns, alike[pair], strict=True) if may]
            return self._match(int(a[pair]), int(b[pair]), turns)

        likely = np.flatnonzero(alike.any(axis=1))
        with ThreadPoolExecutor(usable_cores()) as threads:
            return {
                (int(a[pair]), int(b[pair])): match
                for pair, match in zip(likely, threads.map(compare, likely), strict=True)
                if match is not None
            }

    def _match(self, a: int, b: int, turns: Sequence[Turn]) -> Match | None:
        """Return the likeness in the best of the turns; None if it is too low in each.

        An image that can no longer be read gives None, too.
        """
        one, two = self.frame(self.paths[a]), self.frame(self.paths[b])
        if one is None or two is None:
            return None
        tolerance = tolerance_of(self.least)
        found = [
            Match(correlation, turn)
            for turn in turns
            if (correlation := likeness(turned(one, turn), two, tolerance))
            and correlation >= self.least
        ]
        return max(
            found,
            key=lambda match: match.correlation - MIN_ADVANTAGE * (match.turn != AS_IT_IS),
            default=None,
        )


def tolerance_of(least: float) -> float:
    """Return the factor on differences of single pixels for this minimum correlation."""
    return max(1.0, (1 - least) / (1 - MIN_CORRELATION))


def _gathered(
    stored: Sequence[StoredThumbnails] | None, places: Sequence[tuple[int, int]]
) -> StoredThumbnails | None:
    """Return the thumbnails of the images at these places: sets and rows. None for None."""
    if stored is None:
        return None
    part, row = np.array(places, np.int64).reshape(-1, 2).T
    found = StoredThumbnails(
        np.zeros((len(places), *stored[0].pixels.shape[1:]), np.uint8),
        np.zeros(len(places), np.bool_),
    )
    for number, each in enumerate(stored):
        here = part == number
        found.pixels[here], found.known[here] = each.pixels[row[here]], each.known[row[here]]
    return found


def _proposed(
    images: Vectors, members: Sequence[Rows], metric: Metric, neighbors: int
) -> tuple[Rows, Rows, NDArray[np.float32]]:
    """Return pairs of neighbors: numbers of images, and distances, (n,).

    members: the images of the first set, and those of the second if there is one.
    """
    first, second = members[0], members[-1]
    index = indexer_for(len(second), metric).build(images[second])
    within = len(members) == 1
    wanted = min(neighbors + within, len(second))  # an image is its own neighbor
    hits = index.search(images[first], wanted)
    a = np.repeat(first, hits.rows.shape[1])
    b, distances = second[hits.rows.ravel()], hits.distances.ravel()
    there = (hits.rows.ravel() >= 0) & (a != b)
    a, b, distances = a[there], b[there], distances[there]
    if within:
        a, b = np.minimum(a, b), np.maximum(a, b)
    _, once = np.unique(a * len(images) + b, return_index=True)
    return a[once], b[once], distances[once]


def _duplicates(
    images: Vectors, distinct: Distinct, matches: dict[tuple[int, int], Match], metric: Metric
) -> list[Duplicate]:
    """Return the pairs of rows with their distances, the highest correlation first."""
    found = _pairs(distinct, matches)
    first, second = np.array([pair for pair, _ in found], np.int64).reshape(-1, 2).T
    one, two = distinct.of_rows[0][first], distinct.of_rows[-1][second]
    distances = pair_distances(images, Pairs(one, two, np.zeros(len(found), np.bool_)), metric)
    duplicates = [
        Duplicate(
            *pair, float(distance), match.correlation, *match.turn, match.crop, match is EXACT
        )
        for (pair, match), distance in zip(found, distances, strict=True)
    ]
    return sorted(
        duplicates, key=lambda pair: (not pair.exact, -pair.correlation, pair.first, pair.second)
    )


def _pairs(
    distinct: Distinct, matches: dict[tuple[int, int], Match]
) -> list[tuple[tuple[int, int], Match]]:
    """Return the pairs of rows of near-identical images, and of exact copies.

    Every row of the first set, and of the second, is in a pair if its image is in a match. Within
    one set, copies of an image have a pair with its first row only.
    """
    one, two = distinct.rows[0], distinct.rows[-1]
    if len(distinct.of_rows) == 1:
        copies = [((rows[0], row), EXACT) for rows in one for row in rows[1:]]
        return [*copies, *(((one[a][0], one[b][0]), each) for (a, b), each in matches.items())]
    same = {(image, image): EXACT for image, rows in enumerate(one) if rows and two[image]}
    return [
        (pair, match)
        for (a, b), match in (*same.items(), *matches.items())
        for pair in (
            *((one[a][0], row) for row in two[b]),
            *((row, two[b][0]) for row in one[a][1:]),
        )
    ]
