"""A query of the service: pictures that are sent, words, and rows of the index."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from retrieval.choices import choice
from retrieval.contracts import Metric, Vectors
from retrieval.embedding.query import Query, Weights
from retrieval.errors import BadInput
from retrieval.images import Given

MAX_PARTS = 32  # pictures, texts and rows of one query
MAX_TEXT_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A query of any number of parts.

    images: image files that the hits should be like.
    texts, without: words for what the hits should show, and should not.
    like, unlike: ids of rows that the hits should be like, and should not.

    Raises BadInput for a query without parts, one with too many, and a text that is empty or too
    long.
    """

    images: Sequence[BinaryIO] = ()
    texts: Sequence[str] = ()
    without: Sequence[str] = ()
    like: Sequence[str] = ()
    unlike: Sequence[str] = ()
    weights: Weights = field(default_factory=Weights)
    query: Query = field(init=False)
    """The same as a `Query`. Ids stand for the pictures of their rows, and are never opened."""

    def __post_init__(self) -> None:
        parts = [self.images, self.texts, self.without, self.like, self.unlike]
        count = sum(map(len, parts))
        if not count:
            raise BadInput("the query is empty; send image, text, not, like or unlike")
        if count > MAX_PARTS:
            raise BadInput(f"the query has {count} parts; send at most {MAX_PARTS}")
        for text in (*self.texts, *self.without):
            if len(text) > MAX_TEXT_CHARACTERS:
                raise BadInput(
                    f"a text has {len(text):,} characters; send at most {MAX_TEXT_CHARACTERS:,}"
                )
        pictures = cast(list[Given], [*self.images, *self.like])
        query = Query(pictures, [*self.texts], [*self.without], [*self.unlike], self.weights)
        object.__setattr__(self, "query", query)

    @property
    def is_plain(self) -> bool:
        """True for one picture or one text, whose vector is the query's."""
        wanted = (*self.images, *self.like, *self.texts)
        if len(wanted) != 1 or self.without or self.unlike:
            return False
        return (self.weights.text if self.texts else self.weights.images) == 1.0

    def joined(self, metric: Metric | str, pictures: Vectors, words: Vectors) -> Vectors:
        """Return the query's vector (1, dim).

        pictures: vectors of images, like and unlike. words: vectors of texts and without.

        Raises BadInput if the parts cancel each other out.
        """
        metric = choice(Metric, metric)
        if self.is_plain:
            return words if self.texts else pictures
        return self.query.joined(metric, pictures, words)
