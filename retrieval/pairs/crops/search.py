"""Find the pairs of images of which one is a crop of the other."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from retrieval.contracts import Framing, Rows
from retrieval.errors import BadImage
from retrieval.images import read_image
from retrieval.pairs.crops.candidates import window_correlations
from retrieval.pairs.crops.rectangle import CANVAS_SIDE, Canvas, Cut, find_crop
from retrieval.pairs.likeness import AS_IT_IS
from retrieval.pairs.match import Crop, Match
from retrieval.pairs.thumbnails import Thumbnails
from retrieval.runtime.threads import usable_cores

MAX_CACHED_CANVASES = 256  # each takes about a megabyte
MAX_COMPARED_CROPS = 50_000  # ordered pairs that are compared by pixels, by their thumbnails


@dataclass(frozen=True, slots=True, eq=False)
class CropSearch:
    """Finds crops among images, by number. Thread-safe.

    least: minimum correlation of the pixels. tolerance: as `likeness` takes it.
    """

    paths: Sequence[str]
    thumbnails: Thumbnails
    least: float
    tolerance: float
    canvas: Callable[[str], Canvas | None]

    @classmethod
    def of(
        cls,
        paths: Sequence[str],
        thumbnails: Thumbnails,
        least: float,
        tolerance: float,
        unreadable: dict[str, BadImage],
    ) -> "CropSearch":
        """Return the search among the images at these paths.

        unreadable: gets the errors of images that can no longer be read, by path.
        """

        def read(path: str) -> Canvas | None:
            try:
                return Canvas.of(read_image(path, Framing(CANVAS_SIDE)))
            except BadImage as error:
                unreadable[path] = error
                return None

        canvas = lru_cache(MAX_CACHED_CANVASES)(read)
        return cls(paths, thumbnails, least, tolerance, canvas)

    def matches(self, a: Rows, b: Rows) -> dict[tuple[int, int], Match]:
        """Return the pairs (n,) of which one is a crop of the other, in either order.

        Of all ordered pairs, MAX_COMPARED_CROPS are compared by pixels: those of which the whole
        image's thumbnail has the window that is most like the other thumbnail.
        """
        known = self.thumbnails.known[a] & self.thumbnails.known[b]
        a, b = a[known], b[known]
        wholes, parts = np.concatenate((a, b)), np.concatenate((b, a))
        if len(wholes) > MAX_COMPARED_CROPS:
            scores = window_correlations(self.thumbnails.pixels, wholes, parts)
            chosen = np.sort(np.argsort(-scores, kind="stable")[:MAX_COMPARED_CROPS])
        else:
            chosen = np.arange(len(wholes))
        found: dict[tuple[int, int], Match] = {}
        order = chosen[np.argsort(chosen % max(1, len(a)), kind="stable")]  # both orders together
        with ThreadPoolExecutor(usable_cores()) as threads:
            matched = threads.map(self._match, wholes[order].tolist(), parts[order].tolist())
            for at, match in zip(order.tolist(), matched, strict=True):
                if match is None:
                    continue
                of_first = at < len(a)
                pair = int(a[at % len(a)]), int(b[at % len(a)])
                if pair not in found or match.correlation > found[pair].correlation:
                    crop = Crop(of_first, match.box)
                    found[pair] = Match(match.correlation, AS_IT_IS, crop)
        return found

    def crops_of(self, whole: int, parts: Sequence[int]) -> dict[tuple[int, int], Match]:
        """Return the images of `parts` that are crops of `whole`, as pairs with it."""
        return {
            (whole, part): Match(cut.correlation, AS_IT_IS, Crop(True, cut.box))
            for part in parts
            if (cut := self._match(whole, part)) is not None
        }

    def _match(self, whole: int, part: int) -> Cut | None:
        one, two = self.canvas(self.paths[whole]), self.canvas(self.paths[part])
        if one is None or two is None:
            return None
        return find_crop(one, two, self.least, self.tolerance)
