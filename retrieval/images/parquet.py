"""Images in Parquet, in the schema of Hugging Face's `datasets`.

The column `img` or `image` is a struct of `bytes`, an encoded image, and `path`. The column
`label` may be missing, or hold strings or integers, whose names are in the schema metadata:
key `huggingface`, JSON, `info.features.label.names`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import BadSource
from retrieval.images.source import CHUNK, Item, digest, name_and_size, natural, text
from retrieval.storage.places import Place

SPLITS = ("train", "validation", "test")
_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMN = "label"
_BUFFER = 1 << 20  # bytes; without it a row group is read whole


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A Parquet file, how many rows it has, and what the ids of its rows begin with."""

    file: Place
    rows: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class ParquetSource:
    """The rows of the parts, one after the other.

    The ids of a split are its name and the position, `test/00042`; without splits they are the
    path of the file below the root, and the row in it: `part-00000.parquet#42`.
    """

    name: str
    fingerprint: str
    parts: tuple[Part, ...]
    split: str | None

    @classmethod
    def of_split(cls, name: str, files: Sequence[Place], split: str) -> "ParquetSource":
        """The split of a data set; a copy of the files is the same source."""
        facts = ["parquet", split, *map(name_and_size, files)]
        parts = tuple(_part(file, file.name) for file in files)
        return cls(name, digest(facts), parts, split)

    @classmethod
    def of_files(cls, name: str, files: Mapping[str, Place]) -> "ParquetSource":
        """All rows of the files, by the paths that lead to them."""
        parts = tuple(_part(file, text(path)) for path, file in files.items())
        facts = [(p.name, *name_and_size(p.file), _changed(p.file)) for p in parts]
        return cls(name, digest(facts), parts, None)

    def __len__(self) -> int:
        return sum(part.rows for part in self.parts)

    def items(self, start: int = 0) -> Iterator[Item]:
        """The items from position `start` on, read by record batches."""
        before = 0
        for part in self.parts:
            if start < before + part.rows:
                for row, content, label in _rows(part.file, max(0, start - before)):
                    position = before + row
                    ident = f"{part.name}#{row}"
                    if self.split is not None:
                        ident = f"{self.split}/{position:05}"
                    yield Item(ident, label, f"{part.file}#{row}", content)
            before += part.rows


def split_files(folder: Path) -> dict[str, list[Place]]:
    """The files of each split of a data set in a folder."""
    return by_split([*folder.glob("*.parquet")])


def by_split(files: Iterable[Place]) -> dict[str, list[Place]]:
    """The files of each split, by name: `train-00000-of-00001.parquet`, or `train.parquet`."""
    files = sorted(files, key=lambda file: natural(file.name))
    found = {s: [f for f in files if f.stem == s or f.name.startswith(f"{s}-")] for s in SPLITS}
    return {split: of_split for split, of_split in found.items() if of_split}


def read_row(file: Place, row: int) -> bytes | None:
    """The encoded image in this row, None where there is no such row. Raises BadSource."""
    with _opened(file) as (parquet, columns):
        before = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if row < before + rows:
                table = parquet.read_row_group(group, columns=[columns.content])
                return _contents(table.slice(row - before, 1).to_batches()[0], columns)[0]
            before += rows
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Where images and labels are, and what integers among the labels mean."""

    image: str
    label: str | None
    names: tuple[str, ...] | None

    @property
    def content(self) -> str:
        return f"{self.image}.bytes"

    @property
    def wanted(self) -> list[str]:
        return [self.content, *([self.label] if self.label else [])]


def _part(file: Place, name: str) -> Part:
    with _opened(file) as (parquet, _):
        return Part(file, parquet.metadata.num_rows, name)


def _rows(file: Place, start: int) -> Iterator[tuple[int, bytes, str | None]]:
    """Row, encoded image and label from the row `start` on; row groups before it are not read."""
    with _opened(file) as (parquet, columns):
        group, row = 0, 0
        while row + parquet.metadata.row_group(group).num_rows <= start:
            row += parquet.metadata.row_group(group).num_rows
            group += 1
        groups = list(range(group, parquet.num_row_groups))
        for batch in parquet.iter_batches(CHUNK, groups, columns.wanted, use_threads=False):
            skipped = min(max(0, start - row), batch.num_rows)
            row += skipped
            batch = batch.slice(skipped)
            for content, label in zip(
                _contents(batch, columns), _labels(batch, columns), strict=True
            ):
                yield row, content, label
                row += 1


def _changed(file: Place) -> int | str:
    """When the file was changed, ns; of one in a store, its version."""
    return file.stat().st_mtime_ns if isinstance(file, Path) else file.stat().version


@contextmanager
def _opened(file: Place) -> Iterator[tuple[pq.ParquetFile, _Columns]]:
    """The file, open, and its columns; BadSource for what goes wrong while it is."""
    try:
        with (
            file.open("rb") as stream,
            pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False) as parquet,
        ):
            _check_counts(parquet.metadata)
            yield parquet, _columns(file, parquet.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names not in UTF-8
        reason = str(error).partition("\n")[0]
        raise BadSource(f"cannot read {text(file)} as Parquet: {reason}; copy it anew") from error


def _check_counts(facts: pq.FileMetaData) -> None:
    """Raise ValueError where the file does not have the rows that it says it has."""
    counts = [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != facts.num_rows:
        raise ValueError(f"it counts {facts.num_rows:,} rows and has {sum(counts):,}")


def _columns(file: Place, schema: pa.Schema) -> _Columns:
    for image in _IMAGE_COLUMNS:
        if image in schema.names:
            kind = schema.field(image).type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                break
    else:
        raise BadSource(
            f"no images in {text(file)}: its columns are {', '.join(schema.names)}; "
            "wanted img or image, a struct of bytes and path"
        )
    label = _LABEL_COLUMN if _LABEL_COLUMN in schema.names else None
    return _Columns(image, label, _label_names(file, schema))


def _label_names(file: Place, schema: pa.Schema) -> tuple[str, ...] | None:
    try:
        facts = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = facts.get("info", {}).get("features", {}).get(_LABEL_COLUMN, {}).get("names")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadSource(
            f"the schema metadata 'huggingface' of {text(file)} is not that of a data set; "
            "write it with Hugging Face's datasets, or leave it out"
        ) from error
    return tuple(names) if names else None


def _contents(batch: pa.RecordBatch, columns: _Columns) -> list[bytes]:
    """The encoded images; none at all, as of a file that wasn't embedded, is an empty one."""
    contents = batch.column(columns.image).field("bytes").to_pylist()
    return [content or b"" for content in contents]


def _labels(batch: pa.RecordBatch, columns: _Columns) -> list[str | None]:
    if columns.label is None:
        return [None] * batch.num_rows
    values = batch.column(columns.label).to_pylist()
    return [_label(value, columns.names) for value in values]


def _label(value: object, names: tuple[str, ...] | None) -> str | None:
    if value is None or value == -1:  # -1: what `datasets` writes for unknown
        return None
    if names is None or not isinstance(value, int):
        return str(value)
    if not 0 <= value < len(names):
        raise BadSource(
            f"label {value} has no name: there are {len(names)}; mend the schema metadata"
        )
    return names[value]
