"""Build an index folder from embeddings, and replace the index that is in the folder."""

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
    Items,
    Metric,
    Settling,
    Storing,
    Streaming,
    Vectors,
)
from retrieval.errors import BadInput, Busy, Unreachable
from retrieval.hits import InMemory
from retrieval.index.folder import (
    BUILD_FOLDER,
    INDEX,
    RECALL,
    IndexFacts,
    is_index,
    options_of,
)
from retrieval.index.row_tables import RowTables
from retrieval.registry import make_indexer
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
from retrieval.storage.sets.compatible import (
    common_facts,
    joined_rows,
    read_all,
    with_unique_ids,
)
from retrieval.storage.sets.embeddings import Embeddings, embeddings_list
from retrieval.storage.sets.shards import vectors_of
from retrieval.values import named_options

UNFINISHED_FOLDER = ".unfinished" + PARTIAL  # files of an interrupted build, for the next build
LIBRARIES = (
    "retr",
    "faiss-gpu",
    "faiss-cpu",
    "hnswlib",
    "scalable-vs",
    "pymilvus",
    "milvus-lite",
    "psycopg",
    "pgvector",
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

    metric: None for the metric of the encoder. options: options of the backend; values may be text.

    The new index replaces an index in `folder` once it is complete. A backend that can resume
    continues a killed build of the same index.

    Raises UnknownName for an unknown backend or option, Mismatch if the sets are of different
    encoders, BadData for damaged shards or a duplicate id, BadInput if the folder holds something
    else, Busy if another process builds there.
    """
    sets, folder = embeddings_list(sets), place_of(folder)
    indexer = checked_indexer(sets, backend, metric, options)
    sets = with_unique_ids(sets)
    check_target(folder)
    build: Callable[[], Index]
    blocks: Blocks
    if isinstance(indexer, Storing | Streaming):
        rows = joined_rows([each.rows() for each in sets], sets)
        blocks = shards_of(sets, rows, folder)
        run = indexer.store if isinstance(indexer, Storing) else indexer.build_from
        build = functools.partial(run, blocks)
    else:
        rows, vectors = read_all(sets)
        blocks = InMemory(vectors)
        build = functools.partial(indexer.build, vectors)
    with locked_build(folder) as partial:
        index = build()
        facts = unwritten_facts(backend, indexer, index, sets)
        facts = write_index(partial, folder, index, RowTables.of(rows, sets), facts, blocks)
        shutil.rmtree(_unfinished(folder), ignore_errors=True)
        return facts


def checked_indexer(
    sets: Sequence[Embeddings],
    backend: str,
    metric: Metric | str | None = None,
    options: Mapping[str, object] | None = None,
) -> Indexer:
    """Return the backend with these options, checked before any work.

    Raises the errors of `build_index` about sets, backend and options.
    """
    metric = None if metric is None else choice(Metric, metric)
    common_facts(sets)
    options = named_options(options)
    if "metric" in options:
        raise BadInput("'metric' is not an option of the backend; use --metric")
    indexer = make_indexer(backend, {**options, "metric": metric or sets[0].facts.metric})
    if not any(map(len, sets)):
        raise BadInput("there are no embeddings to index; encode some images first")
    return indexer


def unwritten_facts(
    backend: str, indexer: Indexer, index: Index, sets: Sequence[Embeddings]
) -> IndexFacts:
    """Return the facts of an index that are known before it is written."""
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
    tables: RowTables,
    facts: IndexFacts,
    blocks: Blocks | None,
) -> IndexFacts:
    """Write the index into `partial`, move it to `folder`, and return its facts.

    facts: the result of `unwritten_facts`, or facts of an older version of the index. blocks: the
    vectors of the index, to measure its recall; None if they are not available.
    """
    from retrieval.index.recall import measured_recall  # a search does not need its libraries

    details = dict(index.details)
    if blocks is not None:
        details[RECALL] = round(measured_recall(index, blocks, facts.metric), 4)
    index.save(partial)
    tables.write(partial)
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
        replace_files(partial, folder, facts)
        _remove_other_builds(folder, facts)
        return facts
    content = "".join(f"{name} {sha256}\n" for name, sha256 in facts.files.items())
    facts = replace(facts, at=hashlib.sha256(content.encode()).hexdigest()[:16])
    for name in names:
        (folder / facts.at / name).upload(partial / name)
    return publish_index(folder, facts)


def check_target(folder: Place) -> None:
    """Raise BadInput if the folder holds anything but an index, complete or unfinished."""
    if not is_index(folder):
        check_free(folder, INDEX, lambda name: bool(BUILD_FOLDER.fullmatch(name)))


@dataclass(frozen=True, slots=True)
class _Shards:
    """`Items` of all sets, shard by shard. Each shard is read and checked on demand."""

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
    def columns(self) -> pa.Table | None:
        return RowTables.of(self.table, self.sets).columns

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


def shards_of(sets: Sequence[Embeddings], rows: pa.Table, folder: Place) -> Items:
    """Return the rows and vectors of all sets, read shard by shard, for an index in the folder."""
    return _Shards(sets, rows, _unfinished(folder))


def _unfinished(folder: Place) -> Path:
    if isinstance(folder, Path):
        return folder / UNFINISHED_FOLDER
    return user_cache() / "builds" / hashlib.sha256(str(folder).encode()).hexdigest()[:32]


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # faiss-gpu or faiss-cpu, of which one is installed, or an optional library
    return found


@contextmanager
def partial_folder(folder: Place) -> Iterator[Path]:
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
def locked_build(folder: Place) -> Iterator[Path]:
    """Lock the folder and yield a folder for the index; delete a new folder if the build fails."""
    new = not folder.exists()
    made_folder(folder)
    with locked(folder):
        try:
            with partial_folder(folder) as partial:
                yield partial
        except BaseException:
            if new and isinstance(folder, Path) and not (folder / UNFINISHED_FOLDER).exists():
                # Only the process that holds the lock may delete it: without the file, a second
                # process would get a lock of its own.
                (folder / LOCK).unlink(missing_ok=True)
                with suppress(OSError):  # not empty: another process has written there
                    folder.rmdir()
            raise


def publish_index(folder: Place, facts: IndexFacts) -> IndexFacts:
    """Write `index.json` for files that are in the folder, and remove the files of the old index.

    Return the facts. The caller holds the folder's lock.
    """
    if isinstance(folder, Path):
        with partial_folder(folder) as partial:
            facts.write(partial)
            replace_files(partial, folder, facts)
    else:
        before = _current_files(folder)
        try:
            facts.write(folder)
        except Busy:
            _remove_unnamed(folder, facts)
            raise
        for path in before - set(facts.paths_in(folder)):
            path.unlink(missing_ok=True)
    _remove_other_builds(folder, facts)
    return facts


def _remove_unnamed(folder: Place, facts: IndexFacts) -> None:
    """Remove the files of a build that lost to another machine's, which does not name them."""
    for path in set(facts.paths_in(folder)) - _current_files(folder):
        path.unlink(missing_ok=True)


def replace_files(partial: Path, folder: Path, facts: IndexFacts) -> None:
    """Move the files in `partial` to the folder, and remove the files of the old index."""
    stale = _current_files(folder) - set(facts.paths_in(folder))
    names = {path.relative_to(folder).as_posix() for path in stale if isinstance(path, Path)}
    publish(partial, folder, INDEX, names)


def _remove_other_builds(folder: Place, facts: IndexFacts) -> None:
    """Remove the folders of other builds, including interrupted ones."""
    named = {facts.at, *(part.folder for part in facts.parts)}
    for path in [*folder.iterdir()]:
        if BUILD_FOLDER.fullmatch(path.name) and path.name not in named and path.is_dir():
            remove(path)


def _current_files(folder: Place) -> set[Place]:
    """Return the files of the index in the folder; none if it holds no complete index."""
    try:
        return set(IndexFacts.read(folder).paths_in(folder))
    except Unreachable:
        raise
    except BadInput:
        return set()
