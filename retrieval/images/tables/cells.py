"""Read images and labels from the cells of a table."""

import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrieval.errors import BadImage, BadSource
from retrieval.images.source import text
from retrieval.images.tables.column_types import image_fields, is_binary, plain_type
from retrieval.storage.places import Place
from retrieval.values import shortened


def contents(batch: pa.RecordBatch, image: str) -> list[tuple[bytes | None, str | None]]:
    """Return the encoded image and the path of each row; None if the row has none."""
    column = batch.column(image)
    kind = plain_type(column.type)
    nothing: list[Any] = [None] * batch.num_rows
    if pa.types.is_struct(kind):
        fields = [field.name for field in kind]
        values = dict(zip(fields, column.flatten(), strict=True))  # null where the struct is null
        parts = {name: values[name].to_pylist() for name in image_fields(kind)}
        return list(zip(parts.get("bytes", nothing), parts.get("path", nothing), strict=True))
    values = column.to_pylist()
    if is_binary(kind):
        return list(zip(values, nothing, strict=True))
    return list(zip(nothing, values, strict=True))


def content_of(
    data: bytes | None, path: str | None, file: Place, where: str
) -> bytes | Place | BadImage:
    """Return the encoded image, the file of the path, or the error.

    A path is relative to the folder of `file`. A path outside that folder is an error: the table
    may be untrusted. where: the row's name in errors.
    """
    if data is not None and (data or not path):
        return data
    if not path:
        return BadImage(where, "no image in this row")
    here = f"the row has no bytes but the path {shortened(path)!r}"
    if "://" in path:
        return BadImage(where, f"{here}, a URL; download the image first")
    found = _below(file.parent, path) if isinstance(file, Path) else _below_url(file.parent, path)
    if found is None:
        return BadImage(where, f"{here}, which is outside the folder of the table")
    if isinstance(found, Path) and not _is_file(found):
        return BadImage(where, f"{here}: no such file in the folder of the table")
    return found


def labels(where: str, column: pa.Array, names: Sequence[str] | None) -> list[str | None]:
    """Return the labels as text, None if unknown. Raises the errors of `label_text`."""
    if pa.types.is_floating(column.type):  # text keeps 0.1 of float32 as 0.1
        values = [None if t is None else float(t) for t in column.cast(pa.string()).to_pylist()]
    else:
        values = column.to_pylist()
    return [label_text(where, value, names) for value in values]


def label_text(where: str, value: object, names: Sequence[str] | None = None) -> str | None:
    """Return the label of this value: its name if integers have names; None for null, NaN, -1.

    A whole number is written without a fraction: a column of integers with gaps becomes one of
    floats in pandas. Raises BadSource for a list, a mapping, a number without a name, and bytes
    that are not UTF-8.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise BadSource(
                f"a label of {where} is bytes that are not UTF-8; choose another column with "
                "--label-column"
            ) from error
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list | tuple | dict):
        raise BadSource(f"a label of {where} {SEVERAL_VALUES}")
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return None
    if not isinstance(value, int | float | Decimal):
        return str(value)
    whole = math.isfinite(value) and value == int(value)
    if whole and not isinstance(value, bool) and value == -1:  # `datasets` writes it for unknown
        return None
    if names is not None:
        if not whole or not 0 <= value < len(names):
            raise BadSource(
                f"label {value} has no name ({len(names)} names); correct the schema metadata of "
                f"{where}"
            )
        return names[int(value)]
    if isinstance(value, Decimal) and not whole:
        return format(value.normalize(), "f")
    return str(int(value)) if whole and not isinstance(value, bool) else str(value)


SEVERAL_VALUES = (
    "holds several values, and an image has only one label; choose another column with "
    "--label-column, or no labels with --label-column ''"
)


def _below(folder: Path, path: str) -> Path | None:
    """Return the file of this path, links followed; None if it is outside the folder."""
    try:
        root = folder.resolve()
        found = (root / path).resolve()
    except (OSError, ValueError, RuntimeError):  # null characters, names too long, links in a ring
        return None
    return found if found.is_relative_to(root) else None


def _below_url(folder: Place, path: str) -> Place | None:
    parts = path.replace("\\", "/").split("/")
    return None if ":" in path or not parts[0] or ".." in parts else folder / path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
