"""Thumbnails of images: propose pairs that may be near-identical, and rule pairs out.

The likeness of thumbnails is Pearson's correlation r of their pixels. The squared distance of
their patterns, which have length 1, is 2 - 2r.

Turning an image by 90° or mirroring it changes its discrete cosine transform in a simple way:
coefficients (u, v) and (v, u) change places, and some change their sign. So the larger and the
smaller absolute value of each such two stay the same. The distance of two lists of these values is
at most that of the patterns, however the images are turned. A search within a radius therefore
misses no pair with a correlation above a limit.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Framing, Images, Indexer, Metric, Rows, Vectors
from retrieval.errors import BadImage
from retrieval.images import read_each
from retrieval.images.pixels.thumbnail import thumbnail
from retrieval.pairs.likeness import Patterns, Turn, turned_pixels
from retrieval.pairs.stored import StoredThumbnails
from retrieval.registry import make_indexer
from retrieval.runtime.threads import usable_cores
from retrieval.storage.sets.manifest import THUMBNAIL_SIDE

SIDE = THUMBNAIL_SIDE
FREQUENCIES = (6, 3, 3)  # lowest ones of each axis: luma, and two differences of colors
MAX_PARTNERS = 10  # nearest ones of each image
MAX_EXACT_IMAGES = 20_000  # neighbors among more are searched in the nearest clusters
N_PROBE = 8  # clusters searched
BLOCK_SIZE = 1024  # images read, and pairs compared, in one step
ROUNDING = 1e-4  # of squared distances

# Luma and two differences of colors: an orthonormal basis, so that distances stay the same.
_COLORS = np.array(((1, 1, 1), (1, -1, 0), (1, 1, -2))) / np.sqrt(((3,), (2,), (6,)))

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Thumbnails (n, SIDE, SIDE, 3) of images.

    known: (n,), False for an image that could not be read. unreadable: the errors of these.
    """

    pixels: Images
    known: NDArray[np.bool_]
    unreadable: list[BadImage]

    @classmethod
    def read(
        cls, paths: Sequence[str], progress: Progress, stored: StoredThumbnails | None = None
    ) -> Self:
        """Return the stored thumbnails of the images (n,), and read those that are not known.

        `progress` is called with the number of images that are known or read, and of all.
        """
        pixels = np.zeros((len(paths), SIDE, SIDE, 3), np.uint8)
        known = np.zeros(len(paths), np.bool_)
        if stored is not None:
            pixels, known = stored.pixels.copy(), stored.known.copy()
        unreadable: list[BadImage] = []
        missing = np.flatnonzero(~known)
        ready = len(paths) - len(missing)
        for start in range(0, len(missing), BLOCK_SIZE):
            rows = missing[start : start + BLOCK_SIZE].tolist()
            each = read_each([paths[row] for row in rows], Framing(SIDE), thumbnail)
            for row, found in zip(rows, each, strict=True):
                if isinstance(found, BadImage):
                    unreadable.append(found)
                else:
                    pixels[row], known[row] = found, True
            progress(ready + start + len(rows), len(paths))
        return cls(pixels, known, unreadable)

    @cached_property
    def spectra(self) -> NDArray[np.float32]:
        """Return the lowest coefficients (n, 3, u, v) of the patterns' cosine transforms.

        Colors are luma and two differences, and u is the vertical frequency.
        """
        return np.concatenate([_spectra(patterns) for patterns in self._patterns()])

    @cached_property
    def noise(self) -> NDArray[np.float32]:
        """Return the noise (n,) of the patterns."""
        return np.concatenate([patterns.noise for patterns in self._patterns()])

    @cached_property
    def invariants(self) -> Vectors:
        """Return values (n, dim) that turning an image does not change.

        Their distance is at most that of the images' patterns, however these are turned.
        """
        columns = [self.noise[:, None]]
        for found, count in zip(np.abs(self.spectra.swapaxes(0, 1)), FREQUENCIES, strict=True):
            u, v = np.triu_indices(count, 1)
            upper, lower = found[:, u, v], found[:, v, u]
            same = np.arange(1, count)  # the mean, at 0, was subtracted
            columns += [np.maximum(upper, lower), np.minimum(upper, lower), found[:, same, same]]
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def _patterns(self) -> Iterator[Patterns]:
        for start in range(0, len(self.pixels), BLOCK_SIZE):
            yield Patterns.of(self.pixels[start : start + BLOCK_SIZE])

    def alike(self, a: Rows, b: Rows, least: float, turns: Sequence[Turn]) -> NDArray[np.bool_]:
        """Return whether thumbnails a and b correlate, for each turn of a: (pairs, turns)."""
        found = np.zeros((len(a), len(turns)), np.bool_)

        def compare(start: int) -> None:
            some = slice(start, start + BLOCK_SIZE)
            rows = start + np.flatnonzero(self._may_be_alike(a[some], b[some], least))
            squares = np.square(self.noise[a[rows]] - self.noise[b[rows]])
            one, two = self.spectra[a[rows]], self.spectra[b[rows]]
            for i, turn in enumerate(turns):
                apart = turned_spectra(one, turn) - two
                distances = squares + np.einsum("ncuv,ncuv->n", apart, apart)
                likely = rows[distances <= _squared_radius(least)]
                if len(likely):
                    pictured = Patterns.of(self.pixels[b[likely]])
                    turned = Patterns.of(turned_pixels(self.pixels[a[likely]], turn))
                    found[likely, i] = turned.correlations(pictured) >= least

        with ThreadPoolExecutor(usable_cores()) as threads:
            list(threads.map(compare, range(0, len(a), BLOCK_SIZE)))
        return found

    def _may_be_alike(self, a: Rows, b: Rows, least: float) -> NDArray[np.bool_]:
        apart = self.invariants[a] - self.invariants[b]
        near: NDArray[np.bool_] = np.einsum("nd,nd->n", apart, apart) <= _squared_radius(least)
        return near & self.known[a] & self.known[b]

    def partners(self, first: Rows, second: Rows | None, least: float) -> tuple[Rows, Rows]:
        """Return pairs of thumbnails that may correlate, in any turn, at least by `least`.

        first, second: rows of the thumbnails; each pair has one of both. second: None for pairs
        within the first. Of each image, MAX_PARTNERS pairs at most, the nearest. Among more than
        MAX_EXACT_IMAGES, a pair may be missed.
        """
        first = first[self.known[first]]
        within = second is None
        second = first if second is None else second[self.known[second]]
        if not len(first) or not len(second):
            return first[:0], second[:0]
        index = indexer_for(len(second), Metric.EUCLIDEAN).build(self.invariants[second])
        hits = index.search(self.invariants[first], min(MAX_PARTNERS + within, len(second)))
        near = (hits.rows >= 0) & (hits.distances**2 <= _squared_radius(least))
        a = np.repeat(first, near.sum(axis=1))
        b = second[hits.rows[near]]
        if within:
            a, b = np.minimum(a, b), np.maximum(a, b)
        a, b = np.unique(np.stack((a, b), axis=1)[a != b], axis=0).T
        return a, b


def indexer_for(rows: int, metric: Metric | str) -> Indexer:
    """Return the backend that finds neighbors among this number of rows in seconds."""
    metric = choice(Metric, metric)
    if rows <= MAX_EXACT_IMAGES:
        return make_indexer("exact", {"metric": metric})
    # Each image is searched once, so that few lists, which are made in less time, are best.
    return make_indexer("ivf", {"metric": metric, "n_lists": 2 * isqrt(rows), "n_probe": N_PROBE})


def turned_spectra(spectra: NDArray[np.float32], turn: Turn) -> NDArray[np.float32]:
    """Return the spectra (n, 3, u, v) of the turned images."""
    signs = (1 - 2 * (np.arange(spectra.shape[-1]) % 2)).astype(np.float32)
    if turn.mirrored:
        spectra = spectra * signs
    for _ in range(turn.rotated // 90):  # upside down, and rows for columns
        spectra = (spectra * signs[:, None]).swapaxes(-1, -2)
    return spectra


def _squared_radius(least: float) -> float:
    return 2 - 2 * least + ROUNDING


def _spectra(patterns: Patterns) -> NDArray[np.float32]:
    places = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    waves = np.cos(np.arange(max(FREQUENCIES))[:, None] * places) * (2 / SIDE) ** 0.5
    waves[0] *= 0.5**0.5
    waves = waves.astype(np.float32)
    colors = np.moveaxis(patterns.units @ _COLORS.T.astype(np.float32), 3, 1)
    spectra = np.ascontiguousarray(waves @ colors @ waves.T)
    for color, count in enumerate(FREQUENCIES):
        spectra[:, color, count:] = 0
        spectra[:, color, :, count:] = 0
    return spectra
