"""One query of pictures and words, and how their vectors become one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadInput, UnknownName
from retrieval.images import Given, Item, as_images
from retrieval.values import shown

Pictures = tuple[Given | Item, ...]

MAX_WEIGHT = 1_000_000
LEAST_SHARE = 1e-5  # share of the longest part; a shorter sum is rounding


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of each part of a query: of its pictures, its words, and what it excludes.

    A weight of 0 leaves the part out. A negative weight turns wanted into unwanted, and back.
    docs/results.md shows what weights do, under Words.
    """

    images: float = 1.0
    text: float = 1.0
    without: float = 0.5

    def __post_init__(self) -> None:
        for name in ("images", "text", "without"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not abs(value) <= MAX_WEIGHT:
                raise BadInput(
                    f"the weight of {name} is {shown(value)}; give a finite number, from "
                    f"{-MAX_WEIGHT:,} to {MAX_WEIGHT:,}"
                )


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One query: what the images found should be like, and what they should not.

    images: pictures that they should be like, as `retrieval.images.as_images` takes them.
    texts: words for what they should show.
    without: words for what they should not show.
    unlike: pictures that they should not be like.

    The query's vector is the weighted sum of four means: of the vectors of the images, of the
    texts, and, subtracted, of those without and unlike. For the cosine distance, each vector has
    unit length before.
    """

    images: Given | Sequence[Given | Item] = ()
    texts: str | Sequence[str] = ()
    without: str | Sequence[str] = ()
    unlike: Given | Sequence[Given | Item] = ()
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        for name in ("texts", "without"):
            object.__setattr__(self, name, tuple(checked_texts(getattr(self, name))))
        for name in ("images", "unlike"):
            images = as_images(getattr(self, name))  # items in a list stay as they are
            object.__setattr__(self, name, tuple(images))
        if not isinstance(self.weights, Weights):
            raise BadInput(f"the weights are {shown(self.weights)}; give Weights(…)")
        if not (self.images or self.texts or self.without or self.unlike):
            raise BadInput("the query is empty; give an image, a text, or both")

    @property
    def pictures(self) -> list[Given | Item]:
        """The images, then those that it should be unlike."""
        both = cast("tuple[Pictures, Pictures]", (self.images, self.unlike))
        return [picture for pictures in both for picture in pictures]

    @property
    def words(self) -> list[str]:
        """The texts, then those without."""
        return [*self.texts, *self.without]

    def joined(self, metric: Metric | str, pictures: Vectors, words: Vectors) -> Vectors:
        """Return the query's vector (1, dim) from those of `pictures` and of `words`.

        Raises BadInput if the parts cancel each other out.
        """
        metric = choice(Metric, metric)
        wanted, texts = len(self.images), len(self.texts)  # type: ignore[arg-type]
        weights = self.weights
        parts = [
            (pictures[:wanted], weights.images),
            (words[:texts], weights.text),
            (words[texts:], -weights.without),
            (pictures[wanted:], -weights.without),
        ]
        return _weighted(metric, parts)


def parsed_weights(given: Iterable[str]) -> Weights:
    """Return the weights that `PART=NUMBER` texts name; PART is images, text or not.

    Raises BadInput for another form, UnknownName for another part.
    """
    parts = {"images": "images", "text": "text", "not": "without"}
    weights: dict[str, float] = {}
    for each in given:
        name, equals, number = each.partition("=")
        if name.strip() not in parts:
            raise UnknownName("part of a query", name, parts)
        try:
            weights[parts[name.strip()]] = float(number)
        except ValueError:
            told = f"is '{number}', not a number" if equals else "has no number"
            raise BadInput(f"the weight of {name} {told}; write {name.strip()}=0.5") from None
    return Weights(**weights)


def checked_texts(texts: str | Iterable[str]) -> list[str]:
    """Return the texts, with lone surrogates replaced. Raises BadInput for an empty one."""
    checked = []
    if not isinstance(texts, Iterable):
        raise BadInput(f"the texts are {shown(texts)}; give a string, or several")
    for text in [texts] if isinstance(texts, str) else texts:
        if not isinstance(text, str):
            raise BadInput(f"a text is {shown(text)}; give a string")
        if not text.strip():
            raise BadInput("a text is empty; give words to search for")
        checked.append(text.encode("utf-8", "replace").decode("utf-8"))
    return checked


def _weighted(metric: Metric, parts: Sequence[tuple[Vectors, float]]) -> Vectors:
    """Return the sum (1, dim) of each part's mean vector times its weight.

    parts: vectors (n, dim) and their weight; n may be 0. Raises BadInput if nothing is left.
    """
    total = np.zeros(parts[0][0].shape[1], np.float64)
    largest = 0.0
    for vectors, weight in parts:
        if not len(vectors) or not weight:
            continue
        wide = vectors.astype(np.float64)
        if metric == Metric.COSINE:
            wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
        part = weight * wide.mean(0)
        total += part
        largest = max(largest, float(np.linalg.norm(part)))
    if not any(len(vectors) and weight for vectors, weight in parts):
        raise BadInput("all parts of the query have the weight 0; give one of them another")
    length = float(np.linalg.norm(total))
    if not length > LEAST_SHARE * largest:
        raise BadInput(
            "the parts of the query cancel each other out; change the words or the weights"
        )
    if metric == Metric.COSINE:
        total /= length
    return total.astype(np.float32)[None]
