"""Open index folders, and read their facts.

A folder has the file of the backend's library, `rows.parquet` (id, label and path in row order),
and `index.json`: the options of the build, the identity of the embeddings, and the sha256 of every
file. A search does not need the embeddings. docs/formats.md describes the formats.

A remote store cannot rename files. There, each build writes into a folder of its own, so that the
old files stay complete until `index.json` names the new ones.

An index in parts has a folder for each segment; see `retrieval.index.build_segments`.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import pyarrow as pa

from retrieval.choices import resolve_choices
from retrieval.contracts import (
    Index,
    Indexer,
    Json,
    Metric,
    Tunable,
)
from retrieval.errors import BadData, BadInput, Mismatch
from retrieval.index.renumbering import renumbered
from retrieval.index.row_tables import COLUMNS, ROWS, RowColumns, read_rows
from retrieval.index.segments import SegmentedIndex
from retrieval.registry import make_indexer, typed_options
from retrieval.storage.cache import fetched
from retrieval.storage.document import check_at_least, read_document
from retrieval.storage.files import (
    sha256_of,
    write_sealed,
)
from retrieval.storage.places import Place, place_of
from retrieval.storage.publishing import settle
from retrieval.storage.sets.compatible import check_same_encoder
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.storage.sets.manifest import EncoderFacts

FORMAT = "retr-index"
VERSION = 3  # 1 had no checksum and no parts; 2 linked each copy of a vector
REMEDY = "index again"
INDEX = "index.json"
SEGMENT_PREFIX = "part-"  # prefix of the name of a segment's folder
BUILD_FOLDER = re.compile(f"{SEGMENT_PREFIX}[0-9a-f]{{12}}|[0-9a-f]{{16}}")
"""Names of a segment's folder, and of the folder of a build's files in a remote store."""
RECALL = "recall_at_10"  # name in `details` of the recall for some of the index's own rows
GOOD_RECALL = 0.9


@dataclass(frozen=True, slots=True)
class Segment:
    """Segment of an index: an index folder inside the index folder. sha256: of its `index.json`."""

    folder: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """Facts about an index, as in `index.json`."""

    backend: str
    options: Mapping[str, Json]
    metric: Metric
    dim: int
    rows: int
    encoder: EncoderFacts
    embeddings: tuple[str, ...]  # the identity of each set
    details: Mapping[str, Json]
    versions: Mapping[str, str]
    files: Mapping[str, str]  # file name to sha256
    deleted: int = 0  # number of rows of the sets that were deleted
    at: str = ""  # the folder of the files; empty if it is the folder of `index.json`
    parts: tuple[Segment, ...] = ()  # the segments, named as in `index.json`
    added: int = 0  # number of rows that were added after the build

    def __post_init__(self) -> None:
        resolve_choices(self)

    @property
    def poor_recall(self) -> float | None:
        """Return the recall@10 measured after the build if it is below GOOD_RECALL, else None."""
        recall = self.details.get(RECALL)
        return recall if isinstance(recall, float) and recall < GOOD_RECALL else None

    @property
    def efforts(self) -> list[str]:
        """Return the search options that raise recall; empty for a backend without ladders."""
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
        """Read the facts of the index folder, after finishing an interrupted publication.

        Raises BadInput if it is not an index folder, BadData if `index.json` is damaged or too new,
        and the errors of `settle`.
        """
        path = folder / INDEX
        if not is_index(folder):
            raise BadInput(
                f"{folder} is not an index: {INDEX} not found; build it with 'retr index'"
            )
        facts = read_document(path, cls, FORMAT, VERSION, REMEDY)
        rows = [segment.rows for segment in facts.parts]
        if rows and sum(rows) != facts.rows:
            raise BadData(
                f"{path}: the {len(rows)} parts have {sum(rows):,} of {facts.rows:,} rows; {REMEDY}"
            )
        check_at_least(0, {"rows": facts.rows, "deleted": facts.deleted}, path, REMEDY)
        inside = (*facts.files, *(part.folder for part in facts.parts), facts.at or INDEX)
        if any(Path(name).name != name for name in inside):
            raise BadData(f"{path} names a file outside its folder; {REMEDY}")
        return facts

    def paths_in(self, folder: Place) -> list[Place]:
        """Return the files of the index in the folder, those of its segments included.

        Raises the errors of `read` for segments.
        """
        home = folder / self.at if self.at else folder
        paths = [home / name for name in self.files]
        for part in self.parts:
            inside = folder / part.folder
            paths += [inside / INDEX, *IndexFacts.read(inside).paths_in(inside)]
        return paths

    def size_in(self, folder: Place) -> int:
        """Return the size of these files in bytes; a missing file counts as empty."""
        return sum(map(_size, self.paths_in(folder)))


@dataclass(frozen=True, slots=True, eq=False)
class OpenIndex:
    """An index folder, opened: row i of `index` is row i of `rows` (id, label, path).

    columns: of the same rows, for filters.
    """

    folder: Place
    facts: IndexFacts
    index: Index
    rows: pa.Table
    columns: RowColumns


def is_index(folder: Place) -> bool:
    """Return whether the folder is an index, after finishing an interrupted publication.

    No other code may look for `index.json`: files of a new index may wait to be moved. Raises the
    errors of `settle`.
    """
    if isinstance(folder, Path):
        settle(folder, INDEX)
    return (folder / INDEX).is_file()


def open_index(folder: Place | str, options: Mapping[str, object] | None = None) -> OpenIndex:
    """Open the index in the folder or at the URL, with changed search options.

    Raises BadInput if it is not an index folder, or an option cannot be changed after the build;
    BadData if a file is missing, damaged or another one.
    """
    folder = place_of(folder)
    while True:
        facts = IndexFacts.read(folder)
        try:
            return _opened(folder, facts, options)
        except BadData:
            if IndexFacts.read(folder) == facts:
                raise  # else another process has replaced the index: open it again


def changed_options(
    facts: IndexFacts, options: Mapping[str, object] | None
) -> tuple[IndexFacts, Indexer]:
    """Return the facts with changed search options, and the indexer with them.

    Raises BadInput for an option that is fixed by the build, and the errors of `typed_options`.
    """
    indexer = make_indexer(facts.backend, {**facts.options, "metric": facts.metric})
    if not options:
        return facts, indexer
    changed = typed_options(facts.backend, type(indexer), options)
    fixed = sorted(set(changed) - indexer.search_options)
    if fixed:
        free = ", ".join(sorted(indexer.search_options)) or "none"
        raise BadInput(
            f"option {fixed[0]} cannot be changed after a build of {facts.backend}; "
            f"{REMEDY}, or change one of: {free}"
        )
    indexer = replace(cast(Any, indexer), **changed)
    return replace(facts, options=options_of(indexer)), indexer


def _opened(folder: Place, facts: IndexFacts, options: Mapping[str, object] | None) -> OpenIndex:
    facts, indexer = changed_options(facts, options)
    if facts.parts:
        opened = [_open_part(folder, part, options) for part in facts.parts]
        index: Index = SegmentedIndex([each.index for each in opened])
        rows = pa.concat_tables([each.rows for each in opened])
        columns = RowColumns.joined([each.columns for each in opened])
    else:
        here = local_files(folder, facts)
        rows = read_rows(here)
        columns = RowColumns.of(here, facts.rows, COLUMNS in facts.files)
        index = renumbered(indexer.load(here), here)
    if not len(index) == len(rows) == facts.rows or index.dim != facts.dim:
        raise BadData(
            f"the files of {folder} do not match: {len(index):,} vectors of {index.dim} "
            f"dimensions, {len(rows):,} rows, and {facts.rows:,} rows of {facts.dim} dimensions "
            f"in {INDEX}; {REMEDY}"
        )
    return OpenIndex(folder, facts, index, rows, columns)


def rows_of(folder: Place, facts: IndexFacts) -> pa.Table:
    """Return id, label and path of each row of an index that is not opened. Raises BadData."""
    if facts.parts:
        insides = [folder_of(part, folder) for part in facts.parts]
        return pa.concat_tables([rows_of(each, IndexFacts.read(each)) for each in insides])
    return read_rows(local_files(folder, _with_files(facts, ROWS)))


def columns_of(folder: Place, facts: IndexFacts) -> RowColumns:
    """Return the columns for filters of an index that is not opened. Raises BadData."""
    if facts.parts:
        insides = [folder_of(part, folder) for part in facts.parts]
        return RowColumns.joined([columns_of(each, IndexFacts.read(each)) for each in insides])
    here = local_files(folder, _with_files(facts, COLUMNS))
    return RowColumns.of(here, facts.rows, COLUMNS in facts.files)


def _with_files(facts: IndexFacts, *names: str) -> IndexFacts:
    """Return the facts with these files alone, as far as there are any."""
    files = {name: sha256 for name, sha256 in facts.files.items() if name in names}
    return replace(facts, files=files)


def _open_part(folder: Place, part: Segment, options: Mapping[str, object] | None) -> OpenIndex:
    return open_index(folder_of(part, folder), options)


def folder_of(part: Segment, folder: Place) -> Place:
    """Return the folder of a segment. Raises BadData if it is missing or another one."""
    inside = folder / part.folder
    if not is_index(inside):
        raise BadData(f"{inside} is missing; {REMEDY}")
    if sha256_of(inside / INDEX) != part.sha256:
        raise BadData(f"{inside} has a checksum mismatch with {folder / INDEX}; {REMEDY}")
    return inside


def local_files(folder: Place, facts: IndexFacts) -> Path:
    """Return a local folder with the index's files, checked. Files of a store are downloaded."""
    home = folder / facts.at if facts.at else folder
    if isinstance(home, Path):
        check_files(home, facts)
        return home
    return fetched(home, facts.files, REMEDY)


def check_files(folder: Path, facts: IndexFacts) -> None:
    """Raise BadData if a file of the index is missing or has another checksum."""
    for name, sha256 in facts.files.items():
        path = folder / name
        if not path.is_file():
            raise BadData(f"{path} is missing; {REMEDY}")
        if sha256_of(path) != sha256:
            raise BadData(f"{path} is damaged: checksum mismatch; {REMEDY}")


def check_indexed(opened: OpenIndex, database: Embeddings) -> None:
    """Raise Mismatch unless the index was built from this set of embeddings alone."""
    check_same_encoder(
        opened.facts.encoder, database.facts.encoder, str(opened.folder), str(database.folder)
    )
    if opened.facts.deleted:
        raise Mismatch(
            f"{opened.facts.deleted:,} rows were deleted from {opened.folder}, so that it differs "
            f"from {database.folder}; index the embeddings again"
        )
    if opened.facts.embeddings != (database.identity,):
        raise Mismatch(
            f"{opened.folder} was not built from the current state of {database.folder}; "
            "index it again, or name the embeddings that the index was built from"
        )


def options_of(indexer: Indexer) -> dict[str, Json]:
    """Return the indexer's fields without the metric."""
    options = asdict(cast(Any, indexer))
    options.pop("metric")
    return options


def _size(path: Place) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
