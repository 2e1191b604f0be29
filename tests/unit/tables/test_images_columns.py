"""Columns of images in tables: found by name and type, or chosen."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import BadImage, BadInput, BadSource, UnknownName
from retrieval.images import Columns, open_source, read_image
from tests.tables import STRUCT, notes, png, reason, save, shade


def test_a_row_without_an_image_says_so(tmp_path: Path) -> None:
    images = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}]
    pq.write_table(pa.table({"image": pa.array(images, STRUCT)}), tmp_path / "a.parquet")
    items = [*open_source(str(tmp_path)).items()]
    assert [reason(item.content) for item in items] == [
        "no image in this row",
        "no image in this row",
        "empty file",
    ]
    with pytest.raises(BadImage, match=r"a\.parquet#1: no image in this row"):
        read_image(items[1].path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"id": ["a"], "data": [b"b"]},
            r"its columns are id \(string\), data \(binary\); .*--image",
        ),
        ({"image": [[1, 2]]}, r"its columns are image \(list<"),
        ({"a": [{"bytes": b"a"}], "b": [{"bytes": b"a"}]}, "its columns are a .*, b "),
    ],
)
def test_parquet_without_images_is_refused(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(BadSource, match=message):
        open_source(str(tmp_path))


def images_of(kind: pa.DataType, contents: list[bytes | None]) -> pa.Array:
    if pa.types.is_struct(kind):
        return pa.array([None if c is None else {"bytes": c} for c in contents], kind)
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    array = pa.array(contents, plain)
    return array.dictionary_encode() if pa.types.is_dictionary(kind) else array


@pytest.mark.parametrize(
    "kind",
    [
        STRUCT,
        pa.struct([("path", pa.null()), ("bytes", pa.large_binary())]),
        pa.struct([("bytes", pa.binary()), ("other", pa.list_(pa.int8()))]),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.binary()),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "column", ["jpg", "png", "jpeg", "webp", "pixel_values", "img", "image", "Image"]
)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_images_of_any_known_name_and_type(
    tmp_path: Path, kind: pa.DataType, column: str, suffix: str
) -> None:
    contents = [png(1), None, png(3)]
    file = tmp_path / f"a.{suffix}"
    save(pa.table({"number": [1, 2, 3], column: images_of(kind, contents)}), file)
    items = [*open_source(str(file)).items()]
    assert [item.path for item in items] == [f"{file}#{i}" for i in range(3)]
    assert (shade(items[0].content), shade(items[2].content)) == (1, 3)
    assert reason(items[1].content) == "no image in this row"
    assert np.asarray(read_image(items[2].path))[0, 0].tolist() == [3, 0, 0]


def test_a_column_that_is_declared_as_images_is_found(tmp_path: Path) -> None:
    facts = {
        "info": {
            "features": {
                "sound": {"_type": "Audio"},
                "scan": {"_type": "Image"},
                "genre": {"_type": "ClassLabel", "names": ["x", "y"]},
            }
        }
    }
    struct = pa.array([{"bytes": b"no image"}], STRUCT)
    table = pa.table(
        {"sound": struct, "scan": pa.array([{"bytes": png(4)}], STRUCT), "genre": [1]}
    ).replace_schema_metadata({"huggingface": json.dumps(facts)})
    pq.write_table(table, tmp_path / "a.parquet")
    (item,) = open_source(str(tmp_path)).items()
    assert (shade(item.content), item.label) == (4, "y")


def test_an_image_column_can_be_chosen(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    table = pa.table(
        {
            "image": [png(1), png(2)],
            "thumb #1/x": [png(3), png(4)],
            "n": [1, 2],
            "label": ["a", "b"],
        }
    )
    pq.write_table(table, file)
    plain = open_source(str(file))
    chosen = open_source(str(file), columns=Columns("thumb #1/x"))
    items = [*chosen.items()]
    assert [shade(item.content) for item in items] == [3, 4]
    assert [item.id for item in items] == ["a.parquet#0", "a.parquet#1"]
    assert [item.path for item in items] == [f"{file}#thumb%20%231%2Fx#{i}" for i in range(2)]
    assert np.asarray(read_image(items[1].path))[0, 0, 0] == 4
    assert chosen.fingerprint != plain.fingerprint
    same = open_source(str(file), columns=Columns("image", "label"))
    assert same.fingerprint == plain.fingerprint
    assert [x.path for x in same.items()] == [x.path for x in plain.items()]
    with pytest.raises(UnknownName, match=r"unknown column of .*'thum'; did you mean 'thumb #1/x'"):
        open_source(str(file), columns=Columns("thum"))
    with pytest.raises(BadSource, match=r"column 'n' of .* is of type int64; wanted encoded"):
        open_source(str(file), columns=Columns("n"))
    with pytest.raises(BadImage, match="unknown column of"):
        read_image(f"{file}#gone#0")


def test_a_label_column_can_be_chosen(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    facts = {"info": {"features": {"genre": {"names": ["x", "y"]}, "label": {"names": ["z"]}}}}
    table = pa.table({"image": [png(1), png(2)], "label": [0, 0], "genre": [1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(facts)}), file)
    prints = set()
    for label, expected in {"genre": ["y", "x"], "label": ["z", "z"], "": [None, None]}.items():
        source = open_source(str(file), columns=Columns(label=label))
        assert [item.label for item in source.items()] == expected
        prints.add(source.fingerprint)
    assert len(prints) == 3
    with pytest.raises(UnknownName, match="'gone'; there are: genre, image, label"):
        open_source(str(file), columns=Columns(label="gone"))


def test_columns_are_refused_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(BadInput, match="has no columns to choose from"):
        open_source(str(tmp_path), columns=Columns("image"))


@pytest.mark.parametrize(
    ("extra", "labels", "message"),
    [
        (
            {"img": [png(9)]},
            None,
            "images of .* are those of column 'img', not of 'image'; .*--image",
        ),
        ({"label": ["a"], "labels": ["b"]}, "a", "labels of .* column 'label', not of 'labels'"),
        ({"coarse_label": ["a"], "fine_label": ["b"]}, "b", "'fine_label', not of 'coarse_label'"),
        ({"labels": [["a"]], "fine_label": ["b"]}, "b", "column 'fine_label', not of 'labels'"),
    ],
)
def test_a_choice_among_columns_is_said(
    tmp_path: Path, extra: dict[str, list[object]], labels: str | None, message: str
) -> None:
    pq.write_table(pa.table({"image": [png(1)], **extra}), tmp_path / "a.parquet")
    (item,) = open_source(str(tmp_path)).items()
    (note,) = notes(str(tmp_path))
    assert re.search(message, note)
    assert (item.label, shade(item.content)) == (labels, 9 if "img" in extra else 1)
    chosen = Columns("image", "labels" if "label" in extra else "")
    assert notes(str(tmp_path), chosen) == []  # the user's own choice
