"""Index folders: building them from embeddings, and opening them.

A folder holds the library's own file, `rows.parquet` (id, label and path in row order) and
`index.json`, which says what was built, from which embeddings, and the sha256 of every file.
It is searchable without the embeddings it was built from. docs/formats.md writes it out.

In a store, which has no rename, the files of a build lie in a folder of their own, so that those of
the build before stay whole until `index.json` names the new ones. An index in parts is a folder of
such folders: see `retrieval.index.build_segments`.
"""

import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import (
    Blocks,
    Index,
    Indexer,
    Json,
    Metric,
    Settling,
    Storing,
    Streaming,
    Tunable,
    Vectors,
)
from retrieval.errors import BadData, BadInput, Mismatch, Unreachable
from retrieval.hits import InMemory
from retrieval.index.segments import Parts
from retrieval.registry import make_indexer, typed_options
from retrieval.storage.cache import fetched
from retrieval.storage.files import (
    LOCK,
    OF_A_BUILD,
    PARTIAL,
    locked,
    made_folder,
    read_sealed,
    remove,
    sha256_of,
    user_cache,
    write_sealed,
)
from retrieval.storage.places import Place, RemotePath, place_of
from retrieval.storage.publishing import finish, publish, settle
from retrieval.storage.shards import (
    ROW_FIELDS,
    Embeddings,
    EncoderFacts,
    check_free,
    check_unique,
    embeddings_list,
    read_table,
    vectors_of,
    with_nfc_labels,
    write_table,
)
from retrieval.values import named_options

FORMAT = "retr-index"
VERSION = 3  # 1 had no checksum, nor parts; 2 linked each copy of a vector
INDEX = "index.json"
ROWS = "rows.parquet"
RECALL = "recall_at_10"  # in details, of some of the index's own rows
GOOD_RECALL = 0.9
UNFINISHED = ".unfinished" + PARTIAL  # what a build that was killed leaves to the next one
LIBRARIES = (
    "retr",
    "faiss-gpu",
    "faiss-cpu",
    "hnswlib",
    "scalable-vs",
    "pymilvus",
    "milvus-lite",
    "numpy",
    "pyarrow",
)

_KINDS = {
    "backend": str,
    "options": dict,
    "dim": int,
    "rows": int,
    "details": dict,
    "files": dict,
    "deleted": int,
    "at": str,
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an index: an index folder inside the folder. sha256: of its `index.json`."""

    folder: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """What `index.json` says about an index."""

    backend: str
    options: Mapping[str, Json]
    metric: Metric
    dim: int
    rows: int
    encoder: EncoderFacts
    embeddings: tuple[str, ...]  # the identity of each set that was indexed
    details: Mapping[str, Json]
    versions: Mapping[str, str]
    files: Mapping[str, str]  # file name to sha256
    deleted: int = 0  # rows of these embeddings that are no longer there
    at: str = ""  # the folder of the files, where it is not that of `index.json`
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        resolve_choices(self)

    @property
    def poor_recall(self) -> float | None:
        """The recall@10 that was measured after the build, where it is lower than 0.9."""
        recall = self.details.get(RECALL)
        return recall if isinstance(recall, float) and recall < GOOD_RECALL else None

    @property
    def efforts(self) -> list[str]:
        """The search options that raise recall, as far as the backend names them."""
        indexer = make_indexer(self.backend, {**self.options, "metric": self.metric})
        if not isinstance(indexer, Tunable):
            return []
        rungs = [options_of(rung) for ladder in indexer.ladders() for rung in ladder]
        return [name for name in rungs[0] if any(rung[name] != rungs[0][name] for rung in rungs)]

    def write(self, folder: Place) -> None:
        """Write `index.json`, whole or not at all."""
        write_sealed(folder / INDEX, FORMAT, VERSION, asdict(self))

    @classmethod
    def read(cls, folder: Place) -> Self:
        """Return the facts of the index folder, after finishing an interrupted publication.

        Raises BadInput if it is none, BadData if `index.json` is damaged or too new, and what
        `settle` raises.
        """
        path = folder / INDEX
        if not is_index(folder):
            raise BadInput(f"{folder} is no index: it has no {INDEX}; make one with 'retr index'")
        document = read_sealed(path, FORMAT, VERSION, "index anew")
        del document["format"], document["version"]
        try:
            document.setdefault("deleted", 0)  # what was written before rows could be deleted
            document.setdefault("at", "")
            document["parts"] = tuple(Part(**part) for part in document.get("parts", ()))
            document["metric"] = Metric(document["metric"])
            document["encoder"] = EncoderFacts(**document["encoder"])
            document["embeddings"] = tuple(document["embeddings"])
            facts = cls(**document)
            for name, kind in _KINDS.items():
                if not isinstance(document[name], kind) or isinstance(document[name], bool):
                    raise ValueError(f"{name}: {document[name]!r}")
            if sum(part.rows for part in facts.parts) not in (0, facts.rows):
                raise ValueError("the rows of its parts")
        except (KeyError, TypeError, ValueError) as error:
            raise BadData(f"{path} lacks or misstates {error}; index anew") from None
        inside = (*facts.files, *(part.folder for part in facts.parts), facts.at or INDEX)
        if any(Path(name).name != name for name in inside):
            raise BadData(f"{path} names a file outside its folder; index anew")
        return facts

    def paths_in(self, folder: Place) -> list[Place]:
        """The files of the index in the folder, those of its parts included.

        Raises what `read` raises, for a part.
        """
        home = folder / self.at if self.at else folder
        paths = [home / name for name in self.files]
        for part in self.parts:
            inside = folder / part.folder
            paths += [inside / INDEX, *IndexFacts.read(inside).paths_in(inside)]
        return paths

    def size_in(self, folder: Place) -> int:
        """The bytes of these files; one that is missing has none."""
        return sum(map(_size, self.paths_in(folder)))


@dataclass(frozen=True, slots=True, eq=False)
class OpenIndex:
    """An index folder, opened: row i of `index` is row i of `rows` (id, label, path)."""

    folder: Place
    facts: IndexFacts
    index: Index
    rows: pa.Table


def is_index(folder: Place) -> bool:
    """Return whether the folder is an index, after finishing an interrupted publication.

    Nothing else may look for `index.json`: files may wait to be moved beside it. Raises what
    `settle` raises.
    """
    if isinstance(folder, Path):
        settle(folder, INDEX)
    return (folder / INDEX).is_file()


def build_index(
    sets: Sequence[Embeddings] | Embeddings,
    backend: str,
    folder: Place | str,
    metric: Metric | str | None = None,
    options: Mapping[str, object] | None = None,
) -> IndexFacts:
    """The facts of the index built from the embeddings of all `sets`, written into `folder`.

    metric: where None, the one that the encoder was made for. options: of the backend; values
    may be text. An index that stands in `folder` is replaced once the new one is whole. A backend
    that resumes goes on behind what a build of the same that was killed has left.

    Raises UnknownName for a backend or option, Mismatch if the sets are of different encoders,
    BadData for damaged shards or an id that stands twice, BadInput if the folder holds
    something else, Busy if another process builds there.
    """
    sets, folder = embeddings_list(sets), place_of(folder)
    indexer = checked_indexer(sets, backend, metric, options)
    check_room(folder)
    build: Callable[[], Index]
    blocks: Blocks
    if isinstance(indexer, Storing | Streaming):
        rows = _joined([each.rows() for each in sets], sets)
        blocks = _Shards(sets, rows, _unfinished(folder))
        run = indexer.store if isinstance(indexer, Storing) else indexer.build_from
        build = functools.partial(run, blocks)
    else:
        rows, vectors = read_all(sets)
        blocks = InMemory(vectors)
        build = functools.partial(indexer.build, vectors)
    with building(folder) as partial:
        index = build()
        facts = described(backend, indexer, index, sets)
        facts = write_index(partial, folder, index, rows, facts, blocks)
        shutil.rmtree(_unfinished(folder), ignore_errors=True)
        return facts


def checked_indexer(
    sets: Sequence[Embeddings],
    backend: str,
    metric: Metric | str | None = None,
    options: Mapping[str, object] | None = None,
) -> Indexer:
    """The backend with these options, which the sets can be indexed by. Raises what `build_index`
    raises for sets, backend and options, before any work."""
    metric = None if metric is None else choice(Metric, metric)
    common_facts(sets)
    options = named_options(options)
    if "metric" in options:
        raise BadInput("the metric is no option of the backend; give it with --metric")
    indexer = make_indexer(backend, {**options, "metric": metric or sets[0].facts.metric})
    if not any(map(len, sets)):
        raise BadInput("there are no embeddings to index; encode some images first")
    return indexer


def described(
    backend: str, indexer: Indexer, index: Index, sets: Sequence[Embeddings]
) -> IndexFacts:
    """What is known of an index before it is written."""
    return IndexFacts(
        backend=backend,
        options=options_of(indexer.settled(index) if isinstance(indexer, Settling) else indexer),
        metric=indexer.metric,
        dim=index.dim,
        rows=len(index),
        encoder=common_facts(sets),
        embeddings=tuple(each.identity for each in sets),
        details={},
        versions={},
        files={},
    )


def write_index(
    partial: Path,
    folder: Place,
    index: Index,
    rows: pa.Table,
    facts: IndexFacts,
    blocks: Blocks | None,
) -> IndexFacts:
    """Write the index into `partial`, move it to `folder`, and return what is known of it now.

    facts: those that do not follow from the index and its files. blocks: its vectors, by which its
    recall is measured; None where they are not at hand.
    """
    from retrieval.index.recall import measured_recall  # whose libraries no search loads

    details = dict(index.details)
    if blocks is not None:
        details[RECALL] = round(measured_recall(index, blocks, facts.metric), 4)
    index.save(partial)
    write_table(partial / ROWS, rows, "zstd")
    names = sorted(path.name for path in partial.iterdir())
    facts = replace(
        facts,
        rows=len(index),
        details=details,
        versions=_versions(),
        files={name: sha256_of(partial / name) for name in names},
        at="",
    )
    if isinstance(folder, Path):
        facts.write(partial)
        _publish(partial, folder, facts)
        return _swept(folder, facts)
    content = "".join(f"{name} {sha256}\n" for name, sha256 in facts.files.items())
    facts = replace(facts, at=hashlib.sha256(content.encode()).hexdigest()[:16])
    for name in names:
        (folder / facts.at / name).upload(partial / name)
    return published(folder, facts)


def check_room(folder: Place) -> None:
    """Raise BadInput if the folder holds something else than an index, whole or unfinished."""
    if not is_index(folder):
        check_free(folder, INDEX)


def open_index(folder: Place | str, options: Mapping[str, object] | None = None) -> OpenIndex:
    """The index in the folder or at the URL, with its search options changed as `options` says.

    Raises BadInput if it is no index folder or an option cannot be changed after the build,
    BadData if a file is missing, damaged or not the one that was written.
    """
    folder = place_of(folder)
    while True:
        facts = IndexFacts.read(folder)
        try:
            return _opened(folder, facts, options)
        except BadData:
            if IndexFacts.read(folder) == facts:
                raise  # else it was replaced meanwhile


def _opened(folder: Place, facts: IndexFacts, options: Mapping[str, object] | None) -> OpenIndex:
    indexer = make_indexer(facts.backend, {**facts.options, "metric": facts.metric})
    if options:
        changed = typed_options(facts.backend, type(indexer), options)
        fixed = sorted(set(changed) - indexer.search_options)
        if fixed:
            free = ", ".join(sorted(indexer.search_options)) or "none"
            raise BadInput(
                f"option {fixed[0]} of a built {facts.backend} index cannot change; "
                f"index anew, or change one of: {free}"
            )
        indexer = replace(cast(Any, indexer), **changed)
        facts = replace(facts, options=options_of(indexer))
    if facts.parts:
        opened = [_open_part(folder, part, options) for part in facts.parts]
        index: Index = Parts([each.index for each in opened])
        rows = pa.concat_tables([each.rows for each in opened])
    else:
        here = _files_at_hand(folder, facts)
        rows = read_rows(here)
        index = indexer.load(here)
    if not len(index) == len(rows) == facts.rows or index.dim != facts.dim:
        raise BadData(
            f"{folder} does not fit together: {len(index):,} vectors of {index.dim} dimensions, "
            f"{len(rows):,} rows, {facts.rows:,} and {facts.dim} in {INDEX}; index anew"
        )
    return OpenIndex(folder, facts, index, rows)


def _open_part(folder: Place, part: Part, options: Mapping[str, object] | None) -> OpenIndex:
    inside = folder / part.folder
    if not is_index(inside):
        raise BadData(f"{inside} is missing; index anew")
    if sha256_of(inside / INDEX) != part.sha256:
        raise BadData(f"{inside} is not the part that {folder} names; index anew")
    return open_index(inside, options)


def _files_at_hand(folder: Place, facts: IndexFacts) -> Path:
    """Where the files lie that the folder's `index.json` names, whole, on this machine."""
    home = folder / facts.at if facts.at else folder
    if isinstance(home, Path):
        check_files(home, facts)
        return home
    return fetched(home, facts.files, "index anew")


def check_files(folder: Path, facts: IndexFacts) -> None:
    """Raise BadData if a file of the index is missing or not the one that was written."""
    for name, sha256 in facts.files.items():
        path = folder / name
        if not path.is_file():
            raise BadData(f"{path} is missing; index anew")
        if sha256_of(path) != sha256:
            raise BadData(f"{path} is damaged: its sha256 is not that of {INDEX}; index anew")


def common_facts(sets: Sequence[Embeddings]) -> EncoderFacts:
    """The encoder that made all sets. Raises Mismatch if there are several."""
    if not sets:
        raise BadInput("there is nothing to index; name an embeddings folder")
    first = sets[0]
    for other in sets[1:]:
        check_same_encoder(
            first.facts.encoder, other.facts.encoder, str(first.folder), str(other.folder)
        )
        if first.facts.dim != other.facts.dim:
            raise Mismatch(
                f"{first.folder} has {first.facts.dim} dimensions and {other.folder} has "
                f"{other.facts.dim}; encode one of them anew"
            )
    return first.facts.encoder


def check_same_encoder(a: EncoderFacts, b: EncoderFacts, where_a: str, where_b: str) -> None:
    """Raise Mismatch, naming both encoders, unless they are the same."""
    if a.fingerprint != b.fingerprint:
        raise Mismatch(
            f"{where_a} was made by encoder {_named(a)} and {where_b} by {_named(b)}: their "
            "distances mean nothing; encode one of them again with the other's encoder"
        )


def check_indexed(opened: OpenIndex, database: Embeddings) -> None:
    """Raise Mismatch unless the index was built from this very set of embeddings, and it alone."""
    check_same_encoder(
        opened.facts.encoder, database.facts.encoder, str(opened.folder), str(database.folder)
    )
    if opened.facts.deleted:
        raise Mismatch(
            f"{opened.facts.deleted:,} rows were deleted from {opened.folder}, so that it is not "
            f"{database.folder} any more; index that again"
        )
    if opened.facts.embeddings != (database.identity,):
        raise Mismatch(
            f"{opened.folder} was not built from {database.folder} as it is; "
            "index it again, or name the embeddings that it was built from"
        )


def read_all(sets: Sequence[Embeddings]) -> tuple[pa.Table, Vectors]:
    """The rows (id, label, path) and vectors (n, dim) of all sets. Raises BadData."""
    if len(sets) == 1:
        return sets[0].read()
    tables, vectors = zip(*(each.read() for each in sets), strict=True)
    return _joined(tables, sets), np.concatenate(vectors)


def _joined(tables: Sequence[pa.Table], sets: Sequence[Embeddings]) -> pa.Table:
    """The rows of all sets, one after the other. Raises BadData for an id that stands twice."""
    if len(tables) == 1:
        return tables[0]
    rows = pa.concat_tables(tables)
    check_unique(rows["id"], " and ".join(str(each.folder) for each in sets))
    return rows


@dataclass(frozen=True, slots=True)
class _Shards:
    """The vectors of all sets, shard by shard, each read and checked when it is asked for.

    As `Items` says, which is more than a backend that streams asks for.
    """

    sets: Sequence[Embeddings]
    table: pa.Table
    unfinished: Path

    @property
    def rows(self) -> int:
        return sum(map(len, self.sets))

    @property
    def dim(self) -> int:
        return self.sets[0].facts.dim

    @property
    def encoder(self) -> str:
        return self.sets[0].facts.encoder.fingerprint

    @property
    def source(self) -> list[str]:
        return [each.identity for each in self.sets]

    def __iter__(self) -> Iterator[Vectors]:
        for each in self.sets:
            for table in each.tables():
                yield np.asarray(vectors_of(table), np.float32)


def _unfinished(folder: Place) -> Path:
    if isinstance(folder, Path):
        return folder / UNFINISHED
    return user_cache() / "builds" / hashlib.sha256(str(folder).encode()).hexdigest()[:32]


def _named(encoder: EncoderFacts) -> str:
    return f"{encoder.name} ({encoder.fingerprint[:8]})"


def options_of(indexer: Indexer) -> dict[str, Json]:
    """The indexer's fields, less the metric, which has a place of its own."""
    options = asdict(cast(Any, indexer))
    options.pop("metric")
    return options


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # the other one of faiss-gpu and faiss-cpu
    return found


@contextmanager
def fresh(folder: Place) -> Iterator[Path]:
    """An empty folder for what is to be put into `folder`, for as long as it is needed."""
    if isinstance(folder, RemotePath):
        with TemporaryDirectory(prefix="retr-") as name:
            yield Path(name)
        return
    finish(folder, INDEX)
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # what a run that was killed left behind
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def building(folder: Place) -> Iterator[Path]:
    """Room for the index, with the folder locked; a new one is gone if nothing comes of it."""
    new = not folder.exists()
    made_folder(folder)
    try:
        with locked(folder), fresh(folder) as partial:
            yield partial
    except BaseException:
        if new and isinstance(folder, Path) and not (folder / UNFINISHED).exists():
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # another has written there meanwhile
                folder.rmdir()
        raise


def published(folder: Place, facts: IndexFacts) -> IndexFacts:
    """Make the index, whose files are in their places, the folder's, by writing its `index.json`;
    remove the files of the one before. The caller holds the folder's lock."""
    if isinstance(folder, Path):
        with fresh(folder) as partial:
            facts.write(partial)
            _publish(partial, folder, facts)
    else:
        before = _before(folder)
        facts.write(folder)
        for path in before - set(facts.paths_in(folder)):
            path.unlink(missing_ok=True)
    return _swept(folder, facts)


def _publish(partial: Path, folder: Path, facts: IndexFacts) -> None:
    """Put what is in `partial` in its place, and remove the files of the index before."""
    stale = _before(folder) - set(facts.paths_in(folder))
    names = {path.relative_to(folder).as_posix() for path in stale if isinstance(path, Path)}
    publish(partial, folder, INDEX, names)


def _swept(folder: Place, facts: IndexFacts) -> IndexFacts:
    """Remove the folders of other builds, also of some that were stopped."""
    named = {facts.at, *(part.folder for part in facts.parts)}
    for path in [*folder.iterdir()]:
        if OF_A_BUILD.fullmatch(path.name) and path.name not in named and path.is_dir():
            remove(path)
    return facts


def _before(folder: Place) -> set[Place]:
    """The files of the index that stands in the folder; none where there is no whole one."""
    try:
        return set(IndexFacts.read(folder).paths_in(folder))
    except Unreachable:
        raise
    except BadInput:
        return set()


def _size(path: Place) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_rows(folder: Place) -> pa.Table:
    """The table of id, label and path in a folder of an index's files. Raises BadData."""
    path = folder / ROWS
    try:
        rows = read_table(path.read_bytes())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); index anew") from None
    if not rows.schema.equals(pa.schema(ROW_FIELDS)):
        raise BadData(f"{path} has other columns than id, label and path; index anew")
    return with_nfc_labels(rows)
