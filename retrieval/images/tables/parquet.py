"""Images in tables: Parquet and Arrow files, such as those of Hugging Face's `datasets`.

`columns` says which columns hold images and labels, `tables` reads the files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from retrieval.errors import BadImage, BadSource
from retrieval.images.source import Item, Note, digest, name_and_size, natural, no_note, text
from retrieval.images.tables.cells import content_of, contents, labels
from retrieval.images.tables.choice import NO_CHOICE, Columns
from retrieval.images.tables.columns import FoundColumns, find, label_kind, wanted
from retrieval.images.tables.further import check_further, read_further_columns
from retrieval.images.tables.table import opened
from retrieval.storage.places import Place
from retrieval.storage.sets.columns import FurtherColumns, unified

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, eq=False)
class TableFile:
    """A file, its number of rows, and the prefix of their ids.

    found: its columns; None if it has no rows. labels: their kind; None without labels.
    """

    file: Place
    rows: int
    name: str
    found: FoundColumns | None
    labels: str | None


@dataclass(frozen=True, slots=True, eq=False)
class ParquetSource:
    """The rows of the files, one after the other.

    The ids of a split are its name and the position, `test/00042`; without splits they are the
    path of the file below the root, and the row in it: `part-00000.parquet#42`.
    """

    name: str
    fingerprint: str
    tables: tuple[TableFile, ...]
    split: str | None
    columns: Columns = NO_CHOICE

    @classmethod
    def of_split(
        cls,
        name: str,
        files: Sequence[Place],
        split: str,
        note: Note = no_note,
        columns: Columns = NO_CHOICE,
    ) -> "ParquetSource":
        """Return the split of a data set. Copies of its files have the same fingerprint."""
        tables = tuple(_table_file(file, file.name, columns) for file in files)
        facts = ["parquet", split, *map(name_and_size, files), *_choices(tables)]
        _check(name, tables, note)
        return cls(name, digest(facts), tables, split, columns)

    @classmethod
    def of_files(
        cls,
        name: str,
        files: Mapping[str, Place],
        note: Note = no_note,
        columns: Columns = NO_CHOICE,
    ) -> "ParquetSource":
        """Return all rows of the files. The paths are part of the rows' ids."""
        tables = tuple(_table_file(file, text(path), columns) for path, file in files.items())
        facts = [(p.name, *name_and_size(p.file), _changed(p.file)) for p in tables]
        _check(name, tables, note)
        return cls(name, digest([*facts, *_choices(tables)]), tables, None, columns)

    def __len__(self) -> int:
        return sum(each.rows for each in self.tables)

    @property
    def columns_fingerprint(self) -> str | None:
        """The sha256 of the source's fingerprint and the names of its further columns."""
        return digest([self.fingerprint, *self.columns.others]) if self.columns.others else None

    def further_columns(self) -> FurtherColumns | None:
        """Return the further columns that were chosen."""
        fingerprint = self.columns_fingerprint
        if fingerprint is None:
            return None
        tables, before = [], 0
        for each in self.tables:
            if each.rows:
                numbers = range(before, before + each.rows)
                ids = [
                    f"{each.name}#{n - before}" if self.split is None else f"{self.split}/{n:05}"
                    for n in numbers
                ]
                table = read_further_columns(each.file, self.columns.others)
                tables.append(table.add_column(0, "id", pa.array(ids, pa.string())))
            before += each.rows
        return FurtherColumns(unified(tables), fingerprint)

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the items from position `start` on, read by record batches."""
        before = 0
        for each in self.tables:
            end = before + each.rows
            if each.rows and start < end:
                for row, item in _rows(each, max(0, start - before), self.columns):
                    if self.split is not None:
                        ident = f"{self.split}/{before + row:05}"
                        item = Item(ident, item.label, item.path, item.content)
                    yield item
            before = end


def split_files(folder: Path) -> dict[str, list[Place]]:
    """Return the files of each split of a data set in a folder."""
    return by_split([*folder.glob("*.parquet")])


def by_split(files: Iterable[Place]) -> dict[str, list[Place]]:
    """Return the files of each split: `train-00000-of-00001.parquet`, or `train.parquet`."""
    files = sorted(files, key=lambda file: natural(file.name))
    found = {s: [f for f in files if f.stem == s or f.name.startswith(f"{s}-")] for s in SPLITS}
    return {split: of_split for split, of_split in found.items() if of_split}


def read_row(file: Place, row: int, image: str | None = None) -> bytes | Place | BadImage | None:
    """Return the content of the image in this row; None if the file has fewer rows.

    image: its column; None: the one that is found. Raises BadSource.
    """
    with opened(file) as table:
        if not table.rows:
            return None
        found = find(text(file), table.schema, Columns(image, ""))
        batch = table.row(row, wanted(table.schema, found))
        if batch is None:
            return None
        ((data, path),) = contents(batch, found.image)
        return content_of(data, path, file, f"{text(file)}{found.mark}#{row}")


def _table_file(file: Place, name: str, columns: Columns) -> TableFile:
    with opened(file) as table:
        if not table.rows:  # pandas writes an empty frame without the types of its columns
            return TableFile(file, 0, name, None, None)
        found = find(text(file), table.schema, columns)
        check_further(text(file), table.schema, columns.others)
        known = found.label is not None and table.has_values(found.label)
        kind = label_kind(table.schema, found) if known else None
        return TableFile(file, table.rows, name, found, kind)


def _rows(each: TableFile, start: int, columns: Columns) -> Iterator[tuple[int, Item]]:
    """Yield each row number and its item, from `start` on; earlier rows are not read."""
    where = text(each.file)
    with opened(each.file) as table:
        found = find(where, table.schema, columns)
        row = start
        for batch in table.batches(start, wanted(table.schema, found)):
            unknown: list[str | None] = [None] * batch.num_rows
            label = found.label
            names = labels(where, batch.column(label), found.names) if label else unknown
            for (data, path), name in zip(contents(batch, found.image), names, strict=True):
                place = f"{each.file}{found.mark}#{row}"
                content = content_of(data, path, each.file, place)
                yield row, Item(f"{each.name}#{row}", name, place, content)
                row += 1


def _choices(tables: Sequence[TableFile]) -> Iterator[object]:
    """Yield the columns of the files that are not the first defaults, for the fingerprint."""
    for number, each in enumerate(tables):
        if each.found is not None and each.found.fact is not None:
            yield "columns", number, each.found.fact


def _check(name: str, tables: Sequence[TableFile], note: Note) -> None:
    """Raise BadSource if labels are names in one file and numbers in another; note a choice."""
    kinds: dict[str, TableFile] = {}
    for each in tables:
        if each.labels is not None:
            kinds.setdefault(each.labels, each)
    if len(kinds) > 1:
        (one, first), (other, second), *_ = kinds.items()
        raise BadSource(
            f"labels of {text(first.file)} are {one}, those of {text(second.file)} are {other}: "
            "one class would have two names; encode the files apart, or choose another column with "
            "--label-column"
        )
    found = [each.found for each in tables if each.found is not None]
    for what, taken, passed_over in (
        ("image", {each.image for each in found}, {n for f in found for n in f.passed_over[0]}),
        ("label", {each.label for each in found}, {n for f in found for n in f.passed_over[1]}),
    ):
        if passed_over:
            note(
                f"{what}s of {name} are those of column {_listed(taken)}, not of "
                f"{_listed(passed_over)}; choose with --{what}-column"
            )
    of_labels = {each.label for each in found}
    if len(of_labels) > 1:
        where = {t.found.label: t for t in reversed(tables) if t.found is not None}
        places = (f"{_listed({k})} in {p.name}" for k, p in where.items())
        note(
            f"files of {name} have labels in different columns: {', '.join(places)}; "
            "choose with --label-column"
        )


def _listed(names: Iterable[str | None]) -> str:
    return ", ".join(sorted("none" if name is None else f"'{name}'" for name in names))


def _changed(file: Place) -> int | str:
    """When the file was changed, ns; of one in a store, its version."""
    return file.stat().st_mtime_ns if isinstance(file, Path) else file.stat().version
