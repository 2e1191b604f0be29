"""The indices that are served: searched, adjusted and looked at, by any number of threads."""

import io
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from threading import BoundedSemaphore, Event, Lock
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.contracts import Encoder, Framing, Json, Tunable, Vectors
from retrieval.embedding.onnx_cache import open_export
from retrieval.errors import BadInput, RetrError, UnknownName
from retrieval.images import decode, frame, read_image
from retrieval.index.folder import INDEX, IndexFacts
from retrieval.index.searching import DEFAULT_K, Hit, Searcher, matching
from retrieval.index.segments import segments_of
from retrieval.registry import make_indexer, open_encoder
from retrieval.runtime.threads import usable_cores
from retrieval.serving.folders import Folders
from retrieval.storage.embeddings import open_embeddings
from retrieval.storage.files import sha256_of
from retrieval.storage.manifest import MANIFEST
from retrieval.storage.names import restored
from retrieval.storage.places import Place

MOST_HITS = 1_000  # in one answer
MOST_LABELS = 1_000  # that are listed
MOST_VECTOR_BYTES = 2 * 10**9  # of an index's embeddings that are held in memory
MOST_ON_MAP = 50_000  # points; a browser draws so many in a blink
MOST_FOR_UMAP = 10_000  # which takes a minute for them
SIZES = (16, 1024)  # pixels, of the longer side of a picture that is handed out
KEPT_PICTURES = 2_000  # in memory
LARGEST_KEPT = 256  # pixels of the longer side of one that is kept: some ten kilobytes
UNNAMED = "that was sent"

log = logging.getLogger(__name__)


class UnknownItem(UnknownName):
    """An id that no row of the index has."""

    def __init__(self, id_: str) -> None:
        BadInput.__init__(self, f"no row of the index has the id '{id_}'; give one that is there")


@dataclass(frozen=True, slots=True)
class Answer:
    """Neighbours, the label of what was searched for where it is known, and what took how long."""

    hits: list[Hit]
    label: str | None
    encode_ms: float  # 0 for a row of the index, whose vector is known
    search_ms: float

    def to_json(self) -> dict[str, Json]:
        """As `POST /api/search` answers."""
        return {
            "hits": [hit.to_json() for hit in self.hits],
            "label": self.label,
            "milliseconds": {
                "encode": round(self.encode_ms, 3),
                "search": round(self.search_ms, 3),
            },
        }


@dataclass(frozen=True, slots=True)
class Efforts:
    """The search option that trades recall for time, and the values worth trying, ascending."""

    option: str
    values: tuple[int | str, ...]
    current: int | str
    indexer: Any

    @classmethod
    def of(cls, facts: IndexFacts) -> "Efforts | None":
        """Those of a built index; None where its backend has no such option."""
        indexer: Any = make_indexer(facts.backend, {**facts.options, "metric": facts.metric})
        if not isinstance(indexer, Tunable):
            return None
        ladders = [ladder for ladder in indexer.ladders() if len(ladder) > 1]
        if not ladders:
            return None
        ladder = min(ladders, key=lambda ladder: _differences(ladder[0], indexer))
        option = next(
            name for name in vars(indexer) if len({getattr(rung, name) for rung in ladder}) > 1
        )
        current = getattr(indexer, option)
        values = [getattr(rung, option) for rung in ladder]
        if current not in values:
            values = sorted([*values, current]) if isinstance(current, int) else [current, *values]
        return cls(option, tuple(values), current, indexer)

    def applied(self, index: Any, value: str) -> None:
        """Give the index this value, as text, of the option. Raises BadInput for others."""
        by_text = {str(each): each for each in self.values}
        if value not in by_text:
            raise BadInput(
                f"{self.option} is '{value}'; give one of {', '.join(by_text)}, or leave it out"
            )
        chosen = replace(self.indexer, **{self.option: by_text[value]})
        for part in segments_of(index):
            chosen.apply(part)

    def to_json(self) -> dict[str, Json]:
        """As `GET /api/indices` lists it."""
        return {"option": self.option, "values": [*self.values], "current": self.current}


class Served:
    """An open index under a name. One search runs at a time: each has all cores."""

    def __init__(
        self,
        name: str,
        searcher: Searcher,
        embeddings: Sequence[Place] = (),
        encoding: "Lock | None" = None,
        images: Sequence[str] = (),
    ) -> None:
        """embeddings: folders among which those that the index was built from may be.

        encoding: held while an encoder runs; indices of one encoder share it. images: folders whose
        images may be shown; where none is given, the one that all images of the index share.
        """
        self.name = name
        self.searcher = searcher
        self.facts = searcher.opened.facts
        self.rows = searcher.opened.rows
        self.efforts = Efforts.of(self.facts)
        self._folders = embeddings
        self._images = Folders(images) if images else Folders.of(self.rows["path"])
        self.encoding = encoding or Lock()
        self._searching = Lock()
        self._reading = Lock()
        self._laying_out = Lock()
        self._vectors: Vectors | None = None
        self._looked_for_vectors = False
        self._drawing = BoundedSemaphore(usable_cores())  # a large image fills memory
        self._kept_picture = lru_cache(KEPT_PICTURES)(self._picture)
        self._kept_plane = lru_cache(1)(self._plane)

    @cached_property
    def described(self) -> dict[str, Json]:
        """As `GET /api/indices` lists it."""
        labels = sorted(self.rows["label"].drop_null().unique().to_pylist())
        return {
            "name": self.name,
            "version": sha256_of(self.searcher.opened.folder / INDEX)[:12],
            "backend": self.facts.backend,
            "metric": str(self.facts.metric),
            "rows": len(self.rows),
            "dim": self.facts.dim,
            "encoder": self.facts.encoder.name,
            "options": dict(self.facts.options),
            "effort": None if self.efforts is None else self.efforts.to_json(),
            "labels": [*labels[:MOST_LABELS]],
        }

    def search(
        self, image: BinaryIO, k: int | None, where: str | None, effort: str | None
    ) -> Answer:
        """The neighbours of an image file. Raises BadImage, and what `Searcher.search` raises."""
        self._check(k, where)
        vector, encode_ms = self._embedded(image)
        hits, search_ms = self._nearest(vector, k, where, effort)
        return Answer(hits, None, encode_ms, search_ms)

    def neighbors(self, id_: str, k: int | None, where: str | None, effort: str | None) -> Answer:
        """The neighbours of a row, itself left out.

        Raises UnknownItem, BadImage for one whose vector is not at hand and whose image is gone,
        and what `Searcher.search` raises.
        """
        self._check(k, where)
        row = self.row_of(id_)
        k = DEFAULT_K if k is None else k
        wanted = min(k + 1, len(self.rows))
        vector, encode_ms = self._vector_of(row)
        hits, search_ms = self._nearest(vector, wanted, where, effort)
        others = [hit for hit in hits if hit.id != id_][:k]
        ranked = [replace(hit, rank=rank) for rank, hit in enumerate(others, start=1)]
        return Answer(ranked, self.rows["label"][row].as_py(), encode_ms, search_ms)

    def embedding(self, image: BinaryIO) -> Vectors:
        """The embedding (dim,) of an image file. Raises BadImage."""
        return cast(Vectors, self._embedded(image)[0][0])

    def items(self, where: str | None, limit: int, seed: int) -> list[dict[str, Json]]:
        """So many rows, drawn by seed, among those that match."""
        rows = np.arange(len(self.rows))
        if where is not None:
            rows = np.flatnonzero(matching(self.rows, where))
        drawn = np.random.default_rng(seed).permutation(rows)[:limit]
        found = self.rows.take(pa.array(drawn)).to_pylist()
        return [row | {"path": row["path"] and restored(row["path"])} for row in found]

    def row_of(self, id_: str) -> int:
        """The row with the id. Raises UnknownItem."""
        row = int(pc.index(self.rows["id"], pa.scalar(id_, pa.string())).as_py())
        if row < 0:
            raise UnknownItem(id_)
        return row

    def _check(self, k: int | None, where: str | None) -> None:
        """Raise what is wrong with a search before its image is looked at."""
        most = min(MOST_HITS, len(self.rows))
        if k is not None and not 1 <= k <= most:
            raise BadInput(f"k is {k:,}; give 1 to {most:,}")
        self.searcher.among(k, where)

    def _embedded(self, image: BinaryIO | str) -> tuple[Vectors, float]:
        """The embedding (1, dim) of an upload or of a path, and the milliseconds that it took.

        Raises RetrError where the encoder cannot be opened: not the fault of who asks.
        """
        with self.encoding:
            began = time.perf_counter()
            try:
                encoder = self.searcher.encoder
            except BadInput as error:
                raise RetrError(str(error)) from error
            framing = encoder.framing
            opened = (
                read_image(image, framing)
                if isinstance(image, str)
                else decode(image.read(), UNNAMED, framing)
            )
            vector = encoder.encode(frame(opened, framing)[None])
            return vector, 1000 * (time.perf_counter() - began)

    def _vector_of(self, row: int) -> tuple[Vectors, float]:
        vectors = self.vectors()
        if vectors is not None:
            return vectors[row : row + 1], 0.0
        return self._embedded(self._path_of(row))

    def _nearest(
        self, vector: Vectors, k: int | None, where: str | None, effort: str | None
    ) -> tuple[list[Hit], float]:
        """Hits, and the milliseconds of the search alone."""
        with self._searching:
            if self.efforts is not None:
                chosen = str(self.efforts.current) if effort is None else effort
                self.efforts.applied(self.searcher.opened.index, chosen)
            elif effort is not None:
                raise BadInput(f"{self.facts.backend} has no option to trade recall for time")
            began = time.perf_counter()
            found = self.searcher.hits(vector, k, where)
            search_ms = 1000 * (time.perf_counter() - began)
        return self.searcher.named(found)[0], search_ms

    def _path_of(self, row: int) -> str:
        path = self.rows["path"][row].as_py()
        if path is None:
            raise BadInput(f"it is not known where {self.rows['id'][row]} lies; encode it anew")
        path = restored(path)
        self._images.check(path)
        return path

    def picture(self, row: int, size: int) -> tuple[bytes, str]:
        """A row's image with a longer side of at most `size` pixels, and its media type.

        Small ones keep every pixel. Raises BadImage where the image is gone.
        """
        return (self._kept_picture if size <= LARGEST_KEPT else self._picture)(row, size)

    def _picture(self, row: int, size: int) -> tuple[bytes, str]:
        with self._drawing:
            image = read_image(self._path_of(row), Framing(size))
            image.thumbnail((size, size))
        image.info = {}  # comments, profiles, and where a photograph was taken
        kind = "PNG" if max(image.size) <= 64 else "JPEG"
        written = io.BytesIO()
        image.save(written, kind, quality=85)
        return written.getvalue(), f"image/{kind.lower()}"

    def vectors(self) -> Vectors | None:
        """The vectors in the order of the rows, where their embeddings are at hand."""
        with self._reading:
            if not self._looked_for_vectors:
                self._looked_for_vectors = True
                with suppress(BadInput, OSError):  # images are encoded again instead
                    self._vectors = self._found_vectors()
        return self._vectors

    def _found_vectors(self) -> Vectors | None:
        # The newest first: a row that was deleted and added again has its vector there.
        wanted = dict.fromkeys(reversed(self.facts.embeddings))
        if len(self.rows) * self.facts.dim * 4 > MOST_VECTOR_BYTES:
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
        """The rows in the plane, as `GET /api/map` answers: places from 0 to 1, rounded.

        Raises UnknownName for a method, BadInput where the embeddings are not at hand.
        """
        with self._laying_out:  # once, however many ask
            return self._kept_plane(method, seed)

    def _plane(self, method: str, seed: int) -> dict[str, Json]:
        from retrieval.drawing.layout import Layout, laid_out

        if method not in [*Layout]:
            raise UnknownName("method", method, [*Layout])
        vectors = self.vectors()
        if vectors is None:
            raise BadInput(
                "the embeddings that this index was built from are not at hand, or larger than 2 "
                "GB, so there is no map; name their folder with --embeddings"
            )
        layout = Layout(method)
        most = MOST_FOR_UMAP if layout is Layout.UMAP else MOST_ON_MAP
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


class Collection:
    """All indices that are served, by name."""

    def __init__(
        self,
        folders: Sequence[Place],
        embeddings: Sequence[Place] = (),
        device: str = "auto",
        images: Sequence[str] = (),
    ) -> None:
        """Open the index folders. embeddings: where those that they were built from may be.
        images: as for `Served`.

        Raises what `open_index` raises.
        """
        if not folders:
            raise BadInput("there is no index to serve; name one with --index")
        self.device = device
        self.served: dict[str, Served] = {}
        self.ready = Event()
        """Set when the encoders are open, or have been found not to open."""
        locks: dict[str, Lock] = {}
        for folder in folders:
            searcher = Searcher.open(folder, device=device)
            name = _free_name(folder.resolve().name, self.served)
            lock = locks.setdefault(searcher.opened.facts.encoder.fingerprint, Lock())
            self.served[name] = Served(name, searcher, embeddings, lock, images)

    def __getitem__(self, name: str | None) -> Served:
        """The index of this name, the first for None. Raises UnknownName."""
        if name is None or name == "":
            return next(iter(self.served.values()))
        if name not in self.served:
            raise UnknownName("index", name, self.served)
        return self.served[name]

    def open_encoders(self) -> list[Encoder]:
        """Open each encoder once, and read the embeddings, so that the first search need not.

        What fails, a search says.
        """
        opened: dict[str, Encoder] = {}
        try:
            for served in self.served.values():
                wanted = served.facts.encoder
                try:
                    with served.encoding:  # who searches meanwhile waits for it
                        found = opened.get(wanted.fingerprint) or (
                            open_export(wanted.fingerprint, self.device)
                            or open_encoder(wanted.name, self.device)
                        )
                        served.searcher = Searcher(served.searcher.opened, found, self.device)
                        opened[wanted.fingerprint] = found
                except Exception:  # of torch, of a hub, of a plug-in
                    log.warning("the encoder %s does not open", wanted.name, exc_info=True)
                served.vectors()
        finally:
            self.ready.set()
        return [*opened.values()]


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    """The name, with a number behind it where it is taken."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _differences(a: Any, b: Any) -> int:
    return sum(value != getattr(b, name) for name, value in vars(a).items())
