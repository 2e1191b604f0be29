"""Sizes of a library's files, kept with an index: damaged files are found before they are read."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retrieval.contracts import Json
from retrieval.errors import BadData


def file_sizes(files: Iterable[Path]) -> dict[str, Json]:
    """Return the size in bytes of each file, by its name."""
    return {file.name: file.stat().st_size for file in files}


def check_file_sizes(folder: Path, files: Iterable[Path], expected: Mapping[str, Any]) -> None:
    """Raise BadData unless the folder's files are those expected, with the same sizes."""
    actual = file_sizes(files)
    for name in sorted({*expected, *actual}):
        if expected.get(name) != actual.get(name):
            raise BadData(
                f"{folder / name} has {actual.get(name, 0):,} of {expected.get(name, 0):,} bytes; "
                "build the index again"
            )
