"""Columns for filters in an index: they follow its rows."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from encoders.toy import Toy
from retrieval import Searcher, open_embeddings
from retrieval.embedding.encode import bring_up_to_date
from retrieval.errors import BadInput, UnknownName
from retrieval.images import open_source
from retrieval.index.build import build_index
from retrieval.index.build_segments import build_segments
from retrieval.index.folder import columns_of, open_index
from retrieval.index.follow import follow_embeddings
from retrieval.index.update import add_rows, delete_rows
from retrieval.inspection import verify
from retrieval.storage.sets.embeddings import Embeddings

WIDTHS = range(20, 30)


def photograph(path: Path, width: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "Pixel 8" if width % 2 else "iPhone 15"
    exif[ExifTags.Base.DateTime] = f"2024:05:{width} 10:00:00"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, 20), (8 * width, 0, 0)).save(path, exif=exif)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for width in WIDTHS:
        photograph(tmp_path / "photos" / f"{width}.jpg", width)
    return tmp_path / "photos"


def encoded(folder: Path) -> Embeddings:
    out = folder.parent / f"{folder.name}-embeddings"
    bring_up_to_date(open_source(str(folder)), Toy(), out, shard_images=4)
    return open_embeddings(out)


def found(index: Path, where: str) -> list[str]:
    """The ids that a filter admits; those that a search finds are the same."""
    searcher = Searcher.open(index)
    selected = searcher.select(None, where)
    assert selected is not None
    ids = [str(each) for each in searcher.opened.rows["id"].filter(selected.mask).to_pylist()]
    query = np.zeros((1, searcher.opened.facts.dim), np.float32)
    (hits,) = searcher.search(query, len(searcher), where)
    assert sorted(hit.id for hit in hits) == sorted(ids)
    return ids


@pytest.mark.parametrize("backend", ["exact", "hnsw", "hnsw-pca", "ivf"])
def test_searches_filter_by_columns(folder: Path, tmp_path: Path, backend: str) -> None:
    build_index([encoded(folder)], backend, tmp_path / "index")
    index = tmp_path / "index"
    assert found(index, "taken >= 2024-05-25 and camera like 'Pixel%'") == [
        *("25.jpg", "27.jpg", "29.jpg")
    ]
    assert found(index, "width > 100") == []
    assert found(index, "width < 22 or id = 29.jpg") == ["20.jpg", "21.jpg", "29.jpg"]
    assert verify(index).problems == ()


def test_values_of_hits(folder: Path, tmp_path: Path) -> None:
    build_index([encoded(folder)], "exact", tmp_path / "index")
    searcher = Searcher.open(tmp_path / "index")
    assert searcher.columns(["23.jpg", "20.jpg"], ["camera", "taken", "latitude"]) == [
        {"camera": "Pixel 8", "taken": "2024-05-23T10:00:00", "latitude": None},
        {"camera": "iPhone 15", "taken": "2024-05-20T10:00:00", "latitude": None},
    ]
    assert searcher.columns([], []) == []
    with pytest.raises(UnknownName, match="did you mean 'camera'"):
        searcher.columns([], ["camara"])


def test_columns_follow_the_embeddings(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index([encoded(folder)], "hnsw", index)
    (folder / "21.jpg").unlink()
    photograph(folder / "new.jpg", 21)
    (folder / "metadata.csv").write_text("file_name,stars\n22.jpg,5\n")
    embeddings = encoded(folder)
    followed = follow_embeddings([embeddings], "hnsw", index, embeddings.facts.metric)
    assert followed is not None
    assert followed.is_change
    assert found(index, "width = 21") == ["new.jpg"]
    assert found(index, "stars = 5") == ["22.jpg"]
    # The table alone changes: no row is added or deleted.
    (folder / "metadata.csv").write_text("file_name,stars,label\n22.jpg,4,dog\n")
    embeddings = encoded(folder)
    followed = follow_embeddings([embeddings], "hnsw", index, embeddings.facts.metric)
    assert followed is not None
    assert (followed.added, followed.deleted, followed.is_change) == (0, 0, True)
    assert found(index, "stars = 4 and label = dog") == ["22.jpg"]
    assert verify(index).problems == ()


def test_deleted_and_added_rows(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index([encoded(folder)], "exact", index)
    delete_rows(index, "camera = 'Pixel 8' and width > 22")
    assert found(index, "width > 0") == [f"{width}.jpg" for width in (20, 21, 22, 24, 26, 28)]
    for width in range(40, 43):
        photograph(tmp_path / "more" / f"{width}.jpg", width - 20)
    (tmp_path / "more" / "metadata.csv").write_text("file_name,stars\n41.jpg,5\n")
    add_rows(index, [encoded(tmp_path / "more")])
    assert found(index, "width = 20") == ["20.jpg", "40.jpg"]
    assert found(index, "stars = 5") == ["41.jpg"]
    with pytest.raises(BadInput, match="matches all 9 rows"):
        delete_rows(index, "width > 0")
    assert verify(index).problems == ()


def test_two_folders_with_different_columns(folder: Path, tmp_path: Path) -> None:
    """Numbers in one folder and text in the other become text."""
    photograph(tmp_path / "more" / "20.jpg", 40)
    (folder / "metadata.csv").write_text("file_name,stars,only\n20.jpg,5,1\n")
    (tmp_path / "more" / "metadata.csv").write_text("file_name,stars\n20.jpg,many\n")
    build_index([encoded(folder), encoded(tmp_path / "more")], "exact", tmp_path / "index")
    assert found(tmp_path / "index", "stars in (5, many)") == ["photos/20.jpg", "more/20.jpg"]
    assert found(tmp_path / "index", "only = 1") == ["photos/20.jpg"]


def test_an_index_in_parts(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    embeddings = encoded(folder)
    build_segments(
        [embeddings],
        "exact",
        index,
        2,
        engine=lambda build, tasks: ((n, build(task)) for n, task in enumerate(tasks)),
    )
    assert found(index, "width > 22 and camera = 'Pixel 8'") == [
        f"{width}.jpg" for width in (23, 25, 27, 29)
    ]
    opened = open_index(index)
    assert opened.columns.table().equals(embeddings.columns())
    assert opened.columns.schema == opened.columns.table().schema
    assert columns_of(index, opened.facts).names == opened.columns.names


def test_a_searcher_keeps_its_columns_while_the_index_is_replaced(
    folder: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    build_index([encoded(folder)], "exact", index)
    searcher = Searcher.open(index)
    shutil.rmtree(folder)
    photograph(folder / "new.jpg", 23)
    build_index([encoded(folder)], "exact", index)
    selected = searcher.select(None, "width = 20")
    assert selected is not None
    assert selected.mask.tolist() == [True, *[False] * 9]
    assert found(index, "width = 23") == ["new.jpg"]
