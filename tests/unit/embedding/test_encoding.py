"""Encoding a source: order, bad images, resumption, streams."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from encoders.toy import Toy
from retrieval.contracts import Images, Vectors
from retrieval.embedding.decoder import Decoder
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadData, BadSource, Busy
from retrieval.images import Item, open_source, read_image
from retrieval.images.folders import folder as folder_module
from retrieval.images.folders.listing import Changes, listed
from retrieval.inspection import verify
from retrieval.quality.labelled import Labelled
from retrieval.storage.files import locked
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import Manifest


class Stopping(Toy):
    """The toy encoder, which fails after some batches, as a run that is stopped."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def encode(self, images: Images) -> Vectors:
        self.batches -= 1
        if self.batches < 0:
            raise KeyboardInterrupt
        return super().encode(images)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def test_rows_are_the_images_in_their_order(photos: Path, tmp_path: Path) -> None:
    encode_source(open_source(str(photos)), Toy(), tmp_path / "out", shard_images=7)
    rows, vectors = open_embeddings(tmp_path / "out").read()
    expected = [f"{label}/{i}.png" for label in ("blue", "green", "red") for i in range(10)]
    assert rows["id"].to_pylist() == expected
    assert rows["label"].to_pylist() == [name.split("/")[0] for name in expected]
    for path, vector in zip(rows["path"].to_pylist(), vectors, strict=True):
        with Image.open(path) as image:
            # 16 × 12 pixels become 8 × 8: the mean color of the middle, resampled
            mean = np.asarray(image.crop((2, 0, 14, 12))).mean((0, 1)) / 255
        np.testing.assert_allclose(vector, mean, atol=0.01)


def test_bad_images_are_listed_and_stop_nothing(photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "0.png").write_bytes(b"")
    (photos / "blue" / "3.png").write_text("not a picture")
    manifest = encode_source(open_source(str(photos)), Toy(), tmp_path / "out", shard_images=8)
    assert (manifest.rows, manifest.skipped) == (28, 2)
    skipped = pq.read_table(tmp_path / "out" / "skipped.parquet").to_pylist()
    assert [(Path(s["path"]).name, s["shard"]) for s in skipped] == [("3.png", 0), ("0.png", 2)]
    assert [s["reason"] for s in skipped] == ["not an image", "empty file"]
    assert len(open_embeddings(tmp_path / "out").vectors()) == 28


def test_a_source_without_one_good_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for i in range(3):
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"x")
    with pytest.raises(BadData, match="cannot read any of the 3 images"):
        encode_source(open_source(str(tmp_path / "bad")), Toy(), tmp_path / "out")


@pytest.mark.parametrize("batches", [0, 1, 2, 3])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    photos: Path, tmp_path: Path, batches: int
) -> None:
    (photos / "blue" / "3.png").write_bytes(b"")  # skipped in the first shard
    (photos / "red" / "9.png").write_bytes(b"")  # and in the last
    source = open_source(str(photos))
    encode_source(source, Toy(), tmp_path / "whole", shard_images=8)
    with pytest.raises(KeyboardInterrupt):
        encode_source(source, Stopping(batches), tmp_path / "stopped", shard_images=8)
    seen: list[tuple[int, int]] = []
    encode_source(
        source,
        Toy(),
        tmp_path / "stopped",
        shard_images=8,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[0] == (8 * batches, 30)
    assert seen[-1] == (30, 30)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_complete_set_is_not_encoded_again(photos: Path, tmp_path: Path) -> None:
    source = open_source(str(photos))
    first = encode_source(source, Toy(), tmp_path / "out")
    assert encode_source(source, Stopping(0), tmp_path / "out") == first


def test_a_second_writer_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(Busy, match="another process is writing"):
        encode_source(open_source(str(photos)), Toy(), tmp_path / "out")
    encode_source(open_source(str(photos)), Toy(), tmp_path / "out")


class Meddling(Toy):
    """The toy encoder, which does something to the folder before its first batch."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def encode(self, images: Images) -> Vectors:
        self.act()
        self.act = lambda: None
        return super().encode(images)


def ids(folder: Path) -> list[str]:
    return [str(name) for name in open_embeddings(folder).rows()["id"].to_pylist()]


def skipped(folder: Path) -> list[dict[str, object]]:
    table: list[dict[str, object]] = (
        pq.read_table(folder / "skipped.parquet").drop_columns("stamp").to_pylist()
    )
    return table


def test_a_file_that_vanishes_during_the_run_is_skipped(photos: Path, tmp_path: Path) -> None:
    source, gone = open_source(str(photos)), photos / "red" / "9.png"
    encoder = Meddling(gone.unlink)
    manifest = encode_source(source, encoder, tmp_path / "out", shard_images=8)
    assert (manifest.rows, manifest.skipped, manifest.complete) == (29, 1, True)
    assert skipped(tmp_path / "out") == [{"path": str(gone), "reason": "no such file", "shard": 3}]
    assert verify(tmp_path / "out").problems == ()


def test_what_arrives_during_the_run_is_left_for_the_next(photos: Path, tmp_path: Path) -> None:
    source = open_source(str(photos))
    expected = [item.id for item in source.items()]

    def arrive() -> None:
        for name in ("blue/0a.png", "aaa/1.png", "red/99.png"):
            (photos / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (9, 9)).save(photos / name)
        Image.new("RGB", (9, 9)).save(photos / "green" / "3.png")

    encode_source(source, Meddling(arrive), tmp_path / "out", shard_images=8)
    assert ids(tmp_path / "out") == expected
    found = listed(source)
    assert found is not None
    assert found.changes() == Changes(arrived=3, changed=1)
    encode_source(open_source(str(photos)), Toy(), tmp_path / "out", shard_images=8)
    encode_source(open_source(str(photos)), Toy(), tmp_path / "fresh", shard_images=8)
    assert sorted(ids(tmp_path / "out")) == sorted(ids(tmp_path / "fresh"))


def test_a_folder_that_is_gone_is_no_set_of_skipped_images(photos: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    encode_source(open_source(str(photos)), Toy(), whole, shard_images=8)
    away = photos.with_name("away")
    encoder = Meddling(lambda: photos.rename(away))
    with pytest.raises(BadSource, match="disappeared during the run; restore it"):
        encode_source(open_source(str(photos)), encoder, tmp_path / "out", shard_images=8)
    away.rename(photos)
    encode_source(open_source(str(photos)), Toy(), tmp_path / "out", shard_images=8)
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("batches", [0, 2])
def test_a_folder_that_cannot_be_listed_is_in_skipped_parquet(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    scandir = os.scandir

    def refused(folder: Path) -> "os._ScandirIterator[str]":
        if folder.name == "green":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(folder_module, "scandir", refused)
    (photos / "blue" / "0.png").write_bytes(b"")
    (photos / "blue" / "x.psd").write_bytes(b"x")
    source = open_source(str(photos))
    with pytest.raises(KeyboardInterrupt):
        encode_source(source, Stopping(batches), tmp_path / "out", shard_images=8)
    manifest = encode_source(source, Toy(), tmp_path / "out", shard_images=8)
    assert (manifest.rows, manifest.skipped, manifest.skipped_folders) == (19, 1, 1)
    assert manifest.passed_over == {".psd": 1}
    assert Manifest.read(tmp_path / "out") == manifest
    rows = [(Path(str(r["path"])).name, r["reason"], r["shard"]) for r in skipped(tmp_path / "out")]
    assert rows == [("green", "permission denied", None), ("0.png", "empty file", 0)]
    assert verify(tmp_path / "out").problems == ()
    assert encode_source(source, Stopping(0), tmp_path / "out", shard_images=8) == manifest


def test_an_image_whose_name_is_not_utf8_is_found_again(photos: Path, tmp_path: Path) -> None:
    odd = photos / "red" / os.fsdecode(b"caf\xe9.png")
    plain = photos / "red" / r"caf\udce9.png"
    Image.new("RGB", (9, 9), "red").save(odd)
    Image.new("RGB", (9, 9), "blue").save(plain)
    bad = photos / "red" / os.fsdecode(b"\xff.png")
    bad.write_bytes(b"")
    encode_source(open_source(str(photos)), Toy(), tmp_path / "out")
    paths = Labelled.of(open_embeddings(tmp_path / "out")).all_paths()
    assert {str(odd), str(plain)} <= {*paths}
    assert all(Path(path).is_file() for path in paths)
    assert read_image(str(odd)).getpixel((0, 0)) == (255, 0, 0)
    assert read_image(str(plain)).getpixel((0, 0)) == (0, 0, 255)
    assert [row["path"] for row in skipped(tmp_path / "out")] == [rf"{photos}/red/\udcff.png"]


def test_items_are_taken_only_a_few_batches_ahead() -> None:
    taken = 0

    def endless() -> Iterator[Item]:
        nonlocal taken
        while True:
            taken += 1
            yield Item(f"{taken}", None, f"{taken}", np.zeros((8, 8, 3), np.uint8))

    with Decoder(Toy.framing, threads=2) as decoder:
        batches = decoder.batches(endless(), size=10)
        first = next(batches)
        assert len(first.decoded) == 10
        assert taken <= 50
        assert [read.item.id for read in next(batches).decoded] == [str(i) for i in range(11, 21)]
