"""Sets of embeddings hold thumbnails, and the search for duplicates reads only candidates."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import retrieval.images.reading as reading
from encoders.toy import Toy
from retrieval.contracts import Framing, Metric
from retrieval.embedding.encode import bring_up_to_date, encode_source
from retrieval.images import open_source, read_image
from retrieval.images.pixels.thumbnail import thumbnail
from retrieval.pairs.duplicates import Duplicates, find_duplicates
from retrieval.pairs.stored import StoredThumbnails, stored_thumbnails
from retrieval.quality.labelled import Labelled
from retrieval.storage.sets.embeddings import Embeddings, open_embeddings
from retrieval.storage.sets.manifest import Manifest
from retrieval.storage.sets.shards import write_shard_table


def scene(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight scenes; a smaller copy of the third, and a mirrored one of the fourth."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(8):
        scene(seed).save(folder / f"{seed}.png")
    scene(2, (40, 30)).save(folder / "a.jpg", quality=90)
    scene(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b.png")
    return folder


def encoded(folder: Path, out: Path) -> Embeddings:
    bring_up_to_date(open_source(str(folder)), Toy(), out, shard_images=4)
    return open_embeddings(out)


def found_in(embeddings: Embeddings, stored: bool = True, crops: bool = False) -> Duplicates:
    rows, vectors = embeddings.read()
    images = Labelled(vectors, rows["id"].to_pylist(), rows["label"].to_pylist(), rows["path"])
    thumbnails = stored_thumbnails([embeddings]) if stored else None
    return find_duplicates(
        images, None, Metric.EUCLIDEAN, neighbors=9, crops=crops, stored=thumbnails
    )


def without_thumbnails(out: Path) -> None:
    """Write the shards as they were before thumbnails were stored."""
    manifest = Manifest.read(out)
    shards = []
    for shard in manifest.shards:
        table = pq.read_table(out / shard.file).drop_columns("thumbnail")
        shards.append(write_shard_table(out / shard.file, table, shard.skipped))
    replace(manifest, shards=tuple(shards)).write(out)


def test_thumbnails_are_those_of_the_files(photos: Path, tmp_path: Path) -> None:
    embeddings = encoded(photos, tmp_path / "out")
    (stored,) = stored_thumbnails([embeddings])
    paths = embeddings.rows()["path"].to_pylist()
    wanted = np.stack([thumbnail(read_image(path)) for path in paths])
    assert stored.known.all()
    np.testing.assert_array_equal(stored.pixels, wanted)


def test_only_candidates_are_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = encoded(photos, tmp_path / "out")
    wanted = found_in(embeddings, stored=False)
    assert {(pair["a"], pair["b"]) for pair in wanted.rows()} == {
        ("2.png", "a.jpg"),
        ("3.png", "b.png"),
    }
    opened: list[str] = []
    decode = reading.decode

    def noted(content: Any, path: str, framing: Framing | None) -> Image.Image:
        opened.append(Path(path).name)
        return decode(content, path, framing)

    monkeypatch.setattr(reading, "decode", noted)
    found = found_in(embeddings)
    assert found.rows() == wanted.rows()
    assert {*opened} == {"2.png", "a.jpg", "3.png", "b.png"}


def test_changed_and_missing_files_are_read_again(photos: Path, tmp_path: Path) -> None:
    embeddings = encoded(photos, tmp_path / "out")
    scene(5).save(photos / "0.png")
    os.utime(photos / "0.png", (1, 1))
    (photos / "1.png").unlink()
    ids = embeddings.rows()["id"].to_pylist()
    (stored,) = stored_thumbnails([embeddings])
    assert {ids[row] for row in np.flatnonzero(~stored.known)} == {"0.png", "1.png"}
    found = found_in(embeddings)
    assert ("0.png", "5.png") in {(pair["a"], pair["b"]) for pair in found.rows()}
    assert [Path(error.path).name for error in found.unreadable] == ["1.png"]


@pytest.mark.parametrize("crops", [False, True])
def test_damaged_files_of_the_same_size_and_time_are_reported(
    photos: Path, tmp_path: Path, crops: bool
) -> None:
    embeddings = encoded(photos, tmp_path / "out")
    damaged = photos / ("7.png" if crops else "b.png")  # b.png has a copy
    status = damaged.stat()
    damaged.write_bytes(bytes(status.st_size))
    os.utime(damaged, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = found_in(embeddings, crops=crops)
    assert [Path(error.path).name for error in found.unreadable] == [damaged.name]
    assert len(found.matches) == (2 if crops else 1)


def test_sets_without_the_column_are_read_and_brought_up_to_date(
    photos: Path, tmp_path: Path
) -> None:
    embeddings = encoded(photos, tmp_path / "out")
    before, rows = embeddings.vectors(), found_in(embeddings).rows()
    without_thumbnails(tmp_path / "out")
    older = open_embeddings(tmp_path / "out")
    np.testing.assert_array_equal(older.vectors(), before)
    assert not stored_thumbnails([older])[0].known.any()
    assert found_in(older).rows() == rows
    (photos / "7.png").rename(photos / "moved.png")
    scene(9).save(photos / "new.png")
    newer = encoded(photos, tmp_path / "out")
    ids = newer.rows()["id"].to_pylist()
    (stored,) = stored_thumbnails([newer])
    assert [ids[row] for row in np.flatnonzero(stored.known)] == ["new.png"]
    assert len(found_in(newer).matches) == 2


def test_a_renamed_file_keeps_its_thumbnail(photos: Path, tmp_path: Path) -> None:
    encoded(photos, tmp_path / "out")
    (photos / "7.png").rename(photos / "moved.png")
    embeddings = encoded(photos, tmp_path / "out")
    (stored,) = stored_thumbnails([embeddings])
    row = embeddings.rows()["id"].to_pylist().index("moved.png")
    assert stored.known.all()
    np.testing.assert_array_equal(stored.pixels[row], thumbnail(scene(7)))


def test_images_that_are_no_files_have_no_thumbnails(tmp_path: Path) -> None:
    encode_source(open_source("digits", limit=5), Toy(), tmp_path / "digits")
    stored = StoredThumbnails.of(open_embeddings(tmp_path / "digits"))
    assert stored.known.tolist() == [False] * 5
