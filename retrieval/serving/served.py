"""One index that is served: searched, adjusted and looked at, by any number of threads."""

import io
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from threading import BoundedSemaphore, Lock
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.contracts import Framing, Json, Vectors
from retrieval.errors import BadData, BadInput, UnknownName
from retrieval.images import read_image
from retrieval.index.fan_out import FannedIndex
from retrieval.index.folder import INDEX
from retrieval.index.searching import DEFAULT_K, Hit, Searcher, partial_note
from retrieval.runtime.threads import usable_cores
from retrieval.serving.asked import Asked
from retrieval.serving.effort import Effort
from retrieval.serving.encoding import Encoding
from retrieval.serving.folders import Folders
from retrieval.storage.files import sha256_of
from retrieval.storage.names import restored
from retrieval.storage.places import Place
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import MANIFEST
from retrieval.where.selection import Selection, select_rows

MAX_HITS = 1_000  # in one answer
MAX_LISTED_LABELS = 1_000
MAX_VECTOR_BYTES = 2 * 10**9  # an index's embeddings in memory
MAX_MAP_POINTS = 50_000  # a browser draws this many without delay
MAX_UMAP_POINTS = 10_000  # UMAP takes a minute for this many
PICTURE_PIXELS = (16, 1024)  # minimum and maximum of the longer side
CACHED_PICTURES = 2_000
MAX_CACHED_PIXELS = 256  # longer side of a cached picture: about 10 kB

log = logging.getLogger(__name__)


class UnknownItem(UnknownName):
    """An id that no row of the index has."""

    def __init__(self, id_: str) -> None:
        BadInput.__init__(self, f"no row of the index has the id '{id_}'; give one that is there")


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """Neighbors, the label of the query if it is known, and the time of each step."""

    hits: list[Hit]
    label: str | None
    encode_ms: float  # 0 for a row of the index, whose vector is known
    search_ms: float
    notes: list[str] = field(default_factory=list)  # sentences about the query
    share: float = 1.0  # part of the rows that was searched

    def to_json(self) -> dict[str, Json]:
        """Return the document that `POST /api/search` answers."""
        notes: dict[str, Json] = {"notes": [*self.notes]} if self.notes else {}
        return {
            "hits": [hit.to_json() for hit in self.hits],
            "label": self.label,
            "milliseconds": {
                "encode": round(self.encode_ms, 3),
                "search": round(self.search_ms, 3),
            },
            **notes,
            **({} if self.share == 1 else {"share": round(self.share, 4)}),
        }


def version_of(folder: Place) -> str:
    """Return the hash of the index's facts, which differs for each build and update."""
    return sha256_of(folder / INDEX)


class Served:
    """An open index with a name.

    One search runs at a time, as each uses all cores; on a cluster, several do.
    """

    def __init__(
        self,
        name: str,
        searcher: Searcher,
        encoding: Encoding,
        embeddings: Sequence[Place] = (),
        images: Sequence[str] = (),
        version: str = "",
    ) -> None:
        """encoding: of the searcher's embedder. embeddings: folders that may hold the embeddings
        that the index was built from. version: as `version_of` returns it before the index is
        opened.

        images: folders whose images may be shown; None for the one that all images of the index
        share.
        """
        self.name = name
        self.searcher = searcher
        self.encoding = encoding
        self.facts = searcher.opened.facts
        self.rows = searcher.opened.rows
        self.version = version or version_of(searcher.opened.folder)
        self.efforts = Effort.of(self.facts)
        self._folders = embeddings
        self._images = Folders(images) if images else Folders.of(self.rows["path"])
        on_cluster = isinstance(searcher.opened.index, FannedIndex)
        self._searching = nullcontext() if on_cluster else Lock()
        self._reading = Lock()
        self._laying_out = Lock()
        self._looking_up = Lock()
        self._vectors: Vectors | None = None
        self._looked_for_vectors = False
        self._drawing = BoundedSemaphore(usable_cores())  # large images fill memory
        self._kept_picture = lru_cache(CACHED_PICTURES)(self._picture)
        self._kept_plane = lru_cache(1)(self._plane)
        self._kept_columns = lru_cache(CACHED_PICTURES)(self._columns_of)

    @property
    def described(self) -> dict[str, Json]:
        """Return this index's entry in the answer of `GET /api/indices`."""
        return self._described | {"words": self.encoding.takes_words}

    @cached_property
    def _described(self) -> dict[str, Json]:
        """Return the facts that do not change while the index is served."""
        labels = sorted(self.rows["label"].drop_null().unique().to_pylist())
        return {
            "name": self.name,
            "version": self.version[:12],
            "backend": self.facts.backend,
            "metric": str(self.facts.metric),
            "rows": len(self.rows),
            "dim": self.facts.dim,
            "encoder": self.facts.encoder.name,
            "options": dict(self.facts.options),
            "effort": None if self.efforts is None else self.efforts.to_json(),
            "labels": [*labels[:MAX_LISTED_LABELS]],
            "columns": self._columns(),
        }

    def _columns(self) -> list[Json]:
        """Return name and type of each column for filters, apart from id, label and path."""
        try:
            schema = self.searcher.opened.columns.schema
        except BadData:  # filters by them fail with this error, too
            log.warning("the columns of index %s cannot be read", self.name, exc_info=True)
            return []
        return [{"name": each.name, "type": _type_name(each.type)} for each in schema]

    def search(
        self, asked: Asked, k: int | None, where: str | None, effort: str | None
    ) -> SearchAnswer:
        """Return the images nearest to a query, without the rows that it names.

        Raises UnknownItem for an id, BadImage for an image that cannot be read, BadInput for words
        that the encoder does not take, and the errors of `Searcher.search`.
        """
        return self._answer(asked, k, where, effort)[0]

    def neighbors(
        self, id_: str, k: int | None, where: str | None, effort: str | None
    ) -> SearchAnswer:
        """Return the neighbors of a row, without the row itself, and the row's label.

        Raises UnknownItem, BadImage if neither the row's vector nor its image is found, and what
        `Searcher.search` raises.
        """
        answer, [row] = self._answer(Asked(like=[id_]), k, where, effort)
        return replace(answer, label=self.rows["label"][row].as_py())

    def _answer(
        self, asked: Asked, k: int | None, where: str | None, effort: str | None
    ) -> tuple[SearchAnswer, list[int]]:
        """Return the answer of `search`, and the rows that the query names."""
        selected = self._select(k, where)
        rows = [self.row_of(id_) for id_ in (*asked.like, *asked.unlike)]
        vector, encode_ms, notes = self._vector_of(asked, rows)
        k = min(DEFAULT_K, len(self.rows)) if k is None else k
        named = {*asked.like, *asked.unlike}
        wanted = min(k + len(named), len(self.rows))
        hits, share, search_ms = self._nearest(vector, wanted, selected, effort)
        if share < 1:
            notes = [*notes, partial_note(share)]
        others = [hit for hit in hits if hit.id not in named][:k]
        ranked = [hit._replace(rank=rank) for rank, hit in enumerate(others, start=1)]
        return SearchAnswer(ranked, None, encode_ms, search_ms, notes, share), rows

    def embedding(self, asked: Asked) -> tuple[Vectors, list[str]]:
        """Return the vector (dim,) of images and words, and notes. Raises as `search` does."""
        vector, _, notes = self._vector_of(asked, [])
        return cast(Vectors, vector[0]), notes

    def item(self, id_: str) -> dict[str, Json]:
        """Return id, label, path and columns of a row. Raises UnknownItem."""
        row: dict[str, Json] = self.rows.slice(self.row_of(id_), 1).to_pylist()[0]
        path = cast("str | None", row["path"])
        return row | {"path": path and restored(path), "columns": self._kept_columns(id_)}

    def _columns_of(self, id_: str) -> dict[str, Json]:
        names = self.searcher.opened.columns.names
        if not names:
            return {}
        with self._looking_up:  # the columns of all rows are read
            return self.searcher.columns([id_], names)[0]

    def items(self, where: str | None, limit: int, seed: int) -> list[dict[str, Json]]:
        """Return up to `limit` random rows among those that match."""
        rows = np.arange(len(self.rows))
        if where is not None:
            rows = np.flatnonzero(select_rows(self.rows, where, self.searcher.opened.columns).mask)
        drawn = np.random.default_rng(seed).permutation(rows)[:limit]
        found = self.rows.take(pa.array(drawn)).to_pylist()
        return [row | {"path": row["path"] and restored(row["path"])} for row in found]

    def row_of(self, id_: str) -> int:
        """Return the row with the id. Raises UnknownItem."""
        row = int(pc.index(self.rows["id"], pa.scalar(id_, pa.string())).as_py())
        if row < 0:
            raise UnknownItem(id_)
        return row

    def _select(self, k: int | None, where: str | None) -> Selection | None:
        """Return the rows that match. Raises BadInput or UnknownName for a wrong k or filter."""
        most = min(MAX_HITS, len(self.rows))
        if k is not None and not 1 <= k <= most:
            raise BadInput(f"k is {k:,}; give 1 to {most:,}")
        return self.searcher.select(k, where)

    def _vector_of(self, asked: Asked, rows: list[int]) -> tuple[Vectors, float, list[str]]:
        """Return the vector (1, dim) of a query, milliseconds of encoding, and notes.

        rows: those of like, then those of unlike.
        """
        stored = self.vectors() if rows else None
        to_read = [*asked.images, *(map(self._path_of, rows) if stored is None else ())]
        words = asked.query.words
        pictures = of_words = np.empty((0, self.facts.dim), np.float32)
        encode_ms, notes = 0.0, []
        if to_read or words:
            encoded = self.encoding.encoded(to_read, words)
            pictures, of_words = encoded.pictures, encoded.words
            encode_ms, notes = encoded.milliseconds, encoded.notes
        if stored is not None:
            pictures = np.concatenate([pictures, stored[rows]])
        return asked.joined(self.facts.metric, pictures, of_words), encode_ms, notes

    def _nearest(
        self, vector: Vectors, k: int | None, where: Selection | None, effort: str | None
    ) -> tuple[list[Hit], float, float]:
        """Return hits, the share of the rows that was searched, and milliseconds of the search."""
        with self._searching:
            if self.efforts is not None:
                chosen = str(self.efforts.current) if effort is None else effort
                self.efforts.applied(self.searcher.opened.index, chosen)
            elif effort is not None:
                raise BadInput(f"{self.facts.backend} has no option to trade recall for time")
            began = time.perf_counter()
            found = self.searcher.hits(vector, k, where)
            search_ms = 1000 * (time.perf_counter() - began)
        return self.searcher.named(found)[0], found.share, search_ms

    def _path_of(self, row: int) -> str:
        path = self.rows["path"][row].as_py()
        if path is None:
            raise BadInput(
                f"the path of {self.rows['id'][row]} is not known; encode the images again"
            )
        path = restored(path)
        self._images.check(path)
        return path

    def picture(self, row: int, size: int) -> tuple[bytes, str]:
        """Return a row's image with a longer side of at most `size` pixels, and its media type.

        Small images keep every pixel. Raises BadImage if the image is not found.
        """
        return (self._kept_picture if size <= MAX_CACHED_PIXELS else self._picture)(row, size)

    def _picture(self, row: int, size: int) -> tuple[bytes, str]:
        with self._drawing:
            image = read_image(self._path_of(row), Framing(size))
            image.thumbnail((size, size))
        image.info = {}  # comments, profiles and GPS positions
        kind = "PNG" if max(image.size) <= 64 else "JPEG"
        written = io.BytesIO()
        image.save(written, kind, quality=85)
        return written.getvalue(), f"image/{kind.lower()}"

    def vectors(self) -> Vectors | None:
        """Return the vectors in row order; None if their embeddings are not found."""
        with self._reading:
            if not self._looked_for_vectors:
                self._looked_for_vectors = True
                with suppress(BadInput, OSError):  # images are encoded again instead
                    self._vectors = self._found_vectors()
        return self._vectors

    def _found_vectors(self) -> Vectors | None:
        # The newest first: a row that was deleted and added again has its vector there.
        wanted = dict.fromkeys(reversed(self.facts.embeddings))
        if len(self.rows) * self.facts.dim * 4 > MAX_VECTOR_BYTES:
            return None
        for folder in self._folders:
            manifest = folder / MANIFEST
            if manifest.is_file() and (sha256 := sha256_of(manifest)) in wanted:
                wanted[sha256] = cast(Any, open_embeddings(folder).read())
        if not wanted or None in wanted.values():
            return None
        tables, vectors = zip(*cast("Iterable[Any]", wanted.values()), strict=True)
        ids = pa.concat_tables(tables)["id"]
        if len(tables) == 1 and ids.equals(self.rows["id"]):
            return cast(Vectors, vectors[0])
        at = pc.index_in(self.rows["id"].combine_chunks(), ids.combine_chunks())
        return cast(Vectors, np.concatenate(vectors)[at.to_numpy(zero_copy_only=False)])

    def plane(self, method: str, seed: int) -> dict[str, Json]:
        """Return the map that `GET /api/map` answers: positions from 0 to 1, rounded.

        Raises UnknownName for a method, BadInput if the embeddings are not found.
        """
        with self._laying_out:  # computed once, however many requests wait
            return self._kept_plane(method, seed)

    def _plane(self, method: str, seed: int) -> dict[str, Json]:
        from retrieval.drawing.layout import Layout, laid_out

        if method not in [*Layout]:
            raise UnknownName("method", method, [*Layout])
        vectors = self.vectors()
        if vectors is None:
            raise BadInput(
                "no map: the embeddings of this index were not found, or exceed 2 GB; name their "
                "folder with --embeddings"
            )
        layout = Layout(method)
        most = MAX_UMAP_POINTS if layout is Layout.UMAP else MAX_MAP_POINTS
        rows = np.arange(len(vectors))
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        points = laid_out(vectors[rows], layout, self.facts.metric, seed)
        low, high = points.min(0), points.max(0)
        places = np.round((points - low) / np.maximum(high - low, 1e-9), 4)
        shown = self.rows.take(pa.array(rows))
        labels = shown["label"].combine_chunks().dictionary_encode()
        return {
            "x": places[:, 0].tolist(),
            "y": places[:, 1].tolist(),
            "ids": shown["id"].to_pylist(),
            "labels": labels.dictionary.to_pylist(),
            "label_of": [-1 if each is None else each for each in labels.indices.to_pylist()],
            "method": method,
        }


def _type_name(kind: pa.DataType) -> str:
    """Return the type of a column as the page names it: text, number, time or boolean."""
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_timestamp(kind):
        return "time"
    return "text" if pa.types.is_string(kind) else "number"
