"""Folders that Hugging Face's `save_to_disk` wrote, made here as it makes them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from encoders.toy import Toy
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadImage, BadSource, UnknownName
from retrieval.images import Columns, decode, open_source, read_image

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"image": {"_type": "Image"}, "labels": {"_type": "ClassLabel", "names": ["cat", "dog"]}}


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write(file: Path, table: pa.Table, kind: Any = pa.ipc.new_stream) -> None:
    with pa.OSFile(str(file), "wb") as sink, kind(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def saved(folder: Path, counts: list[int], split: str | None = "train") -> Path:
    """Write a data set of files with these counts of images; their shades count from 0."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(counts):05}.arrow" for i in range(len(counts))]
    first = 0
    for name, count in zip(names, counts, strict=True):
        shades = range(first, first + count)
        images = pa.array([{"bytes": png(shade), "path": None} for shade in shades], STRUCT)
        table = pa.table({"image": images, "labels": pa.array([i % 2 for i in shades], pa.int64())})
        facts = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
        table = table.replace_schema_metadata(facts)
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=3)
        first += count
    state = {"_data_files": [{"filename": name} for name in names], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


def shades(spec: object, **given: object) -> list[int]:
    items = open_source(str(spec), **given).items()  # type: ignore[arg-type]
    return [np.asarray(decode(item.content, "x"))[0, 0, 0] for item in items]


@pytest.mark.parametrize("counts", [[5], [4, 3], [0, 4, 3], [4, 0, 3], [7, 0]])
def test_a_data_set_is_read(tmp_path: Path, counts: list[int]) -> None:
    folder = saved(tmp_path / "data", counts)
    total = sum(counts)
    source = open_source(str(folder))
    items = [*source.items()]
    assert shades(folder) == [*range(total)]
    assert [item.label for item in items] == [("cat", "dog")[i % 2] for i in range(total)]
    for start in range(total + 1):
        assert [x.id for x in source.items(start)] == [x.id for x in items[start:]]
    for shade, item in enumerate(items):
        assert np.asarray(read_image(item.path))[0, 0, 0] == shade
    with pytest.raises(BadImage, match="no such row"):
        read_image(items[-1].path.rpartition("#")[0] + f"#{total}")
    assert encode_source(source, Toy(), tmp_path / "out").rows == total


def test_splits_are_folders_of_their_own(tmp_path: Path) -> None:
    for split, count in {"train": 4, "test": 2}.items():
        saved(tmp_path / "data" / split, [count], split)
    (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    folder = tmp_path / "data"
    assert [x.id for x in open_source(str(folder)).items()] == [f"train/{i:05}" for i in range(4)]
    assert open_source(str(folder), "test").name == f"{folder}/test"
    assert len(open_source(str(folder), "test")) == 2
    assert len(open_source(str(folder / "test"))) == len(open_source(str(folder / "test"), "test"))
    with pytest.raises(UnknownName, match="'validation'; there are: test, train"):
        open_source(str(folder), "validation")
    with pytest.raises(BadSource, match="no split 'train'"):
        open_source(str(folder / "test"), "train")


def test_columns_are_chosen_and_files_are_read_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data", [3, 2])
    assert [x.label for x in open_source(str(folder), columns=Columns(label="")).items()] == [
        None
    ] * 5
    file = folder / "data-00001-of-00002.arrow"
    assert shades(file) == [3, 4]
    assert shades(f"{folder}/*.arrow") == [0, 1, 2, 3, 4]


def test_arrow_files_are_read_as_streams_are(tmp_path: Path) -> None:
    table = pa.table({"jpg": [png(i) for i in range(5)]})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=2)
    assert shades(tmp_path) == [0, 1, 2, 3, 4]
    assert np.asarray(read_image(f"{tmp_path}/a.arrow#3"))[0, 0, 0] == 3


def test_nulls_of_a_struct_in_arrow_are_no_images(tmp_path: Path) -> None:
    """The fields below a null may hold anything."""
    fields = [pa.array([png(1), png(2)]), pa.array([None, None], pa.string())]
    structs = pa.StructArray.from_arrays(fields, fields=[*STRUCT], mask=pa.array([False, True]))
    table = pa.table({"image": structs})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    content = [item.content for item in open_source(str(tmp_path)).items()]
    assert content[0] == png(1)
    assert isinstance(content[1], BadImage)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": [{"filename": "../data.arrow"}]}, "not a file in its folder"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "not a file in its folder"),
        ({"_data_files": [{"filename": ".."}]}, "not a file in its folder"),
        ({"_data_files": [{"filename": 5}]}, "not a file in its folder"),
        ({"_data_files": ["a"]}, "not a file in its folder"),
        ({"_data_files": 7}, "not a file in its folder"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "lacks gone.arrow"),
        ({"_data_files": []}, "no images in"),
        (
            {"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]},
            "another order than .*flatten_indices",
        ),
    ],
)
def test_a_state_that_leads_elsewhere_is_refused(
    tmp_path: Path, state: object, message: str
) -> None:
    folder = saved(tmp_path / "data", [2])
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(BadSource, match=message):
        open_source(str(folder))


def test_damaged_arrow_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data", [6])
    (file,) = folder.glob("*.arrow")
    whole = file.read_bytes()
    for content in (b"", b"ARROW1", b"no arrow at all", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(BadSource, match=r"cannot read .*\.arrow as Arrow: "):
            list(open_source(str(folder)).items())
        with pytest.raises(BadImage, match="as Arrow"):
            read_image(f"{file}#5")


def test_parquet_goes_before_arrow_and_says_so(tmp_path: Path) -> None:
    table = pa.table({"jpg": [png(1)]})
    pq.write_table(table, tmp_path / "a.parquet")
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    said: list[str] = []
    source = open_source(str(tmp_path), note=said.append)
    assert [x.id for x in source.items()] == ["a.parquet#0"]
    (note,) = said
    assert "holds .parquet and .arrow files: the .parquet files are taken" in note
