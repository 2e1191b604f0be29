"""scikit-learn's digits: 1,797 gray images of 8×8, which come with the library.

The first 1,437 of them, four fifths, are the split `train`; the last 360 are `test`.
https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from retrieval.contracts import Images
from retrieval.images.source import Item, digest

NAME = "digits"
_SCALE = 16  # values are 0 to 16


@dataclass(frozen=True, slots=True, eq=False)
class DigitsSource:
    """One split of the digits."""

    split: str

    @property
    def name(self) -> str:
        """`digits/train` or `digits/test`."""
        return f"{NAME}/{self.split}"

    @property
    def fingerprint(self) -> str:
        """The sha256 of the split's pixels."""
        rows = self._rows()
        return digest([self.name, all_images()[rows.start : rows.stop].tobytes()])

    def __len__(self) -> int:
        return len(self._rows())

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the items from position `start` on."""
        images, labels = all_images(), _targets()
        for position, row in enumerate(self._rows()[start:], start):
            ident = f"{self.split}/{position:05}"
            yield Item(ident, str(labels[row]), f"{NAME}#{row}", images[row])

    def _rows(self) -> range:
        count = len(all_images())
        middle = count * 4 // 5
        return range(middle) if self.split == "train" else range(middle, count)


@cache
def all_images() -> Images:
    """Return all digits, (1797, 8, 8), from 0 to 255."""
    images: NDArray[np.float64] = load_digits().images
    return np.round(images * (255 / _SCALE)).astype(np.uint8)


@cache
def _targets() -> list[int]:
    return [int(target) for target in load_digits().target]
