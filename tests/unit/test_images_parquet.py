"""Parquet in the Hugging Face schema."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retrieval.errors import BadImage, BadSource, UnknownName
from retrieval.images import decode, open_source, read_image

NAMES = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (shade % 256, shade // 256, 0)).save(stream, "PNG")
    return stream.getvalue()


def write(
    file: Path,
    first: int,
    count: int,
    labels: pa.Array | None = None,
    *,
    column: str = "img",
    metadata: object = None,
    row_group_size: int = 10,
) -> None:
    """A part whose images have the shades `first`, `first + 1`, …"""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(first + i), "path": f"{i}.png"} for i in range(count)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {column: pa.array(images, kind)}
    if labels is not None:
        columns["label"] = labels
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, file, row_group_size=row_group_size)


def shade(content: object) -> int:
    red, green, _ = np.asarray(decode(content, "x"))[0, 0].tolist()  # type: ignore[arg-type]
    return int(red) + 256 * int(green)


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for split, parts in {"train": 11, "test": 1}.items():
        for part in range(parts):
            labels = pa.array([i % 2 for i in range(30)])
            file = root / f"{split}-{part}-of-{parts}.parquet"
            write(file, 30 * part, 30, labels, metadata=NAMES)
    return root


def test_splits_are_found_in_a_folder(data_set: Path) -> None:
    train = open_source(str(data_set))
    test = open_source(str(data_set), split="test")
    assert (len(train), len(test)) == (330, 30)
    assert (train.name, test.name) == (f"{data_set}/train", f"{data_set}/test")
    assert train.fingerprint != test.fingerprint
    items = list(train.items())
    assert [item.id for item in items] == [f"train/{i:05}" for i in range(330)]
    # parts in natural order: 2 before 10
    assert [shade(item.content) for item in items] == list(range(330))
    assert [item.label for item in items] == ["cat", "dog"] * 165
    assert items[315].path == f"{data_set}/train-10-of-11.parquet#15"


def test_an_unknown_split_lists_those_there_are(data_set: Path) -> None:
    with pytest.raises(UnknownName, match=r"'validation'; there are: test, train"):
        open_source(str(data_set), split="validation")


@pytest.mark.parametrize("start", [0, 1, 9, 10, 29, 30, 299, 300, 315, 329, 330, 400])
def test_items_start_anywhere(data_set: Path, start: int) -> None:
    source = open_source(str(data_set))
    assert [shade(item.content) for item in source.items(start)] == list(range(start, 330))


def test_images_can_be_read_again(data_set: Path) -> None:
    for item in list(open_source(str(data_set)).items())[::17]:
        assert np.array_equal(
            np.asarray(read_image(item.path)), np.asarray(decode(item.content, "x"))
        )
    with pytest.raises(BadImage, match="no such row"):
        read_image(f"{data_set}/test-0-of-1.parquet#30")
    with pytest.raises(BadImage, match="no such file"):
        read_image(f"{data_set}/none.parquet#0")


def test_parts_without_splits_are_named_by_file_and_row(tmp_path: Path) -> None:
    write(tmp_path / "b" / "part-10.parquet", 10, 3, pa.array(["x", None, "y"]))
    write(tmp_path / "b" / "part-9.parquet", 0, 2, column="image")
    for spec in (tmp_path, tmp_path / "**/*.parquet"):
        items = list(open_source(str(spec)).items())
        assert [shade(item.content) for item in items] == [0, 1, 10, 11, 12]
        assert [item.label for item in items] == [None, None, "x", None, "y"]
    names = [item.id for item in open_source(str(tmp_path)).items()]
    assert names[1:3] == ["b/part-9.parquet#1", "b/part-10.parquet#0"]
    with pytest.raises(BadSource, match="no split 'train'"):
        open_source(str(tmp_path), split="train")


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    file = tmp_path / "pictures[1].parquet"
    write(file, 5, 2)
    source = open_source(str(file))
    assert source.name == str(file)
    assert [item.id for item in source.items()] == [
        "pictures[1].parquet#0",
        "pictures[1].parquet#1",
    ]
    assert [item.path for item in source.items()] == [f"{file}#0", f"{file}#1"]


def test_images_go_before_parquet(tmp_path: Path) -> None:
    write(tmp_path / "part.parquet", 0, 3)
    (tmp_path / "a.png").write_bytes(png(7))
    assert [item.id for item in open_source(str(tmp_path)).items()] == ["a.png"]


def test_the_fingerprint_of_a_data_set_survives_a_copy(data_set: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data_set, tmp_path / "copy", copy_function=shutil.copyfile)
    one, two = open_source(str(data_set)), open_source(str(copy))
    assert one.fingerprint == two.fingerprint
    assert one.name != two.name
    part = tmp_path / "part.parquet"
    write(part, 0, 3)
    before = open_source(str(part)).fingerprint
    os.utime(part, ns=(1, 1))
    assert open_source(str(part)).fingerprint != before


@pytest.mark.parametrize(
    ("labels", "metadata", "expected"),
    [
        (pa.array([0, 1, None, -1]), NAMES, ["cat", "dog", None, None]),
        (pa.array([0, 1, None, -1]), None, ["0", "1", None, None]),
        (pa.array([7, 8, 9, 10], pa.uint8()), {"info": {}}, ["7", "8", "9", "10"]),
        (pa.array(["a", "b", None, ""]), NAMES, ["a", "b", None, ""]),
        (None, NAMES, [None] * 4),
    ],
)
def test_labels(
    tmp_path: Path, labels: pa.Array | None, metadata: object, expected: list[str | None]
) -> None:
    file = tmp_path / "a.parquet"
    write(file, 0, 4, labels, metadata=metadata)
    assert [item.label for item in open_source(str(file)).items()] == expected


def test_a_label_without_a_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 0, 2, pa.array([0, 2]), metadata=NAMES)
    with pytest.raises(BadSource, match="label 2 has no name: there are 2; "):
        list(open_source(str(tmp_path)).items())


def test_foreign_metadata_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 0, 2, metadata=["no", "object"])
    with pytest.raises(BadSource, match=r"metadata 'huggingface' of .* is not that of a data set"):
        open_source(str(tmp_path))


def test_missing_bytes_are_an_empty_image(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": None, "path": "a.png"}, None, {"bytes": png(1), "path": None}]
    pq.write_table(pa.table({"image": pa.array(images, kind)}), tmp_path / "a.parquet")
    assert [item.content for item in open_source(str(tmp_path)).items()] == [b"", b"", png(1)]


def test_parquet_without_images_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "img": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(BadSource, match="its columns are id, img; wanted img or image, a struct"):
        open_source(str(tmp_path))


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(BadSource, match=r"cannot read .*a\.parquet as Parquet: "):
        open_source(str(tmp_path))
    with pytest.raises(BadImage, match=r"cannot read image .*#0: cannot read .* as Parquet"):
        read_image(f"{tmp_path}/a.parquet#0")


def test_the_first_item_comes_before_the_last_row_group_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write(file, 0, 600, row_group_size=300)
    group = pq.ParquetFile(file).metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    at = group.dictionary_page_offset or group.data_page_offset
    content[at : at + group.total_compressed_size] = bytes(group.total_compressed_size)
    file.write_bytes(content)
    items = open_source(str(file)).items()
    assert [shade(next(items).content) for _ in range(256)] == list(range(256))
    with pytest.raises(BadSource, match="as Parquet"):
        list(items)


def test_starting_late_does_not_read_what_comes_before(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write(file, 0, 600, row_group_size=300)
    group = pq.ParquetFile(file).metadata.row_group(0).column(0)
    content = bytearray(file.read_bytes())
    at = group.dictionary_page_offset or group.data_page_offset
    content[at : at + group.total_compressed_size] = bytes(group.total_compressed_size)
    file.write_bytes(content)
    source = open_source(str(file))
    assert [shade(item.content) for item in source.items(300)] == list(range(300, 600))
    assert read_image(f"{file}#599").size == (3, 2)
    with pytest.raises(BadSource):
        next(source.items(299))


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    noise = np.random.default_rng(0).bytes(20_000)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": i.to_bytes(4, "big") + noise, "path": None} for i in range(4_000)]
    table = pa.table({"image": pa.array(rows, kind)})
    pq.write_table(table, file, row_group_size=4_000, compression="none", use_dictionary=False)
    del rows, table
    held = pa.total_allocated_bytes()
    most = 0
    for item in open_source(str(file)).items():
        assert isinstance(item.content, bytes)
        most = max(most, pa.total_allocated_bytes() - held)
    assert file.stat().st_size > 80_000_000
    assert most < 30_000_000
