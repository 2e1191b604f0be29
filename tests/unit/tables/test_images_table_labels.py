"""Labels in tables: of known names, of any type, with names."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import BadSource
from retrieval.images import Columns, open_source
from tests.tables import NAMES, png, save, write


@pytest.mark.parametrize(
    "column",
    ["label", "labels", "fine_label", "coarse_label", "Label", "class", "category", "Class_Name"],
)
def test_labels_of_known_names(tmp_path: Path, column: str) -> None:
    facts = {"info": {"features": {column: {"names": ["cat", "dog"]}}}}
    table = pa.table({"image": [png(1)] * 3, column: [1, 0, None]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(facts)}), tmp_path / "a.parquet"
    )
    assert [item.label for item in open_source(str(tmp_path)).items()] == ["dog", "cat", None]


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        (pa.array([0.0, 1.0, float("nan"), None, -1.0]), True, ["cat", "dog", None, None, None]),
        (pa.array([0.0, 1.0, float("nan"), None, -1.0]), False, ["0", "1", None, None, None]),
        (pa.array([0.5, 0.1], pa.float32()), False, ["0.5", "0.1"]),
        (pa.array([1, None], pa.float16()), False, ["1", None]),
        (pa.array([Decimal("1.00"), Decimal("2.50"), None]), False, ["1", "2.5", None]),
        (pa.array([Decimal("1.00"), Decimal("-1.00"), None]), True, ["dog", None, None]),
        (pa.array([True, False, None]), False, ["True", "False", None]),
        (pa.array([True, False, None]), True, ["dog", "cat", None]),
        (pa.array(["x", None, "y"]).dictionary_encode(), False, ["x", None, "y"]),
        (pa.array([1, None, 0]).dictionary_encode(), True, ["dog", None, "cat"]),
        (pa.array([b"x", "é".encode()]), False, ["x", "é"]),
        (pa.array(["x"], pa.large_string()), False, ["x"]),
        (pa.array(["x"], pa.string_view()), False, ["x"]),
        (pa.array([None, None], pa.null()), True, [None, None]),
        (pa.array([date(2020, 1, 2)]), False, ["2020-01-02"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_labels_of_any_type(
    tmp_path: Path, values: pa.Array, names: bool, expected: list[str | None], suffix: str
) -> None:
    table = pa.table({"image": [png(1)] * len(values), "label": values})
    metadata = {"huggingface": json.dumps(NAMES)} if names else None
    save(table.replace_schema_metadata(metadata), tmp_path / f"a.{suffix}")
    assert [item.label for item in open_source(str(tmp_path)).items()] == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([["a", "b"]]), "column 'label' of .* holds several values, .*--label-column ''"),
        (pa.array([[1]], pa.list_(pa.int8(), 1)), "holds several values"),
        (pa.array([{"a": 1}]), "holds several values"),
        (pa.array([b"\xff"]), "bytes that are not UTF-8"),
        (pa.array([0.5]), "label 0.5 has no name"),
        (pa.array([-2]), "label -2 has no name"),
    ],
    ids=str,
)
def test_labels_that_are_none_are_refused(tmp_path: Path, values: pa.Array, message: str) -> None:
    table = pa.table({"image": [png(1)], "label": values})
    metadata = {"huggingface": json.dumps(NAMES)}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    with pytest.raises(BadSource, match=message):
        list(open_source(str(tmp_path)).items())
    assert [x.label for x in open_source(str(tmp_path), columns=Columns(label="")).items()] == [
        None
    ]


@pytest.mark.parametrize("names", [5, "ab", [1], {"0": "cat"}, [["cat"]]])
def test_names_that_are_no_list_of_strings_are_refused(tmp_path: Path, names: object) -> None:
    facts = {"info": {"features": {"label": {"names": names}}}}
    write(tmp_path / "a.parquet", 0, 1, pa.array([0]), metadata=facts)
    with pytest.raises(BadSource, match="is not that of a data set"):
        open_source(str(tmp_path))


def named(*names: str) -> object:
    return {"info": {"features": {"label": {"names": list(names)}}}}


def test_each_file_has_its_own_names(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", 0, 2, pa.array([0, 1]), metadata=named("cat", "dog"))
    write(
        tmp_path / "train-1.parquet", 2, 3, pa.array([0, 1, 2]), metadata=named("ape", "cat", "dog")
    )
    write(tmp_path / "train-2.parquet", 5, 1, pa.array(["ape"]))
    labels = [item.label for item in open_source(str(tmp_path)).items()]
    assert labels == ["cat", "dog", "ape", "cat", "dog", "ape"]


@pytest.mark.parametrize(
    "other", [pa.array([0, 1]), pa.array([0.0, None]), pa.array([True, False])]
)
@pytest.mark.parametrize("split", ["train", "part"])
def test_labels_that_contradict_between_files_are_refused(
    tmp_path: Path, other: pa.Array, split: str
) -> None:
    write(tmp_path / f"{split}-0.parquet", 0, 2, pa.array([0, 1]), metadata=named("cat", "dog"))
    write(tmp_path / f"{split}-1.parquet", 0, 2, other)
    with pytest.raises(
        BadSource, match=r"labels of .*-0.parquet are text, those of .*-1.parquet are"
    ):
        open_source(str(tmp_path))
    assert len(open_source(str(tmp_path), columns=Columns(label=""))) == 4


@pytest.mark.parametrize(
    ("first", "metadata", "second", "expected"),
    [
        ([0, 1], named("0", "1"), pa.array([1, 0]), ["0", "1", "1", "0"]),
        (["a", "b"], None, pa.array([None, None], pa.float64()), ["a", "b", None, None]),
        ([0, 1], named("a", "b"), pa.array([None, None], pa.null()), ["a", "b", None, None]),
        ([3, 4], None, pa.array([3.0, None]), ["3", "4", "3", None]),
    ],
    ids=str,
)
def test_labels_that_agree_between_files_are_read(
    tmp_path: Path, first: list[object], metadata: object, second: pa.Array, expected: object
) -> None:
    write(tmp_path / "a.parquet", 0, 2, pa.array(first), metadata=metadata)
    write(tmp_path / "b.parquet", 2, 2, second)
    assert [item.label for item in open_source(str(tmp_path)).items()] == expected
