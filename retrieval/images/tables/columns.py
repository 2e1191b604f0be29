"""Columns of images and labels in a table: found by name and type, or chosen.

An image column holds encoded images, as binary values or as the field `bytes` of a struct, or paths
of images, as strings or as the field `path` of a struct. A label column holds strings, numbers or
booleans. Names of integer labels are in the schema metadata that Hugging Face's `datasets` writes:
key `huggingface`, JSON, `info.features.COLUMN.names`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from retrieval.errors import BadSource, UnknownName
from retrieval.images.source import text
from retrieval.images.tables.cells import SEVERAL_VALUES
from retrieval.images.tables.choice import Columns
from retrieval.images.tables.column_types import (
    image_fields,
    is_binary,
    is_number,
    is_text,
    plain_type,
)
from retrieval.values import shortened

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
"""Names of label columns if none of the above exists, and none is declared as classes."""


@dataclass(frozen=True, slots=True)
class FoundColumns:
    """The columns of one file.

    names: names of integer labels; None if they have none.
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


def find(where: str, schema: pa.Schema, chosen: Columns) -> FoundColumns:
    """Return the image column and the label column of a schema.

    where: the file's name in errors. Raises UnknownName for a chosen column that does not
    exist, BadSource for one of the wrong type, and if no image column is found.
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
    return FoundColumns(
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


def wanted(schema: pa.Schema, found: FoundColumns) -> list[str]:
    """Return the columns to read, of a struct its fields `bytes` and `path` alone."""
    kind = schema.field(found.image).type
    images = [found.image]
    if pa.types.is_struct(kind):
        images = [f"{found.image}.{name}" for name in image_fields(kind)]
    return [*images, *([found.label] if found.label else [])]


def class_names(where: str, schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """Return the names of the integers in a column; None if they have none."""
    return _names(where, _features(where, schema), name)


def label_kind(schema: pa.Schema, found: FoundColumns) -> str | None:
    """Return the kind of the file's labels: text, numbers, …; None without labels."""
    if found.label is None:
        return None
    kind = plain_type(schema.field(found.label).type)
    if pa.types.is_null(kind):
        return None
    if is_text(kind) or is_binary(kind):
        return "text"
    numeric = is_number(kind)
    if found.names and (numeric or pa.types.is_boolean(kind)):
        # Classes that are numbers may be named so: 0, 1, 2, …
        numbered = all(name == str(i) for i, name in enumerate(found.names))
        return "numbers" if numbered else "text"
    return "numbers" if numeric else f"{kind} values"


def _first_defaults(schema: pa.Schema) -> tuple[str | None, str | None]:
    """Return the columns that were found before others were known."""
    for image in IMAGE_COLUMNS[:2]:
        kind = schema.field(image).type if image in schema.names else None
        if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            break
    else:
        image = ""
    return image, LABEL_COLUMNS[0] if LABEL_COLUMNS[0] in schema.names else None


def _image_candidates(schema: pa.Schema, features: Mapping[str, Any]) -> list[str]:
    """Return the columns that may hold images, the best first: bytes before paths, then by name.

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
    """Return the columns that may hold labels, the best first.

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
    """Return a key that sorts as the known names are, lower case first."""
    lower = name.casefold()
    return known.index(lower) if lower in known else len(known), name != lower


def _image_rank(kind: pa.DataType) -> int | None:
    """0: encoded images, 1: paths of images, 2: nulls alone; None: no images."""
    kind = plain_type(kind)
    if pa.types.is_null(kind):
        return 2
    if pa.types.is_struct(kind):
        ranks = [rank for rank in map(_image_rank, image_fields(kind).values()) if rank is not None]
        return min(ranks, default=None)
    return 0 if is_binary(kind) else 1 if is_text(kind) else None


def _check_image(where: str, name: str, schema: pa.Schema) -> None:
    kind = schema.field(name).type
    if _image_rank(kind) is None:
        raise BadSource(
            f"column '{name}' of {where} is of type {_shown(kind)}; wanted encoded images (binary, "
            "or a struct of bytes and path) or paths of images"
        )


def _check_label(where: str, name: str, schema: pa.Schema) -> None:
    if pa.types.is_nested(schema.field(name).type):
        raise BadSource(f"column '{name}' of {where} {SEVERAL_VALUES}")


def _no_images(where: str, schema: pa.Schema) -> BadSource:
    shown = ", ".join(f"{field.name} ({_shown(field.type)})" for field in schema)
    return BadSource(
        f"no images in {where}: its columns are {shown or 'none'}; wanted img, image or another "
        "column of encoded images (binary, or a struct of bytes and path), or name it with "
        "--image-column"
    )


def _shown(kind: pa.DataType) -> str:
    return shortened(str(kind))


def _named(where: str, schema: pa.Schema, name: str) -> str:
    if name not in schema.names:
        raise UnknownName(f"column of {where}", name, schema.names)
    return name


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
