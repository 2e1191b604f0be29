"""Search an index for images: nearest neighbors with ids, labels and paths."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
import pyarrow as pa

from retrieval.choices import choice
from retrieval.contracts import Encoder, Filtering, Hits, Json, Querying, Vectors
from retrieval.embedding.embed import Embedder
from retrieval.embedding.queries import QueryImage, query_images
from retrieval.embedding.query import Query
from retrieval.errors import BadImage, BadInput, UnknownName
from retrieval.hits import as_vectors
from retrieval.images import Given, Item, as_images
from retrieval.images.source import Note, no_note
from retrieval.images.tables.choice import NO_CHOICE, Columns
from retrieval.index.folder import OpenIndex, open_index
from retrieval.index.text_column import TextColumn
from retrieval.runtime.engines import Engine
from retrieval.storage.names import restored
from retrieval.storage.places import Place
from retrieval.storage.sets.manifest import Skipped
from retrieval.values import shown, whole_number
from retrieval.where.selection import Selection, select_rows

if TYPE_CHECKING:
    from retrieval.index.on_ray import Cluster

Queries = Vectors | Sequence[Sequence[float]]

DEFAULT_K = 10


class Hit(NamedTuple):
    """One neighbor. rank counts from 1; the distance is in the unit of the index's metric.

    path: as `open` takes it, with a lone surrogate for each byte that is not UTF-8.

    It is a tuple because a frozen dataclass takes three times as long to create: ten hits are
    created for each search, which itself may take 20 µs.
    """

    rank: int
    id: str
    label: str | None
    distance: float
    path: str | None

    def to_json(self) -> dict[str, Json]:
        """Return the hit as `retr search --json` prints it."""
        return {
            "rank": self.rank,
            "id": self.id,
            "label": self.label,
            "distance": self.distance,
            "path": self.path,
        }


@dataclass(frozen=True, slots=True)
class QueryHits:
    """The hits of one query.

    name: what was asked, for people: a path as the user wrote it, or the words.
    query: what was asked, for programs.
    path: of the query's only image; None for words.
    label: the class, from the image's source or from its own row in the index; None if unknown.
    """

    name: str
    query: Json
    path: str | None
    label: str | None
    hits: list[Hit]

    def within(self, distance: float | None) -> "QueryHits":
        """Return only the hits at this distance or nearer; all of them for None."""
        if distance is None:
            return self
        return replace(self, hits=[hit for hit in self.hits if hit.distance <= distance])

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr search --json` prints."""
        return {"query": self.query, "hits": [hit.to_json() for hit in self.hits]}


class Searcher:
    """An index with the encoder that its embeddings came from.

    The first image or text opens the encoder; vectors do not need it. A few images on a CPU are
    encoded without torch, if the ONNX cache has the encoder's network from an earlier run.
    """

    def __init__(self, opened: OpenIndex, embedder: Embedder | None = None) -> None:
        """Search an open index. embedder: for its encoder; None to create one."""
        if not isinstance(opened, OpenIndex):
            raise BadInput(f"the index is {shown(opened)}; open a folder with Searcher.open")
        self.opened = opened
        self.embedder = embedder or Embedder(opened.facts.encoder, owner=str(opened.folder))

    @classmethod
    def open(
        cls,
        folder: Place | str,
        options: Mapping[str, object] | None = None,
        encoder: Encoder | None = None,
        device: str = "auto",
        engine: Engine | str = Engine.LOCAL,
        cluster: "Cluster | None" = None,
    ) -> Self:
        """Return the searcher of an index folder.

        options: search options to change, such as `ef` or `n_probe`.
        encoder: encoder of the queries; None for the encoder that the index names.
        device: auto, cpu or cuda.
        engine: local; or ray, for segments in the memory of a Ray cluster's nodes.
        cluster: the cluster, number of replicas and tolerance of lost nodes, for the engine ray.

        Raises UnknownName for an engine, the errors of `open_index` or `open_on_cluster`, and
        Mismatch for another encoder.
        """
        if choice(Engine, engine) is Engine.LOCAL:
            opened = open_index(folder, options)
        else:
            from retrieval.index.on_ray import open_on_cluster

            opened = open_on_cluster(folder, options, cluster)
        wanted = opened.facts.encoder
        return cls(opened, Embedder(wanted, device, encoder, owner=str(opened.folder)))

    def __len__(self) -> int:
        return len(self.opened.index)

    @property
    def encoder(self) -> Encoder:
        """The encoder of the index. Raises Mismatch if another version is installed."""
        return self.embedder.encoder

    def search_images(
        self, images: Given | Iterable[Given], k: int | None = None, where: str | None = None
    ) -> list[list[Hit]]:
        """Return the k nearest neighbors of each image, nearest first: a list for each image.

        images: one image or several, as `retrieval.images.as_images` takes them: paths, bytes,
            open files, images of Pillow, arrays. For a single image, the result has one list.
        k, where: as for `search`.

        Raises BadImage for an image that cannot be read, and the errors of `as_images` and
        `search`.
        """
        selected = self.select(k, where)  # before images are read, which takes longer
        given = as_images(images)
        return self.search(self.embedder.embed_images(given), k, selected) if given else []

    def search_text(
        self,
        texts: str | Iterable[str],
        k: int | None = None,
        where: str | None = None,
        note: Note = no_note,
    ) -> list[list[Hit]]:
        """Return the k images nearest to each text, nearest first: a list for each text.

        note: is told of a text that is too long for the encoder.

        Raises BadInput if the index's encoder takes no text, and the errors of `search`.
        """
        selected = self.select(k, where)
        return self.search(self.embedder.embed_texts(texts, note), k, selected, note)

    def search_files(
        self,
        files: str | Path | Sequence[str | Path],
        k: int | None = None,
        where: str | None = None,
        note: Note = no_note,
        columns: Columns = NO_CHOICE,
    ) -> tuple[list[QueryHits], list[Skipped]]:
        """Return the k nearest neighbors of each image in files, and the images not read.

        files: paths, folders, globs, URLs and rows of containers, as `query_images` expands them.
        note, columns: as for `open_source`.

        Raises BadImage if no image can be read, with the reason for the first, and the errors of
        `query_images` and `search`.
        """
        selected = self.select(k, where)
        asked: list[QueryImage] = []

        def images() -> Iterator[Item | str]:
            for query in query_images(files, note, columns):
                asked.append(replace(query, image=""))  # free the image's bytes
                yield query.image

        embedded = self.embedder.embed(images())
        skipped = [Skipped(error.path, error.reason) for error in embedded.errors.values()]
        if not len(embedded.vectors):
            raise BadImage(skipped[0].path, f"{skipped[0].reason}; give an image that can be read")
        found = self.search(embedded.vectors, k, selected, note)
        queries = [asked[position] for position in embedded.positions]
        return [
            QueryHits(
                query.name,
                query.name,
                query.path,
                query.label or label_of_own_hit(query.path, hits),
                hits,
            )
            for query, hits in zip(queries, found, strict=True)
        ], skipped

    def search(
        self,
        queries: Queries | Query | Sequence[Query],
        k: int | None = None,
        where: str | Selection | None = None,
        note: Note = no_note,
    ) -> list[list[Hit]]:
        """Return the k nearest neighbors of each query vector, nearest first.

        queries: (q, dim), an array or lists of numbers, converted to float32. A single query is
            (1, dim). The result for no queries, (0, dim) or [], is []. Or one `Query` of pictures
            and words, or several: a list for each.
        k: None for 10, or for all rows if there are fewer.
        where: a filter such as `label = cat` or `width > 1000 and taken >= 2024-05-01`, to search
            only the rows that match; see `select_rows`. Or what `select` returned. A query has less
            than k hits if fewer rows match, or an approximate index finds fewer.
        note: is told of a text that is too long for the encoder, and of rows that could not be
            searched.

        Raises BadInput if k is not between 1 and the number of rows, Mismatch for queries of
        another dimension, and the errors of `select_rows` and of `Embedder.embed_query`.
        """
        asked = _as_queries(queries)
        if asked:
            where, metric = self.select(k, where), self.opened.facts.metric
            vectors = [self.embedder.embed_query(each, metric, note) for each in asked]
            queries = np.concatenate(vectors)
        hits = self.hits(cast(Queries, queries), k, where)
        if hits.share < 1:
            note(partial_note(hits.share))
        return self.named(hits)

    def hits(
        self, queries: Queries, k: int | None = None, where: str | Selection | None = None
    ) -> Hits:
        """Search like `search`, and return rows and distances (q, k).

        An index that can filter by itself gets the filter, another one the rows that match.
        """
        selected, index = self.select(k, where), self.opened.index
        queries = as_vectors(queries, "queries")
        k = min(DEFAULT_K, len(self)) if k is None else k
        if selected is None:
            return index.search(queries, k)
        if isinstance(index, Querying) and selected.condition is not None:
            return index.search_condition(queries, k, selected.mask, selected.condition)
        if isinstance(index, Filtering) and selected.where is not None:
            return index.search_where(queries, k, selected.mask, selected.where)
        return index.search(queries, k, selected.mask)

    def select(self, k: int | None, where: str | Selection | None) -> Selection | None:
        """Check k, and return the rows that match the filter; None for all rows.

        Raises the errors of `search` for k and the filter.
        """
        if k is not None and not 1 <= whole_number(k, "k") <= len(self):
            raise BadInput(f"k is {k:,}; give 1 to {len(self):,}, the rows of the index")
        if where is None or isinstance(where, Selection):
            return where
        return select_rows(self.opened.rows, where, self.opened.columns)

    def named(self, hits: Hits) -> list[list[Hit]]:
        """Return the hits with the ids, labels and paths of their rows."""
        found = [[row for row in line if row >= 0] for line in hits.rows.tolist()]
        rows = [*chain.from_iterable(found)]
        ids, labels, stored = (column.values(rows) for column in self._columns)
        paths = [restored(path) if path and "\\" in path else path for path in stored]
        named, start = [], 0
        for line, distances in zip(found, hits.distances.tolist(), strict=True):
            part = slice(start, start + len(line))
            start = part.stop
            of_rows = cast(list[str], ids[part]), labels[part], distances, paths[part]
            named.append([*map(Hit, count(1), *of_rows)])  # stops at the last row
        return named

    def columns(self, ids: Sequence[str], names: Sequence[str]) -> list[dict[str, Json]]:
        """Return these columns of the rows with these ids; times are text in ISO 8601.

        Raises UnknownName for a column that there is not.
        """
        import pyarrow.compute as pc

        further = self.opened.columns
        for name in names:
            if name not in further.names:
                raise UnknownName("column of the index", name, further.names)
        at = pc.index_in(pa.array(ids, pa.string()), value_set=self.opened.rows["id"])
        found = further.table(names).take(at)
        return [
            {name: _as_json(value) for name, value in row.items()}
            for row in found.select([*names]).to_pylist()
        ]

    @cached_property
    def _columns(self) -> tuple[TextColumn, TextColumn, TextColumn]:
        rows = self.opened.rows
        return TextColumn(rows["id"]), TextColumn(rows["label"]), TextColumn(rows["path"])


def partial_note(share: float) -> str:
    """Return the sentence about an answer from a part of the rows."""
    return f"{share:.1%} of the rows were searched: nodes of the cluster do not answer"


def _as_queries(queries: object) -> list[Query]:
    """Return the queries of pictures and words; none if these are vectors."""
    if isinstance(queries, Query):
        return [queries]
    if isinstance(queries, list | tuple) and queries and isinstance(queries[0], Query):
        return [*queries]
    return []


def _as_json(value: Any) -> Json:
    return cast(Json, value.isoformat() if isinstance(value, datetime) else value)


def label_of_own_hit(path: str, hits: Sequence[Hit]) -> str | None:
    """Return the label of the hit with this path; None without one."""
    return next((hit.label for hit in hits if hit.path == path), None)
