"""Index folders: building them from embeddings, and opening them.

A folder holds the library's own file, `rows.parquet` (id, label and path in row order) and
`index.json`, which says what was built, from which embeddings, and the sha256 of every file.
It is searchable without the embeddings it was built from. docs/formats.md writes it out.
"""

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.contracts import Index, Indexer, Json, Metric, Storing, Streaming, Vectors
from retrieval.errors import BadData, BadInput, Mismatch
from retrieval.registry import make_indexer, typed_options
from retrieval.storage.files import (
    LOCK,
    PARTIAL,
    check_format,
    locked,
    made_folder,
    read_json,
    sha256_of,
    sync_folder,
    write_json,
    write_whole,
)
from retrieval.storage.shards import (
    MANIFEST,
    ROW_FIELDS,
    Embeddings,
    EncoderFacts,
    check_free,
    check_unique,
    vectors_of,
)

FORMAT = "retr-index"
VERSION = 1
INDEX = "index.json"
ROWS = "rows.parquet"
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
}


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """What `index.json` says about an index."""

    backend: str
    options: Mapping[str, Json]
    metric: Metric
    dim: int
    rows: int
    encoder: EncoderFacts
    embeddings: tuple[str, ...]  # the sha256 of the manifest of each folder that was indexed
    details: Mapping[str, Json]
    versions: Mapping[str, str]
    files: Mapping[str, str]  # file name to sha256
    deleted: int = 0  # rows of these embeddings that are no longer there

    def write(self, folder: Path) -> None:
        """Write `index.json`, whole or not at all."""
        write_json(folder / INDEX, {"format": FORMAT, "version": VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The facts of the index folder.

        Raises BadInput if it is none, BadData if `index.json` is damaged or too new.
        """
        path = folder / INDEX
        if not path.is_file():
            raise BadInput(f"{folder} is no index: it has no {INDEX}; make one with 'retr index'")
        document: dict[str, Any] = read_json(path)
        check_format(document, FORMAT, VERSION, path)
        del document["format"], document["version"]
        try:
            document.setdefault("deleted", 0)  # what was written before rows could be deleted
            document["metric"] = Metric(document["metric"])
            document["encoder"] = EncoderFacts(**document["encoder"])
            document["embeddings"] = tuple(document["embeddings"])
            facts = cls(**document)
            for name, kind in _KINDS.items():
                if not isinstance(document[name], kind) or isinstance(document[name], bool):
                    raise ValueError(f"{name}: {document[name]!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise BadData(f"{path} lacks or misstates {error}; index anew") from None
        if any(Path(name).name != name for name in facts.files):
            raise BadData(f"{path} names a file outside its folder; index anew")
        return facts


@dataclass(frozen=True, slots=True, eq=False)
class OpenIndex:
    """An index folder, opened: row i of `index` is row i of `rows` (id, label, path)."""

    folder: Path
    facts: IndexFacts
    index: Index
    rows: pa.Table


def build_index(
    sets: Sequence[Embeddings],
    backend: str,
    folder: Path,
    metric: Metric | None = None,
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
    common_facts(sets)  # refused before the work
    if "metric" in (options or {}):
        raise BadInput("the metric is no option of the backend; give it with --metric")
    indexer = make_indexer(backend, {**(options or {}), "metric": metric or sets[0].facts.metric})
    check_free(folder, INDEX)
    if not any(map(len, sets)):
        raise BadInput("there are no embeddings to index; encode some images first")
    build: Callable[[], Index]
    if isinstance(indexer, Storing | Streaming):
        rows = _joined([each.rows() for each in sets], sets)
        shards = _Shards(sets, rows, folder / UNFINISHED)
        run = indexer.store if isinstance(indexer, Storing) else indexer.build_from
        build = functools.partial(run, shards)
    else:
        rows, vectors = read_all(sets)
        build = functools.partial(indexer.build, vectors)
    with building(folder) as partial:
        index = build()
        facts = described(backend, indexer, index, sets)
        facts = write_index(partial, folder, index, rows, facts)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        return facts


def described(
    backend: str, indexer: Indexer, index: Index, sets: Sequence[Embeddings]
) -> IndexFacts:
    """What is known of an index before it is written."""
    return IndexFacts(
        backend=backend,
        options=options_of(indexer),
        metric=indexer.metric,
        dim=index.dim,
        rows=len(index),
        encoder=common_facts(sets),
        embeddings=tuple(sha256_of(each.folder / MANIFEST) for each in sets),
        details={},
        versions={},
        files={},
    )


def write_index(
    partial: Path, folder: Path, index: Index, rows: pa.Table, facts: IndexFacts
) -> IndexFacts:
    """Write the index into `partial`, move it to `folder`, and return what is known of it now.

    facts: those that do not follow from the index and its files.
    """
    index.save(partial)
    write_whole(partial / ROWS, lambda path: pq.write_table(rows, path, compression="zstd"))
    names = sorted(path.name for path in partial.iterdir())
    facts = replace(
        facts,
        rows=len(index),
        details=dict(index.details),
        versions=_versions(),
        files={name: sha256_of(partial / name) for name in names},
    )
    facts.write(partial)
    _publish(partial, folder, facts)
    return facts


def open_index(folder: Path | str, options: Mapping[str, object] | None = None) -> OpenIndex:
    """The index in the folder, with its search options changed as `options` says.

    Raises BadInput if it is no index folder or an option cannot be changed after the build,
    BadData if a file is missing, damaged or not the one that was written.
    """
    folder = Path(folder)
    facts = IndexFacts.read(folder)
    check_files(folder, facts)
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
    rows = _read_rows(folder)
    index = indexer.load(folder)
    if not len(index) == len(rows) == facts.rows or index.dim != facts.dim:
        raise BadData(
            f"{folder} does not fit together: {len(index):,} vectors of {index.dim} dimensions, "
            f"{len(rows):,} rows, {facts.rows:,} and {facts.dim} in {INDEX}; index anew"
        )
    return OpenIndex(folder, facts, index, rows)


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
    if opened.facts.embeddings != (sha256_of(database.folder / MANIFEST),):
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
        return [sha256_of(each.folder / MANIFEST) for each in self.sets]

    def __iter__(self) -> Iterator[Vectors]:
        for each in self.sets:
            for table in each.tables():
                yield np.asarray(vectors_of(table), np.float32)


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
def fresh(folder: Path) -> Iterator[Path]:
    """The folder, empty, for as long as it is needed."""
    shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed left behind
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Room beside the index, with the folder locked; a new one is gone if nothing comes of it."""
    new = not folder.exists()
    made_folder(folder)
    try:
        with locked(folder), fresh(folder / PARTIAL) as partial:
            yield partial
    except BaseException:
        if new and not (folder / UNFINISHED).exists():
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # another has written there meanwhile
                folder.rmdir()
        raise


def _publish(partial: Path, folder: Path, built: IndexFacts) -> None:
    """Put the finished files into `folder`, where an older index may stand.

    `folder` itself stays, as it may be a mounted disk, a link or where the caller is. Who opens
    the index between two of the moves finds hashes that do not fit, and no wrong index.
    """
    stale = _files_of(folder) - set(built.files)
    for name in (*built.files, INDEX):
        (partial / name).replace(folder / name)
    sync_folder(folder)
    for name in stale:
        (folder / name).unlink(missing_ok=True)


def _files_of(folder: Path) -> set[str]:
    """The files of the index that stands in the folder; none where there is no whole one."""
    try:
        return set(IndexFacts.read(folder).files)
    except BadInput:
        return set()


def _read_rows(folder: Path) -> pa.Table:
    path = folder / ROWS
    try:
        rows = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadData(f"cannot read {path} ({error}); index anew") from None
    if not rows.schema.equals(pa.schema(ROW_FIELDS)):
        raise BadData(f"{path} has other columns than id, label and path; index anew")
    return rows
