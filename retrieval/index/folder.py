"""Index folders: their facts, and opening them.

A folder holds the library's own file, `rows.parquet` (id, label and path in row order) and
`index.json`, which says what was built, from which embeddings, and the sha256 of every file.
It is searchable without the embeddings it was built from. docs/formats.md writes it out.

In a store, which has no rename, the files of a build lie in a folder of their own, so that those of
the build before stay whole until `index.json` names the new ones. An index in parts is a folder of
such folders: see `retrieval.index.build_segments`.
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
from retrieval.index.segments import SegmentedIndex
from retrieval.registry import make_indexer, typed_options
from retrieval.storage.cache import fetched
from retrieval.storage.compatible import check_same_encoder
from retrieval.storage.document import check_at_least, read_document
from retrieval.storage.embeddings import Embeddings
from retrieval.storage.files import (
    sha256_of,
    write_sealed,
)
from retrieval.storage.manifest import ROW_FIELDS, EncoderFacts
from retrieval.storage.places import Place, place_of
from retrieval.storage.publishing import settle
from retrieval.storage.tables import read_table, with_nfc_labels

FORMAT = "retr-index"
VERSION = 3  # 1 had no checksum, nor parts; 2 linked each copy of a vector
REMEDY = "index again"
INDEX = "index.json"
ROWS = "rows.parquet"
SEGMENT_PREFIX = "part-"  # prefix of the name of a segment's folder
BUILD_FOLDER = re.compile(f"{SEGMENT_PREFIX}[0-9a-f]{{12}}|[0-9a-f]{{16}}")
"""Names of a segment's folder, and of the folder of a build's files in a store."""
RECALL = "recall_at_10"  # in details, of some of the index's own rows
GOOD_RECALL = 0.9


@dataclass(frozen=True, slots=True)
class Segment:
    """Segment of an index: an index folder inside the folder. sha256: of its `index.json`."""

    folder: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """Facts about an index, as `index.json` has them."""

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
    parts: tuple[Segment, ...] = ()  # the segments, named as in `index.json`

    def __post_init__(self) -> None:
        resolve_choices(self)

    @property
    def poor_recall(self) -> float | None:
        """Return the recall@10 measured after the build if it is below GOOD_RECALL, else None."""
        recall = self.details.get(RECALL)
        return recall if isinstance(recall, float) and recall < GOOD_RECALL else None

    @property
    def efforts(self) -> list[str]:
        """Return the search options that raise recall, as far as the backend names them."""
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

        Raises what `read` raises, for a segment.
        """
        home = folder / self.at if self.at else folder
        paths = [home / name for name in self.files]
        for part in self.parts:
            inside = folder / part.folder
            paths += [inside / INDEX, *IndexFacts.read(inside).paths_in(inside)]
        return paths

    def size_in(self, folder: Place) -> int:
        """Return the bytes of these files; a missing file counts as empty."""
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


def open_index(folder: Place | str, options: Mapping[str, object] | None = None) -> OpenIndex:
    """Open the index in the folder or at the URL, with changed search options.

    Raises BadInput if it is not an index folder or an option cannot be changed after the build,
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
                f"{REMEDY}, or change one of: {free}"
            )
        indexer = replace(cast(Any, indexer), **changed)
        facts = replace(facts, options=options_of(indexer))
    if facts.parts:
        opened = [_open_part(folder, part, options) for part in facts.parts]
        index: Index = SegmentedIndex([each.index for each in opened])
        rows = pa.concat_tables([each.rows for each in opened])
    else:
        here = _files_at_hand(folder, facts)
        rows = read_rows(here)
        index = indexer.load(here)
    if not len(index) == len(rows) == facts.rows or index.dim != facts.dim:
        raise BadData(
            f"{folder} does not fit together: {len(index):,} vectors of {index.dim} dimensions, "
            f"{len(rows):,} rows, {facts.rows:,} and {facts.dim} in {INDEX}; {REMEDY}"
        )
    return OpenIndex(folder, facts, index, rows)


def _open_part(folder: Place, part: Segment, options: Mapping[str, object] | None) -> OpenIndex:
    inside = folder / part.folder
    if not is_index(inside):
        raise BadData(f"{inside} is missing; {REMEDY}")
    if sha256_of(inside / INDEX) != part.sha256:
        raise BadData(f"{inside} is not the part that {folder} names; {REMEDY}")
    return open_index(inside, options)


def _files_at_hand(folder: Place, facts: IndexFacts) -> Path:
    """Return the local folder of the index's files, checked; files of a store are fetched."""
    home = folder / facts.at if facts.at else folder
    if isinstance(home, Path):
        check_files(home, facts)
        return home
    return fetched(home, facts.files, REMEDY)


def check_files(folder: Path, facts: IndexFacts) -> None:
    """Raise BadData if a file of the index is missing or not the one that was written."""
    for name, sha256 in facts.files.items():
        path = folder / name
        if not path.is_file():
            raise BadData(f"{path} is missing; {REMEDY}")
        if sha256_of(path) != sha256:
            raise BadData(f"{path} is damaged: its sha256 is not that of {INDEX}; {REMEDY}")


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


def read_rows(folder: Place) -> pa.Table:
    """Return the table of id, label and path in a folder of an index's files. Raises BadData."""
    path = folder / ROWS
    try:
        rows = read_table(path.read_bytes())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); {REMEDY}") from None
    if not rows.schema.equals(pa.schema(ROW_FIELDS)):
        raise BadData(f"{path} has other columns than id, label and path; {REMEDY}")
    return with_nfc_labels(rows)
