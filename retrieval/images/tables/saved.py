"""Data sets that Hugging Face's `save_to_disk` wrote: folders of Arrow files.

`state.json` names the files of a data set in their order. A `DatasetDict` is a folder with
`dataset_dict.json` and such a folder for each split.
"""

import json
from pathlib import Path
from typing import Any

from retrieval.errors import BadSource, UnknownName
from retrieval.images.source import Note, text
from retrieval.images.tables.choice import Columns
from retrieval.images.tables.parquet import SPLITS, ParquetSource
from retrieval.storage.places import Place

STATE = "state.json"
SPLITS_FILE = "dataset_dict.json"
_INDICES = ("_indices_files", "_indices_data_files")  # rows in another order, of old versions
_REMEDY = "write it with save_to_disk again"


def open_saved(
    folder: Path, split: str | None, note: Note, columns: Columns
) -> ParquetSource | None:
    """Return the data set in the folder; None unless `save_to_disk` wrote it.

    Of a DatasetDict it is the split, by default `train`. Raises UnknownName for one that is not
    there, BadSource for a data set without its files or with rows in another order than they are.
    """
    if (folder / SPLITS_FILE).is_file():
        splits = _strings(folder / SPLITS_FILE, "splits")
        wanted = split or SPLITS[0]
        if wanted not in splits:
            raise UnknownName(f"split of {text(folder)}", wanted, splits)
        below = folder / _plain_name(folder / SPLITS_FILE, wanted)
        files = [*_files(below).values()]
        return ParquetSource.of_split(f"{text(folder)}/{wanted}", files, wanted, note, columns)
    if not _is_saved(folder):
        return None
    if split is not None and _read(folder / STATE).get("_split") != split:
        raise BadSource(f"{text(folder)} has no split '{split}'; leave the split out")
    return ParquetSource.of_files(text(folder), _files(folder), note, columns)


def _is_saved(folder: Path) -> bool:
    try:
        return "_data_files" in _read(folder / STATE)
    except BadSource:
        return False


def _files(folder: Path) -> dict[str, Place]:
    """Return the files of the data set by name, in the order of its rows."""
    state = _read(folder / STATE)
    if any(state.get(key) for key in _INDICES):
        raise BadSource(
            f"{text(folder)} has an indices mapping: its rows are in another order than its files;"
            " call flatten_indices() in datasets, and save it again"
        )
    names = _strings(folder / STATE, "_data_files", "filename")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BadSource(f"{text(folder)} lacks {missing[0]}, which {STATE} names; {_REMEDY}")
    return {name: folder / name for name in names}


def _strings(file: Path, key: str, field: str | None = None) -> list[str]:
    """Return the strings in the list `key` of a JSON file, or those in `field` of its objects."""
    values = _read(file).get(key)
    values = values if isinstance(values, list) else [None]
    if field is not None:
        values = [each.get(field) if isinstance(each, dict) else None for each in values]
    return [_plain_name(file, value) for value in values]


def _plain_name(file: Path, name: object) -> str:
    """Return the name, if it is one of a file or folder beside the JSON file, and no path
    elsewhere.
    """
    if (
        not isinstance(name, str)
        or not name
        or name in (".", "..")
        or set(name) & {"/", "\\", "\0"}
    ):
        raise BadSource(f"{text(file)} names {name!r:.80}, not a file in its folder; {_REMEDY}")
    return name


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadSource(f"cannot read {text(file)}: {error}; {_REMEDY}") from error
    if not isinstance(document, dict):
        raise BadSource(f"{text(file)} is not a JSON object; {_REMEDY}")
    return document
