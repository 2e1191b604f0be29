"""Relations of two images that are alike: turned copies, exact copies and crops."""

from typing import NamedTuple

from retrieval.pairs.likeness import AS_IT_IS, Turn


class Box(NamedTuple):
    """Rectangle of an image, as shares of its width and height from the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float


class Crop(NamedTuple):
    """One image of a pair is a crop of the other.

    of_first: the second image is the crop, and the first is whole; else the other way around.
    box: the rectangle of the whole image that the crop shows.
    """

    of_first: bool
    box: Box


class Match(NamedTuple):
    """Likeness of two images: the correlation of the second and the turned first, at most 1.

    crop: None if both show the same whole picture. The correlation is that of the rectangle.
    """

    correlation: float
    turn: Turn
    crop: Crop | None = None

    def reversed(self) -> "Match":
        """Return the match of the second image and the first."""
        crop = self.crop and Crop(not self.crop.of_first, self.crop.box)
        return Match(self.correlation, self.turn.reversed(), crop)

    def in_words(self) -> str:
        """Return text such as `rotated 90°` or `crop`; empty if nothing is turned or cut."""
        return "crop" if self.crop else self.turn.in_words()


EXACT = Match(1.0, AS_IT_IS)
"""The match of files with the same bytes; compare with `is`."""
