"""Search an index for images: nearest neighbors with ids, labels and paths."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from unicodedata import normalize

import numpy as np
import pyarrow as pa

from retrieval.contracts import Encoder, Filter, Filtering, Hits, Json, Mask, Rows, Vectors
from retrieval.errors import BadInput, Mismatch, UnknownName
from retrieval.hits import as_vectors
from retrieval.images import Given, as_images, framed
from retrieval.index.folder import OpenIndex, open_index
from retrieval.registry import open_encoder
from retrieval.storage.names import restored, storable
from retrieval.storage.places import Place
from retrieval.values import shown, whole_number

_T = TypeVar("_T")

Queries = Vectors | Sequence[Sequence[float]]

DEFAULT_K = 10
FEW = 50  # rows that are picked one by one, without `pyarrow.compute`, as in a search for one image
FILTERS = ("id", "label")  # the columns that `where` can name


@dataclass(frozen=True, slots=True)
class Hit:
    """One neighbor. rank counts from 1; the distance is in the unit of the index's metric.

    path: as `open` takes it, with a lone surrogate for each byte that is not UTF-8.
    """

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
        if not isinstance(opened, OpenIndex):
            raise BadInput(f"the index is {shown(opened)}; open a folder with Searcher.open")
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
        self, images: Given | Iterable[Given], k: int | None = None, where: str | None = None
    ) -> list[list[Hit]]:
        """Return the k nearest neighbors of each image, nearest first: a list for each image.

        images: one image or several, as `retrieval.images.framed` takes them: paths, bytes, open
            files, images of Pillow, arrays. A single one is answered as a list of one.
        k: as for `search`.

        Raises BadImage for one that cannot be read, and what `framed` and `search` raise.
        """
        self.among(k, where)  # what is wrong with these is said before any image is read
        given = as_images(images)
        if not given:
            return []
        pixels = framed(given, self.encoder.framing)
        return self.search(self.encoder.encode(np.stack(pixels)), k, where)

    def search(
        self, queries: Queries, k: int | None = None, where: str | None = None
    ) -> list[list[Hit]]:
        """Return the k nearest neighbors of each query vector, nearest first.

        queries: (q, dim), an array or lists of numbers, kept as float32; a single query is (1,
            dim). No queries, (0, dim) or [], have no answers, [].
        k: None for 10, or for all rows where there are fewer.
        where: `label=cat` or `label=cat,dog` for the k nearest among the rows that match, see
            `parsed`; there are fewer hits where fewer rows match, or where an approximate index
            finds fewer.

        Raises BadInput if k is not between 1 and the number of rows, UnknownName for a column
        that there is none of, BadInput for a filter that no row matches, Mismatch for queries
        of another dimension.
        """
        return self.named(self.hits(queries, k, where))

    def hits(self, queries: Queries, k: int | None = None, where: str | None = None) -> Hits:
        """The same as `search`, as rows and distances (q, k).

        An index that can filter by itself is told the filter, others the rows that it admits.
        """
        among, index = self.among(k, where), self.opened.index
        queries = as_vectors(queries, "queries")
        k = min(DEFAULT_K, len(self)) if k is None else k
        if among is not None and where is not None and isinstance(index, Filtering):
            return index.search_where(queries, k, among, parsed(self.opened.rows, where))
        return index.search(queries, k, among)

    def among(self, k: int | None, where: str | None) -> Mask | None:
        """The rows that a search may find, None for all. Raises what `search` raises for it."""
        if k is not None and not 1 <= whole_number(k, "k") <= len(self):
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
                Hit(rank, id_, label, distance, None if path is None else restored(path))
                for rank, (id_, label, path, distance) in enumerate(_take(named, count), start=1)
            ]
            for count in found.sum(axis=1).tolist()
        ]

    def _checked(self, encoder: Encoder) -> Encoder:
        if not isinstance(encoder, Encoder):
            raise BadInput(f"the encoder is {shown(encoder)}; open one with open_encoder")
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
    return next((hit.label for hit in hits if hit.path == path), None)


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
    """Return the filter that is written `FIELD=VALUE[,VALUE…]`.

    A value with a comma stands in quotes, as in CSV: `label="a, b",c`. Quotes are not needed where
    all of the text is one value that a row has. Values match in Unicode NFC and NFD alike.

    Raises BadInput for other text and for an id that no row has, UnknownName for a label that no
    row has and for a field that cannot be filtered by.
    """
    import pyarrow.compute as pc  # most searches filter nothing, and need not wait for it

    if not isinstance(where, str):
        raise BadInput(f"the filter is {shown(where)}; give text such as 'label=cat'")
    field, equals, written = where.partition("=")
    if not equals or not written:
        raise BadInput(f"the filter '{where}' is not understood; write --where 'label=cat'")
    if field not in FILTERS:
        raise UnknownName("field to filter by", field, FILTERS)
    readings = _readings(written)
    named = {form for values in readings for value in values for form in _forms(value)}
    column = rows[field]
    mask = pc.is_in(column, value_set=pa.array(sorted(named), pa.string()))
    present = set(column.filter(mask).unique().to_pylist())

    def missing(values: Sequence[str]) -> list[str]:
        return [value for value in values if present.isdisjoint(_forms(value))]

    values = next((each for each in readings if not missing(each)), readings[-1])
    if unknown := missing(values):
        if field == "label":
            known = [v for v in column.unique().to_pylist() if v is not None]
            raise UnknownName("label in the index", unknown[0], known)
        raise BadInput(f"no row of the index has the id '{unknown[0]}'; give one that is there")
    forms = dict.fromkeys(form for value in values for form in _forms(value))
    return Filter(field, tuple(forms))


def matching(rows: pa.Table, where: str) -> Mask:
    """True for each row that the filter `FIELD=VALUE[,VALUE…]` admits, (rows,).

    Raises what `parsed` raises.
    """
    import pyarrow.compute as pc

    wanted = parsed(rows, where)
    values = pa.array(wanted.values, pa.string())
    mask: Mask = pc.is_in(rows[wanted.field], value_set=values).to_numpy()
    return mask


def _readings(written: str) -> list[tuple[str, ...]]:
    """What the values may be, the likeliest last: one with commas, plain, and with quotes."""
    readings = [(written,), tuple(written.split(","))]
    try:
        (values,) = csv.reader([written], strict=True, skipinitialspace=True)
    except (csv.Error, ValueError):
        return readings
    return [*readings, tuple(values)]


def _forms(value: str) -> tuple[str, ...]:
    """The value as typed and as a name is stored, in both normal forms: macOS writes NFD."""
    typed = value.encode("utf-8", "backslashreplace").decode()
    forms = (normalize(form, each) for each in (typed, storable(value)) for form in ("NFC", "NFD"))
    return tuple(dict.fromkeys(forms))


def _take(items: Iterator[_T], count: int) -> list[_T]:

    return [next(items) for _ in range(count)]
