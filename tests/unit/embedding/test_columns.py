"""Columns for filters: of photographs, of metadata files beside them, and of tables of images."""

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from encoders.toy import Toy
from retrieval import open_embeddings
from retrieval.embedding.encode import Outcome, bring_up_to_date
from retrieval.errors import BadData, BadInput, BadSource, UnknownName
from retrieval.images import Columns, open_source
from retrieval.inspection import verify
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.storage.sets.manifest import LATER_FIELDS, PHOTO_FIELDS, Manifest
from retrieval.storage.sets.shards import write_shard_table

CHANGED = 1_600_000_000
PHOTO = [field.name for field in PHOTO_FIELDS]


def photograph(path: Path, month: int, width: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "Pixel 8"
    exif[ExifTags.Base.DateTime] = f"2024:{month:02}:01 10:00:00"
    Image.new("RGB", (width, 20), (8 * month, 0, 0)).save(path, exif=exif)
    os.utime(path, (CHANGED, CHANGED))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for month in range(1, 6):
        photograph(tmp_path / "photos" / "trip" / f"{month}.jpg", month)
    return tmp_path / "photos"


@pytest.fixture
def encode(folder: Path, tmp_path: Path) -> Callable[[], Outcome]:
    def run() -> Outcome:
        return bring_up_to_date(open_source(str(folder)), Toy(), tmp_path / "e", shard_images=2)

    return run


@pytest.fixture
def columns(tmp_path: Path) -> Callable[[], dict[str, list[Any]]]:
    """The columns of the set, in the order of ids."""

    def read() -> dict[str, list[Any]]:
        opened = open_embeddings(tmp_path / "e")
        table = opened.columns().append_column("id", opened.ids()).sort_by("id")
        return dict(table.to_pydict())

    return read


def opened(tmp_path: Path) -> Embeddings:
    return open_embeddings(tmp_path / "e")


def test_photographs_have_columns(
    folder: Path, encode: Callable[[], Outcome], columns: Callable[[], dict[str, list[Any]]]
) -> None:
    Image.new("RGB", (9, 9)).save(folder / "plain.png")
    encode()
    found = columns()
    assert found["taken"] == [None, *(datetime(2024, month, 1, 10) for month in range(1, 6))]
    assert found["camera"] == [None, *["Pixel 8"] * 5]
    assert (found["width"], found["height"]) == ([9, *[30] * 5], [9, *[20] * 5])
    assert found["modified"][1] == datetime.fromtimestamp(CHANGED, UTC)
    assert found["bytes"][1] == (folder / "trip" / "1.jpg").stat().st_size
    assert found["latitude"] == [None] * 6


def test_columns_follow_files_that_are_touched_renamed_and_changed(
    folder: Path, encode: Callable[[], Outcome], columns: Callable[[], dict[str, list[Any]]]
) -> None:
    encode()
    os.utime(folder / "trip" / "1.jpg", (CHANGED + 60, CHANGED + 60))
    (folder / "trip" / "2.jpg").rename(folder / "trip" / "6.jpg")
    photograph(folder / "trip" / "3.jpg", 9, width=44)
    outcome = encode()
    assert (outcome.encoded, outcome.renamed) == (1, 1)
    found = columns()
    assert found["id"] == [f"trip/{name}.jpg" for name in (1, 3, 4, 5, 6)]
    assert [each.month for each in found["taken"]] == [1, 9, 4, 5, 2]
    assert found["modified"][0] == datetime.fromtimestamp(CHANGED + 60, UTC)
    assert found["width"] == [30, 44, 30, 30, 30]


def as_version_3(folder: Path) -> None:
    """Take the columns that version 3 lacks out of a set."""
    manifest = Manifest.read(folder)
    shards = []
    for shard in manifest.shards:
        table = pq.read_table(folder / shard.file)
        table = table.drop_columns([field.name for field in LATER_FIELDS])
        shards.append(write_shard_table(folder / shard.file, table, shard.skipped))
    replace(manifest, shards=tuple(shards), version=3).write(folder)


def test_a_set_of_version_3_gets_columns_without_the_network(
    tmp_path: Path, encode: Callable[[], Outcome], columns: Callable[[], dict[str, list[Any]]]
) -> None:
    encode()
    as_version_3(tmp_path / "e")
    assert Manifest.read(tmp_path / "e").version == 3
    assert columns()["camera"] == [None] * 5
    outcome = encode()
    assert (outcome.encoded, outcome.kept, outcome.removed, outcome.renamed) == (0, 5, 0, 0)
    assert columns()["camera"] == ["Pixel 8"] * 5
    assert Manifest.read(tmp_path / "e").version == 4
    assert verify(tmp_path / "e").problems == ()


def test_metadata_beside_images(
    folder: Path,
    tmp_path: Path,
    encode: Callable[[], Outcome],
    columns: Callable[[], dict[str, list[Any]]],
) -> None:
    photograph(folder / "caf\u00e9" / "a b.jpg", 7)
    (folder / "metadata.csv").write_text(
        "file_name,caption,stars,label,seen,taken,tags\n"
        'trip/1.jpg,"a, b",5,dog,2024-02-03,,\n'
        "./trip/2.jpg,,3.5,,,2020-01-02 03:04:05,NA\n"
        "cafe\u0301/a b.jpg,x,,,,,\n"
        "gone.jpg,x,1,,,,\n",
        encoding="utf-8",
    )
    (folder / "trip" / "metadata.jsonl").write_text(
        '{"file_name": "3.jpg", "stars": 1, "tags": ["sea", "sun"], "box": {"x": 1}}\n'
    )
    outcome = encode()
    assert outcome.notes == (
        f"{folder}/trip/metadata.jsonl: columns that hold several values were not used: box",
        f"metadata in {folder} describes 1 file that is not among the images",
    )
    found = columns()
    assert found["id"] == ["caf\u00e9/a b.jpg", *(f"trip/{month}.jpg" for month in range(1, 6))]
    assert found["caption"] == ["x", "a, b", None, None, None, None]
    assert found["stars"] == [None, 5.0, 3.5, 1.0, None, None]
    assert found["tags"] == [None, None, "NA", "sea, sun", None, None]
    assert found["seen"] == [None, datetime(2024, 2, 3), None, None, None, None]
    assert found["taken"][1:3] == [datetime(2024, 1, 1, 10), datetime(2020, 1, 2, 3, 4, 5)]
    rows = {row["id"]: row["label"] for row in opened(tmp_path).rows().to_pylist()}
    assert rows["trip/1.jpg"] == "dog"
    assert rows["trip/2.jpg"] == "trip"
    assert verify(tmp_path / "e").problems == ()


def test_changed_metadata_is_read_again_without_encoding(
    folder: Path,
    tmp_path: Path,
    encode: Callable[[], Outcome],
    columns: Callable[[], dict[str, list[Any]]],
) -> None:
    encode()
    shards = {path.name for path in (tmp_path / "e").glob("part-*")}
    for text in (
        "file_name,stars\ntrip/1.jpg,5\n",
        "file_name,stars\ntrip/1.jpg,4\ntrip/2.jpg,3\n",
    ):
        (folder / "metadata.csv").write_text(text)
        outcome = encode()
        assert (outcome.encoded, outcome.kept) == (0, 5)
        assert verify(tmp_path / "e").problems == ()
    assert columns()["stars"] == [4, 3, None, None, None]
    identity = opened(tmp_path).identity
    assert encode().notes == ()
    assert opened(tmp_path).identity == identity
    (folder / "metadata.csv").unlink()
    encode()
    assert "stars" not in columns()
    assert {path.name for path in (tmp_path / "e").glob("*.parquet")} == shards


def test_metadata_of_an_image_that_arrives_later(
    folder: Path, encode: Callable[[], Outcome], columns: Callable[[], dict[str, list[Any]]]
) -> None:
    (folder / "metadata.csv").write_text("file_name,stars\ntrip/6.jpg,5\n")
    encode()
    assert columns()["stars"] == [None] * 5
    photograph(folder / "trip" / "6.jpg", 6)
    assert encode().notes == ()
    assert columns()["stars"] == [*[None] * 5, 5]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file_name,stars\na,1\na\n", "cannot read .*metadata.csv"),
        ("metadata.jsonl", '{"file_name": "a"\n', "cannot read .*metadata.jsonl"),
        ("metadata.csv", "file_name,x\ntrip/1.jpg,1\ntrip/1.jpg,2\n", "trip/1.jpg twice"),
        ("metadata.csv", "file_name,taken\ntrip/1.jpg,yesterday\n", "cannot read .*metadata.csv"),
        ("metadata.csv", "", "cannot read .*metadata.csv"),
    ],
)
def test_metadata_that_cannot_be_read_stops_the_run_before_it_begins(
    folder: Path,
    tmp_path: Path,
    encode: Callable[[], Outcome],
    name: str,
    text: str,
    message: str,
) -> None:
    (folder / name).write_text(text)
    with pytest.raises(BadSource, match=message):
        encode()
    assert not [*(tmp_path / "e").glob("part-*")]


def test_metadata_of_other_programs_is_left_alone(
    folder: Path, encode: Callable[[], Outcome], columns: Callable[[], dict[str, list[Any]]]
) -> None:
    (folder / "metadata.csv").write_text("picture;rating\n1.jpg;3\n")
    outcome = encode()
    assert outcome.notes == (f"{folder}/metadata.csv has no column file_name, and was not used",)
    assert sorted(columns()) == sorted(["id", *PHOTO])


def test_names_that_retr_uses_get_a_prefix(
    folder: Path, encode: Callable[[], Outcome], columns: Callable[[], dict[str, list[Any]]]
) -> None:
    (folder / "metadata.csv").write_text("file_name,id,path\ntrip/1.jpg,77,x\n")
    encode()
    assert columns()["metadata_id"][0] == 77
    assert columns()["metadata_path"][0] == "x"


def test_damaged_columns_are_told(
    folder: Path, tmp_path: Path, encode: Callable[[], Outcome]
) -> None:
    (folder / "metadata.csv").write_text("file_name,stars\ntrip/1.jpg,5\n")
    encode()
    (file,) = (tmp_path / "e").glob("columns-*")
    whole = file.read_bytes()
    file.unlink()
    os.mkfifo(file)  # reading it would not end
    with pytest.raises(BadData, match="is not a file"):
        opened(tmp_path).columns()
    file.unlink()
    file.write_bytes(whole)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BadData, match=r"columns-.*checksum mismatch"):
        opened(tmp_path).columns()
    assert any("checksum mismatch" in each for each in verify(tmp_path / "e").problems)


def png(value: int) -> dict[str, object]:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    features = {"kind": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    for part in range(2):
        rows = range(3 * part, 3 * part + 3)
        found = pa.table(
            {
                "image": [png(10 * row) for row in rows],
                "caption": [None if row == 1 else f"number {row}" for row in rows],
                "stars": pa.array(rows, pa.uint8()),
                "kind": [row % 2 for row in rows],
                "tags": [["a", "b"][: row % 3] for row in rows],
                "box": [{"x": 1} for _ in rows],
            }
        )
        info = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        (tmp_path / "t").mkdir(exist_ok=True)
        path = tmp_path / "t" / f"{part}.parquet"
        pq.write_table(found.replace_schema_metadata(info), path)
    return tmp_path / "t"


def test_chosen_columns_of_a_table(table: Path, tmp_path: Path) -> None:
    def encode(*names: str) -> Outcome:
        source = open_source(str(table), columns=Columns(None, "", names))
        return bring_up_to_date(source, Toy(), tmp_path / "e", shard_images=4)

    assert encode().encoded == 6
    assert opened(tmp_path).columns().num_columns == 0
    assert encode("caption", "stars", "kind", "tags").encoded == 0
    assert opened(tmp_path).columns().to_pydict() == {
        "caption": ["number 0", None, "number 2", "number 3", "number 4", "number 5"],
        "stars": [0, 1, 2, 3, 4, 5],
        "kind": ["cat", "dog"] * 3,
        "tags": ["", "a", "a, b"] * 2,
    }
    assert encode().encoded == 0
    assert opened(tmp_path).columns().column_names == ["caption", "stars", "kind", "tags"]
    assert verify(tmp_path / "e").problems == ()


def test_columns_that_cannot_be_chosen(table: Path, folder: Path) -> None:
    def opened_with(path: Path, name: str) -> None:
        open_source(str(path), columns=Columns(None, None, (name,)))

    with pytest.raises(UnknownName, match="'captoin'; did you mean 'caption'"):
        opened_with(table, "captoin")
    with pytest.raises(BadSource, match=r"column 'box' of .* wanted text, numbers"):
        opened_with(table, "box")
    with pytest.raises(BadInput, match=r"no columns to choose from; leave .* --column out"):
        opened_with(folder, "caption")
