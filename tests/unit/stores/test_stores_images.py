"""Images in a store: the same as in a folder; listed once, fetched in stretches."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.toy import Toy
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadImage, BadInput, BadSource
from retrieval.images import Columns, open_source, read_image
from retrieval.images.folders import remote as remote_images
from retrieval.images.folders.listing import Changes, listed
from retrieval.storage.places import RemotePath
from tests.stores import put


def test_images_of_a_store_are_those_of_a_folder(root: RemotePath, photos: Path) -> None:
    (photos / "red" / "0.png").write_bytes(b"")
    (photos / "notes.txt").write_text("no image")
    (photos / ".hidden").mkdir()
    (photos / ".hidden" / "a.png").write_bytes(b"")
    there = open_source(str(put(photos, root / "photos")))
    here = open_source(str(photos))
    assert len(there) == len(here) == 30
    for start in (0, 7, 30):
        a, b = ([*source.items(start)] for source in (there, here))
        assert [(x.id, x.label) for x in a] == [(x.id, x.label) for x in b]
    item = [*there.items()][3]
    assert item.path == f"{root}/photos/blue/3.png"
    assert read_image(item.path).size == (16, 12)
    assert open_source(f"{root}/photos").fingerprint == there.fingerprint
    (root / "photos/blue/3.png").upload(photos / "blue" / "4.png")
    assert open_source(f"{root}/photos").fingerprint != there.fingerprint
    assert len(open_source(f"{root}/photos/*/1.png")) == 3
    assert [x.id for x in open_source(f"{root}/photos/red/1.png").items()] == ["1.png"]
    assert len(open_source(f"{root}/photos", limit=4)) == 4


def test_images_are_fetched_in_chunks_of_bounded_size(
    root: RemotePath, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_images, "FETCH_BYTES", 1500)
    asked: list[int] = []
    original = RemotePath.read_all

    def counted(self: RemotePath, names: list[str]) -> list[bytes | Exception]:
        asked.append(len(names))
        return original(self, names)

    monkeypatch.setattr(RemotePath, "read_all", counted)
    source = open_source(str(put(photos, root / "photos")))
    assert len([*source.items()]) == 30
    assert len(asked) > 5
    assert sum(asked) == 30


def test_what_is_gone_or_damaged_is_skipped(root: RemotePath, photos: Path) -> None:
    (photos / "red" / "0.png").write_bytes(b"")
    source = open_source(str(put(photos, root / "photos")))
    (root / "photos/green/5.png").unlink()
    manifest = encode_source(source, Toy(), root / "out")
    assert (manifest.rows, manifest.skipped) == (28, 2)
    skipped = pq.read_table(pa.BufferReader((root / "out/skipped.parquet").read_bytes()))
    assert skipped["reason"].to_pylist() == ["no such file", "empty file"]


def test_a_store_is_listed_once_and_what_arrives_is_known(root: RemotePath, photos: Path) -> None:
    (photos / "red" / "a.psd").write_bytes(b"x")
    there = put(photos, root / "photos")
    source = open_source(str(there))
    found = listed(source)
    assert found is not None
    assert found.left_out.passed_over == {".psd": 1}
    assert found.changes() == Changes(0, 0)
    assert found.differing(range(30)) == []
    (there / "blue/0.png").unlink()
    (there / "blue/0a.png").upload(photos / "blue" / "1.png")
    (there / "green/3.png").upload(photos / "red" / "4.png")
    assert len([*source.items()]) == len(source) == 30
    assert found.changes() == Changes(arrived=1, changed=1)
    assert found.differing(range(30)) == [0]
    assert found.differing(range(1, 30)) == []
    one = listed(open_source(f"{there}/red/1.png"))
    assert one is not None
    assert one.changes() == Changes(0, 0)


def test_a_folder_of_a_store_that_is_gone_is_no_set_of_skipped_images(
    root: RemotePath, photos: Path
) -> None:
    there = put(photos, root / "photos")
    source = open_source(str(there))
    there.remove()
    with pytest.raises(BadSource, match="disappeared during the run; restore it"):
        encode_source(source, Toy(), root / "out")


def test_folders_of_splits_in_a_store_are_no_labels(root: RemotePath, photos: Path) -> None:
    there = root / "set"
    for name in ("train/cat/1.png", "val/cat/2.png", "cover.png"):
        (there / name).upload(photos / "red" / "1.png")
    said: list[str] = []
    source = open_source(str(there), note=said.append)
    assert [(item.id, item.label) for item in source.items()] == [("cat/1.png", "cat")]
    assert source.name == f"{there}/train"
    assert said == [
        f"the folders of {there} are splits: took train, not val; choose with --split",
        f"left out 1 image beside the splits of {there}",
    ]
    assert open_source(str(there), "validation").name == f"{there}/val"


def parquet(folder: Path, photos: Path, rows: int = 20) -> Path:
    """train-00000-of-00001.parquet and test-…, in the schema of Hugging Face."""
    folder.mkdir()
    images = sorted(photos.rglob("*.png"))
    for split, some in (("train", images[:rows]), ("test", images[rows:])):
        table = pa.table(
            {
                "image": [{"bytes": path.read_bytes(), "path": path.name} for path in some],
                "label": [path.parent.name for path in some],
            }
        )
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=6)
    return folder


def test_parquet_of_a_store(root: RemotePath, photos: Path, tmp_path: Path) -> None:
    data = parquet(tmp_path / "data", photos)
    there = put(data, root / "data")
    train, test = (open_source(str(there), split) for split in (None, "test"))
    assert (len(train), len(test)) == (20, 10)
    assert [x.id for x in train.items(7)] == [x.id for x in open_source(str(data)).items(7)]
    item = [*test.items()][4]
    assert (item.id, item.label) == ("test/00004", "red")
    assert read_image(item.path).size == (16, 12)
    with pytest.raises(BadImage, match="no such row"):
        read_image(item.path.replace("#4", "#99"))
    one = open_source(f"{there}/test-*.parquet")
    assert next(one.items()).id == "test-00000-of-00001.parquet#0"
    with pytest.raises(BadInput, match="unknown split"):
        open_source(str(there), "validation")
    with pytest.raises(BadSource, match="no split 'test'"):
        open_source(f"{there}/test-*.parquet", "test")


def test_columns_of_parquet_in_a_store(root: RemotePath, photos: Path, tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in sorted(photos.rglob("*.png"))[:3]]
    paths = ["below/a.png", "../a.png", "x::memory://a.png", "/a.png", "https://a/a.png"]
    none = [None] * len(paths)
    structs = [{"bytes": content, "path": None} for content in contents]
    structs += [{"bytes": None, "path": path} for path in paths]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, kind), "thumb": [*contents[::-1], *none]})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "1.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "data" / "0.parquet")
    there = put(tmp_path / "data", root / "data")
    (there / "below" / "a.png").upload(next(photos.rglob("*.png")))
    said: list[str] = []
    assert len(open_source(str(there), note=said.append)) == 1
    assert "holds image and .parquet files: the image files are taken" in said[0]
    plain = [*open_source(f"{there}/*.parquet").items()]
    assert [item.content for item in plain[:4]] == [*contents, there / "below/a.png"]
    assert read_image(plain[3].path).size == (16, 12)
    for item in plain[4:]:
        with pytest.raises(BadImage, match=r"is outside the folder of the table|a URL; download"):
            read_image(item.path)
    chosen = open_source(f"{there}/*.parquet", columns=Columns("thumb"))
    items = [*chosen.items()]
    assert [item.content for item in items[:3]] == contents[::-1]
    assert items[0].path == f"{there}/1.parquet#thumb#0"
    assert np.array_equal(read_image(items[0].path), read_image(plain[2].path))


@pytest.mark.parametrize("name", ["state.arrow", "a.tar"])
def test_what_is_not_read_in_a_store_is_refused_by_name(
    root: RemotePath, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"content")
    (root / "data" / name).upload(tmp_path / name)
    with pytest.raises(BadSource, match=r"Arrow files or tar archives, .* copy them"):
        open_source(f"{root}/data")


def test_an_archive_in_a_store(s3: Any, photos: Path, tmp_path: Path) -> None:
    import shutil

    archive = shutil.make_archive(str(tmp_path / "all"), "zip", photos)
    RemotePath("s3://bucket/all.zip").upload(Path(archive))
    source = open_source("zip://::s3://bucket/all.zip")
    items = [*source.items()]
    assert [item.id for item in items] == [x.id for x in open_source(str(photos)).items()]
    assert items[0].path == "zip://blue/0.png::s3://bucket/all.zip"
    assert read_image(items[0].path).size == (16, 12)
