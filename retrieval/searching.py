"""From images to their nearest neighbours, with ids, labels and paths."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa

from retrieval.contracts import Encoder, Filter, Filtering, Hits, Json, Mask, Rows, Vectors
from retrieval.errors import BadInput, Mismatch, UnknownName
from retrieval.images import Item, load
from retrieval.images.source import text
from retrieval.indexing import OpenIndex, open_index
from retrieval.registry import open_encoder
from retrieval.storage.places import Place

_T = TypeVar("_T")

DEFAULT_K = 10
FEW = 50  # rows that are picked one by one, without `pyarrow.compute`, as in a search for one image
FILTERS = ("id", "label")  # the columns that `where` can name


@dataclass(frozen=True, slots=True)
class Hit:
    """One neighbour. rank counts from 1; the distance is in the unit of the index's metric."""

    rank: int
    id: str
    label: str | None
    distance: float
    path: str | None

    def to_json(self) -> dict[str, Json]:
        """The hit as `retr search --json` prints it."""
        return {
            "rank": self.rank,
            "id": self.id,
            "label": self.label,
            "distance": self.distance,
            "path": self.path,
        }


class Searcher:
    """An index with the encoder that its embeddings came from.

    The encoder is opened when the first image is searched for; vectors need none.
    """

    def __init__(
        self, opened: OpenIndex, encoder: Encoder | None = None, device: str = "auto"
    ) -> None:
        """Raises Mismatch if the index was built with another encoder than the one given."""
        self.opened = opened
        self.device = device
        self._encoder = None if encoder is None else self._checked(encoder)

    @classmethod
    def open(
        cls,
        folder: Place | str,
        options: Mapping[str, object] | None = None,
        encoder: Encoder | None = None,
        device: str = "auto",
    ) -> Self:
        """The searcher of an index folder, with changed search options (`ef`, `n_probe`).

        Raises what `open_index` raises, and Mismatch for a wrong encoder.
        """
        return cls(open_index(folder, options), encoder, device)

    def __len__(self) -> int:
        return len(self.opened.index)

    @property
    def encoder(self) -> Encoder:
        """The encoder of the index. Raises Mismatch if what is installed is another version."""
        if self._encoder is None:
            self._encoder = self._checked(open_encoder(self.opened.facts.encoder.name, self.device))
        return self._encoder

    def search_images(
        self, images: Sequence[Path | str], k: int | None = None, where: str | None = None
    ) -> list[list[Hit]]:
        """The k nearest neighbours of each image file, nearest first.

        k: as for `search`. Raises BadImage for one that cannot be read, and what `search` raises.
        """
        self.among(k, where)  # what is wrong with these is said before any image is read
        items = [Item(str(image), None, str(image), Path(image)) for image in images]
        framed = [load(item, self.encoder.framing) for item in items]
        return self.search(self.encoder.encode(np.stack(framed)), k, where)

    def search(
        self, queries: Vectors, k: int | None = None, where: str | None = None
    ) -> list[list[Hit]]:
        """The k nearest neighbours of each query vector (q, dim), nearest first.

        k: None for 10, or for all rows where there are fewer.
        where: `label=cat` or `label=cat,dog` for the k nearest among the rows that match; there
        are fewer hits where fewer rows match, or where an approximate index finds fewer.

        Raises BadInput if k is not between 1 and the number of rows, UnknownName for a column
        that there is none of, BadInput for a filter that no row matches, Mismatch for queries
        of another dimension.
        """
        return self.named(self.hits(queries, k, where))

    def hits(self, queries: Vectors, k: int | None = None, where: str | None = None) -> Hits:
        """The same as `search`, as rows and distances (q, k).

        An index that can filter by itself is told the filter, others the rows that it admits.
        """
        among, index = self.among(k, where), self.opened.index
        k = min(DEFAULT_K, len(self)) if k is None else k
        if among is not None and where is not None and isinstance(index, Filtering):
            return index.search_where(queries, k, among, parsed(self.opened.rows, where))
        return index.search(queries, k, among)

    def among(self, k: int | None, where: str | None) -> Mask | None:
        """The rows that a search may find, None for all. Raises what `search` raises for it."""
        if k is not None and not 1 <= k <= len(self):
            raise BadInput(f"k is {k:,}; give 1 to {len(self):,}, the rows of the index")
        return None if where is None else matching(self.opened.rows, where)

    def named(self, hits: Hits) -> list[list[Hit]]:
        """The hits with the ids, labels and paths of their rows."""
        found = hits.rows >= 0
        rows = _picked(self.opened.rows, hits.rows[found])
        named = zip(
            rows["id"], rows["label"], rows["path"], hits.distances[found].tolist(), strict=True
        )
        return [
            [
                Hit(rank, id_, label, distance, path)
                for rank, (id_, label, path, distance) in enumerate(_take(named, count), start=1)
            ]
            for count in found.sum(axis=1).tolist()
        ]

    def _checked(self, encoder: Encoder) -> Encoder:
        built_with = self.opened.facts.encoder
        if encoder.fingerprint != built_with.fingerprint:
            raise Mismatch(
                f"{self.opened.folder} was built with encoder {built_with.name} "
                f"({built_with.fingerprint[:8]}), not with {encoder.name} "
                f"({encoder.fingerprint[:8]}); encode and index anew, or use the same encoder"
            )
        return encoder


def own_label(path: str, hits: Sequence[Hit]) -> str | None:
    """The label of the image at `path`, where it is one of its own neighbours."""
    return next((hit.label for hit in hits if hit.path == text(path)), None)


def _picked(table: pa.Table, rows: Rows) -> dict[str, list[Any]]:
    """The columns of these rows.

    Picking few needs neither `pyarrow.compute` nor pandas, whose import a search from the command
    line would wait for; picking many is ten times as fast with them.
    """
    if len(rows) > FEW:
        columns: dict[str, list[Any]] = table.take(pa.array(rows)).to_pydict()
        return columns
    places = rows.tolist()
    return {name: [table[name][place].as_py() for place in places] for name in table.column_names}


def parsed(rows: pa.Table, where: str) -> Filter:
    """The filter that is written `FIELD=VALUE[,VALUE…]`.

    A value may have a comma of its own: all of them are one where a row has it. Raises BadInput
    for other text, UnknownName for a field that cannot be filtered by.
    """
    field, equals, values = where.partition("=")
    if not equals or not values:
        raise BadInput(f"the filter '{where}' is not understood; write --where 'label=cat'")
    if field not in FILTERS:
        raise UnknownName("field to filter by", field, FILTERS)
    is_one = rows[field].index(values).as_py() >= 0
    return Filter(field, (values,) if is_one else tuple(values.split(",")))


def matching(rows: pa.Table, where: str) -> Mask:
    """True for each row that the filter `FIELD=VALUE[,VALUE…]` admits, (rows,).

    Raises what `parsed` raises, UnknownName or BadInput for a value that no row has.
    """
    import pyarrow.compute as pc  # most searches filter nothing, and need not wait for it

    wanted = parsed(rows, where)
    column = rows[wanted.field]
    mask: Mask = pc.is_in(column, value_set=pa.array(wanted.values, pa.string())).to_numpy()
    present = set(column.filter(pa.array(mask)).unique().to_pylist())
    for value in wanted.values:
        if value not in present:
            known = [v for v in column.unique().to_pylist() if v is not None]
            if wanted.field == "label":
                raise UnknownName("label in the index", value, known)
            raise BadInput(f"no row of the index has the id '{value}'; give one that is there")
    return mask


def _take(items: Iterator[_T], count: int) -> list[_T]:

    return [next(items) for _ in range(count)]
