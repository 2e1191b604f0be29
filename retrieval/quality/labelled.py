"""Vectors with ids and labels: the queries and databases of evaluations."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.contracts import Metric, Vectors
from retrieval.embedding.runtimes.agreement import MAX_NOISE, deviation
from retrieval.embedding.runtimes.contract import Precision
from retrieval.errors import BadInput, Mismatch, UnknownName
from retrieval.hits import as_vectors
from retrieval.labels import as_ids, as_labels, is_number, label_set
from retrieval.quality.ranking import Rows
from retrieval.storage.names import restored
from retrieval.storage.sets.embeddings import Embeddings

MAX_ROUNDING = 1e-3
"""Maximum distance between two embeddings of one image, as a share of the vector's length: from
another encoding, or from rounding to float16."""

MIN_PAIRS = 10
"""Pairs of vectors from which all are compared together: in another precision, single vectors are
further apart, and only the mean tells them from other images."""


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Vectors (n, dim) with their unique ids (n,) and labels (n,); a label is None if unknown.

    ids, labels: text, numbers, booleans or other objects, in lists or arrays. They are kept as
        text, by the rules of `retrieval.labels`: 1, 1.0 and "1" are one label, and None and NaN
        are none.
    paths: (n,), an Arrow column of the images' paths, as shards store it; null if unknown.

    Raises Mismatch if these differ in length, BadInput for a duplicate id, and the errors of
    `as_labels` and `as_ids`.
    """

    vectors: Vectors
    ids: Sequence[Any] | NDArray[Any]
    labels: Sequence[Any] | NDArray[Any]
    paths: pa.ChunkedArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", as_vectors(self.vectors))
        if self.vectors.ndim != 2:
            raise BadInput(f"vectors have shape {self.vectors.shape}; give (n, dim)")
        object.__setattr__(self, "ids", as_ids(self.ids))
        object.__setattr__(self, "labels", as_labels(self.labels))
        if not len(self.vectors) == len(self.ids) == len(self.labels):
            raise Mismatch(
                f"{len(self.vectors)} vectors have {len(self.ids)} ids and {len(self.labels)} "
                "labels; give each vector one id and one label"
            )
        seen: set[str] = set()
        for name in self.ids:
            if name in seen:
                raise BadInput(f"duplicate id '{name}'; make ids unique")
            seen.add(name)

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def of(cls, embeddings: Embeddings) -> Self:
        """Return the embeddings of a folder.

        Ids are unique within a source only: `1.jpg` may be in two folders. So the name of the
        source is put before them.
        """
        rows, vectors = embeddings.read()
        source = embeddings.facts.source.name
        ids = [f"{source}: {name}" for name in rows["id"].to_pylist()]
        return cls(vectors, ids, rows["label"].to_pylist(), rows["path"])

    def split_off(self, count: int, seed: int) -> "tuple[Labelled, Labelled]":
        """Return `count` random rows, and the other rows.

        At most a fifth of the rows are drawn. Raises BadInput for fewer than 5 rows.
        """
        if len(self) < 5:
            raise BadInput(f"{len(self)} rows are too few to split; give at least 5")
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(count, len(self) // 5)
        return self.take(np.sort(order[:count])), self.take(np.sort(order[count:]))

    def classes(self) -> list[str]:
        """Return the distinct labels, sorted."""
        return sorted(self.rows_of_classes())

    def numbers(self, classes: Sequence[str]) -> Rows:
        """Return the position (n,) of each row's label in `classes`; -1 if it is not there."""
        place = {name: i for i, name in enumerate(as_labels(classes))}
        place[None] = -1
        return np.array([place.get(label, -1) for label in self.labels], np.int64)

    def check_classes(self, names: Iterable[str]) -> None:
        """Raise UnknownName for a class that has no row."""
        there = self.classes()
        for name in as_labels(names):
            if name not in there:
                raise UnknownName("class of these images", str(name), there)

    def rows_of_classes(self) -> Counter[str]:
        """Return the number of rows of each class."""
        return Counter(label for label in self.labels if label is not None)

    def rows_in(self, database: "Labelled") -> Rows:
        """Return the row (n,) of each item in the database; -1 if it is not there.

        Items are compared by id. An id that is a number is only a row number in its own set: 7 in
        two sets is the same item only if the vectors are the same too, up to rounding.
        """
        place = {name: row for row, name in enumerate(database.ids)}
        rows = np.array([place.get(name, -1) for name in self.ids], np.int64)
        if self is database:
            return rows
        counted = np.flatnonzero([is_number(name) for name in self.ids])
        counted = counted[rows[counted] >= 0]
        if self.vectors.shape[1] == database.vectors.shape[1]:
            same = _same(self.vectors[counted], database.vectors[rows[counted]])
            counted = counted[~same]
        rows[counted] = -1
        return rows

    def known_paths(self) -> list[str | None]:
        """Return the path of each image; None if unknown."""
        if self.paths is None:
            return [None] * len(self)
        return [path and restored(path) for path in self.paths.to_pylist()]

    def all_paths(self) -> list[str]:
        """Return the path of each image. Raises BadInput if one is not known."""
        paths = [path for path in self.known_paths() if path is not None]
        if len(paths) < len(self):
            raise BadInput("the embeddings have no paths of their images; encode the images again")
        return paths

    def sample(self, most: int, seed: int) -> "Labelled":
        """Return at most `most` random rows, in their order."""
        drawn = np.random.default_rng(seed).permutation(len(self))[:most]
        return self.take(np.sort(drawn))

    def of_classes(self, names: Collection[str]) -> "Labelled":
        """Return the rows of these classes."""
        wanted = label_set(names)
        return self.take(np.flatnonzero([label in wanted for label in self.labels]))

    def with_rows_of(self, others: "Labelled") -> "Labelled":
        """Return these rows followed by the others'; paths only if both have them."""
        paths = (
            None
            if self.paths is None or others.paths is None
            else pa.chunked_array([*self.paths.chunks, *others.paths.chunks])
        )
        return Labelled(
            np.concatenate((self.vectors, others.vectors)),
            [*self.ids, *others.ids],
            [*self.labels, *others.labels],
            paths,
        )

    def take(self, rows: Rows) -> "Labelled":
        """Return these rows, in this order."""
        return Labelled(
            self.vectors[rows],
            [self.ids[i] for i in rows],
            [self.labels[i] for i in rows],
            None if self.paths is None else self.paths.take(pa.array(rows)),
        )


def _same(a: Vectors, b: Vectors) -> NDArray[np.bool_]:
    """Return whether vectors a and b, (n, dim), are the same up to rounding, (n,).

    Two encodings of the same images in different precisions are the same.
    """
    # Numbers that are not finite raise an error later.
    with np.errstate(over="ignore", invalid="ignore"):
        apart = np.linalg.norm(a - b, axis=1)
        near = np.asarray(apart <= MAX_ROUNDING * np.linalg.norm(a, axis=1))
        if near.all() or len(a) < MIN_PAIRS:
            return near
        rounded = deviation(a, b, Metric.EUCLIDEAN).noise <= 2 * MAX_NOISE[Precision.FAST]
        return np.asarray(near | rounded)
