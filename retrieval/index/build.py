"""Build an index folder from embeddings, and replace the one that stands there."""

import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from retrieval.choices import choice
from retrieval.contracts import (
    Blocks,
    Index,
    Indexer,
    Metric,
    Settling,
    Storing,
    Streaming,
    Vectors,
)
from retrieval.errors import BadInput, Unreachable
from retrieval.hits import InMemory
from retrieval.index.folder import (
    BUILD_FOLDER,
    INDEX,
    RECALL,
    ROWS,
    IndexFacts,
    is_index,
    options_of,
)
from retrieval.registry import make_indexer
from retrieval.storage.compatible import common_facts, joined_rows, read_all
from retrieval.storage.embeddings import Embeddings, embeddings_list
from retrieval.storage.files import (
    LOCK,
    PARTIAL,
    check_free,
    locked,
    made_folder,
    remove,
    sha256_of,
    user_cache,
)
from retrieval.storage.places import Place, RemotePath, place_of
from retrieval.storage.publishing import finish, publish
from retrieval.storage.shards import vectors_of
from retrieval.storage.tables import write_table
from retrieval.values import named_options

UNFINISHED = ".unfinished" + PARTIAL  # files that an interrupted build leaves for the next one
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


def build_index(
    sets: Sequence[Embeddings] | Embeddings,
    backend: str,
    folder: Place | str,
    metric: Metric | str | None = None,
    options: Mapping[str, object] | None = None,
) -> IndexFacts:
    """Build the index of the embeddings of all `sets` in `folder`; return its facts.

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
        rows = joined_rows([each.rows() for each in sets], sets)
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
    """Return the backend with these options, checked for the sets. Raises what `build_index`
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
    """Return the facts of an index before it is written."""
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
    """Write the index into `partial`, move it to `folder`, and return its facts.

    facts: those that do not follow from the index and its files. blocks: its vectors, to measure
    its recall; None if they are not available.
    """
    from retrieval.index.recall import measured_recall  # searches do not load its libraries

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
        check_free(folder, INDEX, lambda name: bool(BUILD_FOLDER.fullmatch(name)))


@dataclass(frozen=True, slots=True)
class _Shards:
    """Vectors of all sets, shard by shard; each shard is read and checked on demand.

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
    """Yield an empty temporary folder for files that will be moved to `folder`."""
    if isinstance(folder, RemotePath):
        with TemporaryDirectory(prefix="retr-") as name:
            yield Path(name)
        return
    finish(folder, INDEX)
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted run
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def building(folder: Place) -> Iterator[Path]:
    """Lock the folder and yield a folder for the index; delete a new folder if the build fails."""
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
        if BUILD_FOLDER.fullmatch(path.name) and path.name not in named and path.is_dir():
            remove(path)
    return facts


def _before(folder: Place) -> set[Place]:
    """Return the files of the index in the folder; none if it holds no complete index."""
    try:
        return set(IndexFacts.read(folder).paths_in(folder))
    except Unreachable:
        raise
    except BadInput:
        return set()
