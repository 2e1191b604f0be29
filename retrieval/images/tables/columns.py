"""Columns of images and labels in a table: found by name and type, or chosen.

An image column holds encoded images, as binary values or as the field `bytes` of a struct, or paths
of images, as strings or as the field `path` of a struct. A label column holds strings, numbers or
booleans. Names of integer labels are in the schema metadata that Hugging Face's `datasets` writes:
key `huggingface`, JSON, `info.features.COLUMN.names`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from retrieval.errors import BadImage, BadSource, UnknownName
from retrieval.images.source import text
from retrieval.storage.places import Place

IMAGE_COLUMNS = (
    "img",
    "image",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "pixel_values",
    "image_bytes",
    "images",
    "photo",
    "picture",
)
"""Names of image columns, the first that is there first; letter case is ignored."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "coarse_label")
"""Names of label columns, in the same way."""

CLASS_COLUMNS = ("class", "category", "class_name", "category_name", "class_label", "label_name")
"""Names of label columns where none of the above is there, and none is declared as classes."""

MAX_SHOWN_CHARACTERS = 80  # paths and types are cut to this length in messages


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that the user chose. None: find one by name and type. An empty label: no labels."""

    image: str | None = None
    label: str | None = None


NO_CHOICE = Columns()


@dataclass(frozen=True, slots=True)
class Found:
    """The columns of one file.

    names: names of integer labels, None where they have none.
    mark: what paths of rows carry before `#ROW`, where the image column would not be found again
    without it: `#COLUMN`, percent-encoded.
    fact: the columns, for the source's fingerprint; None for `img` or `image` and `label`, which
    fingerprints have never named.
    passed_over: the candidates that were not taken, of images and of labels.
    """

    image: str
    label: str | None
    names: tuple[str, ...] | None
    mark: str
    fact: tuple[str, str | None] | None
    passed_over: tuple[tuple[str, ...], tuple[str, ...]]


def find(where: str, schema: pa.Schema, chosen: Columns) -> Found:
    """Return the image column and the label column of a schema.

    where: the file's name in errors. Raises UnknownName for a chosen column that is not there,
    BadSource for one of the wrong type, and where there is no image column.
    """
    features = _features(where, schema)
    images = _image_candidates(schema, features)
    labels = _label_candidates(schema, features)
    if chosen.image is not None:
        image = _named(where, schema, chosen.image)
        _check_image(where, image, schema)
    elif images:
        image = images[0]
    else:
        raise _no_images(where, schema)
    label = labels[0] if labels else None
    if chosen.label is not None:
        label = _named(where, schema, chosen.label) if chosen.label else None
    if label is not None:
        _check_label(where, label, schema)
    return Found(
        image,
        label,
        _names(where, features, label),
        f"#{quote(image, safe='')}" if image not in images[:1] else "",
        (image, label) if (image, label) != _first_defaults(schema) else None,
        (
            tuple(images[1:] if chosen.image is None else ()),
            tuple(labels[1:] if chosen.label is None else ()),
        ),
    )


def wanted(schema: pa.Schema, found: Found) -> list[str]:
    """The columns to read, of a struct its fields `bytes` and `path` alone."""
    kind = schema.field(found.image).type
    images = [found.image]
    if pa.types.is_struct(kind):
        images = [f"{found.image}.{name}" for name in _parts(kind)]
    return [*images, *([found.label] if found.label else [])]


def contents(batch: pa.RecordBatch, image: str) -> list[tuple[bytes | None, str | None]]:
    """The encoded image and the path of each row, None where the row has none."""
    column = batch.column(image)
    kind = _plain(column.type)
    nothing: list[Any] = [None] * batch.num_rows
    if pa.types.is_struct(kind):
        fields = [field.name for field in kind]
        values = dict(zip(fields, column.flatten(), strict=True))  # null where the struct is null
        parts = {name: values[name].to_pylist() for name in _parts(kind)}
        return list(zip(parts.get("bytes", nothing), parts.get("path", nothing), strict=True))
    values = column.to_pylist()
    if _is_binary(kind):
        return list(zip(values, nothing, strict=True))
    return list(zip(nothing, values, strict=True))


def content_of(
    data: bytes | None, path: str | None, file: Place, where: str
) -> bytes | Place | BadImage:
    """Return the encoded image, the file that the path names, or the error.

    A path is relative to the folder of `file`. It must not lead out of that folder: the table may
    be untrusted. where: the row's name in errors.
    """
    if data is not None and (data or not path):
        return data
    if not path:
        return BadImage(where, "no image in this row")
    shown = path if len(path) <= MAX_SHOWN_CHARACTERS else f"{path[:MAX_SHOWN_CHARACTERS]}…"
    here = f"the row has no bytes but the path {shown!r}"
    if "://" in path:
        return BadImage(where, f"{here}, a URL; download the image first")
    found = _below(file.parent, path) if isinstance(file, Path) else _below_url(file.parent, path)
    if found is None:
        return BadImage(where, f"{here}, which leads out of the folder of the table")
    if isinstance(found, Path) and not _is_file(found):
        return BadImage(where, f"{here}: no such file in the folder of the table")
    return found


def labels(where: str, column: pa.Array, names: Sequence[str] | None) -> list[str | None]:
    """The labels as text, None where unknown. Raises BadSource for one that is not understood."""
    if pa.types.is_floating(column.type):  # text keeps 0.1 of float32 as 0.1
        values = [None if t is None else float(t) for t in column.cast(pa.string()).to_pylist()]
    else:
        values = column.to_pylist()
    return [label_text(where, value, names) for value in values]


def label_text(where: str, value: object, names: Sequence[str] | None = None) -> str | None:
    """The label of this value: its name if integers have names; None for null, NaN and -1.

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
        raise BadSource(f"a label of {where} {_SEVERAL}")
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
                f"label {value} has no name: there are {len(names)}; mend the schema metadata of "
                f"{where}"
            )
        return names[int(value)]
    if isinstance(value, Decimal) and not whole:
        return format(value.normalize(), "f")
    return str(int(value)) if whole and not isinstance(value, bool) else str(value)


def label_kind(schema: pa.Schema, found: Found) -> str | None:
    """Return the kind of the file's labels: text, numbers, …; None without labels."""
    if found.label is None:
        return None
    kind = _plain(schema.field(found.label).type)
    if pa.types.is_null(kind):
        return None
    if _is_text(kind) or _is_binary(kind):
        return "text"
    is_number = _is_number(kind)
    if found.names and (is_number or pa.types.is_boolean(kind)):
        # Classes that are numbers may be named so: 0, 1, 2, …
        numbered = all(name == str(i) for i, name in enumerate(found.names))
        return "numbers" if numbered else "text"
    return "numbers" if is_number else f"{kind} values"


_SEVERAL = (
    "holds several values, and an image has one label here; choose another column with "
    "--label-column, or no labels with --label-column ''"
)


def _first_defaults(schema: pa.Schema) -> tuple[str | None, str | None]:
    """The columns that were found before others were known."""
    for image in IMAGE_COLUMNS[:2]:
        kind = schema.field(image).type if image in schema.names else None
        if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            break
    else:
        image = ""
    return image, LABEL_COLUMNS[0] if LABEL_COLUMNS[0] in schema.names else None


def _image_candidates(schema: pa.Schema, features: Mapping[str, Any]) -> list[str]:
    """The columns that may hold images, the best first: bytes before paths, then by name.

    Without one of a known name, or that is declared as images: the only struct of bytes.
    """
    usable = {field.name: _image_rank(field.type) for field in schema}
    usable = {name: rank for name, rank in usable.items() if rank is not None}
    known = [
        name
        for name in usable
        if name.casefold() in IMAGE_COLUMNS or _feature_type(features, name) == "Image"
    ]
    if known:
        return sorted(known, key=lambda name: (usable[name], *_place(name, IMAGE_COLUMNS)))
    structs = [
        name
        for name, rank in usable.items()
        if rank == 0
        and pa.types.is_struct(schema.field(name).type)
        and _feature_type(features, name) in (None, "Image")
    ]
    return structs if len(structs) == 1 else []


def _label_candidates(schema: pa.Schema, features: Mapping[str, Any]) -> list[str]:
    """The columns that may hold labels, the best first.

    Without one of a known name: the only one that is declared as classes, or where none is, one
    that is named after classes.
    """
    names: tuple[str, ...] = LABEL_COLUMNS
    known = [name for name in schema.names if name.casefold() in names]
    if not known:
        declared = [name for name in schema.names if _feature_type(features, name) == "ClassLabel"]
        if declared:
            return declared if len(declared) == 1 else []
        names = CLASS_COLUMNS
        known = [name for name in schema.names if name.casefold() in names]

    def key(name: str) -> tuple[bool, bool, int, bool]:
        kind = schema.field(name).type
        return (pa.types.is_nested(kind), pa.types.is_null(kind), *_place(name, names))

    return sorted(known, key=key)


def _place(name: str, known: Sequence[str]) -> tuple[int, bool]:
    """A key that sorts as the known names are, lower case first."""
    lower = name.casefold()
    return known.index(lower) if lower in known else len(known), name != lower


def _image_rank(kind: pa.DataType) -> int | None:
    """0: encoded images, 1: paths of images, 2: nulls alone; None: no images."""
    kind = _plain(kind)
    if pa.types.is_null(kind):
        return 2
    if pa.types.is_struct(kind):
        ranks = [rank for rank in map(_image_rank, _parts(kind).values()) if rank is not None]
        return min(ranks, default=None)
    return 0 if _is_binary(kind) else 1 if _is_text(kind) else None


def _parts(kind: pa.StructType) -> dict[str, pa.DataType]:
    """The fields of a struct that hold the image or its path."""
    fields = {name: kind.field(name).type for name in ("bytes", "path") if _has(kind, name)}
    tests = {"bytes": _is_binary, "path": _is_text}
    return {
        name: each
        for name, each in fields.items()
        if pa.types.is_null(each) or tests[name](_plain(each))
    }


def _has(kind: pa.StructType, name: str) -> bool:
    return bool(kind.get_field_index(name) >= 0)


def _check_image(where: str, name: str, schema: pa.Schema) -> None:
    kind = schema.field(name).type
    if _image_rank(kind) is None:
        raise BadSource(
            f"column '{name}' of {where} is of type {_shown(kind)}; wanted encoded images (binary, "
            "or a struct of bytes and path) or paths of images"
        )


def _check_label(where: str, name: str, schema: pa.Schema) -> None:
    if pa.types.is_nested(schema.field(name).type):
        raise BadSource(f"column '{name}' of {where} {_SEVERAL}")


def _no_images(where: str, schema: pa.Schema) -> BadSource:
    shown = ", ".join(f"{field.name} ({_shown(field.type)})" for field in schema)
    return BadSource(
        f"no images in {where}: its columns are {shown or 'none'}; wanted img, image or another "
        "column of encoded images (binary, or a struct of bytes and path), or name it with "
        "--image-column"
    )


def _shown(kind: pa.DataType) -> str:
    shown = str(kind)
    return shown if len(shown) <= MAX_SHOWN_CHARACTERS else f"{shown[:MAX_SHOWN_CHARACTERS]}…"


def _named(where: str, schema: pa.Schema, name: str) -> str:
    if name not in schema.names:
        raise UnknownName(f"column of {where}", name, schema.names)
    return name


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, where a column is dictionary-encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_binary(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _is_number(kind: pa.DataType) -> bool:
    return any(
        test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    )


def _features(where: str, schema: pa.Schema) -> Mapping[str, Any]:
    """Return the features of each column that `datasets` declares. Raises BadSource."""
    if len(set(schema.names)) < len(schema.names):
        doubled = next(name for name in schema.names if schema.names.count(name) > 1)
        raise BadSource(f"{where} has two columns '{doubled}'; write it with names that differ")
    try:
        facts = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = facts.get("info", {}).get("features", {})
        return dict(features.items()) if features else {}
    except (ValueError, AttributeError, RecursionError) as error:
        raise _foreign(where) from error


def _feature_type(features: Mapping[str, Any], name: str) -> str | None:
    feature = features.get(name)
    kind = feature.get("_type") if isinstance(feature, dict) else None
    return kind if isinstance(kind, str) else None


def _names(where: str, features: Mapping[str, Any], label: str | None) -> tuple[str, ...] | None:
    feature = features.get(label) if label is not None else None
    if feature is None:
        return None
    names = feature.get("names") if isinstance(feature, dict) else ()
    if names is None and isinstance(feature, dict):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _foreign(where)
    return tuple(map(text, names)) or None


def _foreign(where: str) -> BadSource:
    return BadSource(
        f"the schema metadata 'huggingface' of {where} is not that of a data set; "
        "write it with Hugging Face's datasets, or leave it out"
    )


def _below(folder: Path, path: str) -> Path | None:
    """The file of this path below the folder, links followed; None if it is not below it."""
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
