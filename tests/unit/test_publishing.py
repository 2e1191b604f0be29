"""What a writer that was killed has left ready, and what strangers have put there instead."""

import json
from pathlib import Path

import numpy as np
import pytest
from made import embeddings

from retrieval import build_index, open_index
from retrieval.errors import BadData
from retrieval.indexing import INDEX
from retrieval.storage.files import PARTIAL, locked, write_json
from retrieval.storage.publishing import READY, STALE, publish, settle

VECTORS = np.array([[0, 1], [1, 0], [1, 1]], np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index, and beside its folder a file that is none of its own."""
    build_index([embeddings(tmp_path / "set", VECTORS)], "exact", tmp_path / "index")
    (tmp_path / "precious").write_text("not an index's")
    return tmp_path / "index"


def left_ready(folder: Path, stale: object) -> None:
    (folder / READY).mkdir()
    (folder / READY / STALE).write_text(json.dumps(stale))


def test_new_files_replace_old_ones_as_one(folder: Path) -> None:
    new = folder / "new"
    new.mkdir()
    (new / "b").write_text("new")
    (folder / "a").write_text("old")
    with locked(folder):
        publish(new, folder, "b", ["a"])
    assert (folder / "b").read_text() == "new"
    assert not (folder / "a").exists() and not (folder / READY).exists()


def test_what_a_killed_writer_left_is_finished_by_the_next_reader(folder: Path) -> None:
    (folder / "old").write_text("of the build before")
    left_ready(folder, {"stale": ["old", "gone"]})
    (folder / READY / "new").write_text("of this build")
    assert len(open_index(folder).index) == 3
    assert not (folder / "old").exists() and not (folder / READY).exists()
    assert (folder / "new").read_text() == "of this build"


@pytest.mark.parametrize(
    "stale",
    [
        {"stale": ["../precious"]},
        {"stale": ["part-000000000000/../../precious"]},
        {"stale": ["link/precious"]},
        {"stale": "precious"},
        {"stale": [7]},
        {},
        ["../precious"],
    ],
)
def test_no_file_of_others_is_deleted(folder: Path, stale: object) -> None:
    (folder / "link").symlink_to(folder.parent)
    left_ready(folder, stale)
    (folder / READY / "new").write_text("a stranger's")
    with pytest.raises(BadData, match=r"stale.json"):
        open_index(folder)
    assert (folder.parent / "precious").exists()
    assert not (folder / "new").exists()


def test_no_absolute_path_is_deleted(folder: Path) -> None:
    left_ready(folder, {"stale": [str(folder.parent / "precious")]})
    with pytest.raises(BadData, match=r"names a file outside its folder; delete .*ready"):
        open_index(folder)
    assert (folder.parent / "precious").exists()


def test_no_folder_of_others_is_emptied(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"\xff\xd8")
    (folder / READY).symlink_to(tmp_path / "photos")
    with pytest.raises(BadData, match=r"leads out of its folder; delete it"):
        open_index(folder)
    assert (tmp_path / "photos" / "one.jpg").exists()


def test_what_is_nested_too_deep_is_damaged(folder: Path) -> None:
    (folder / INDEX).write_text("[" * 100_000)
    with pytest.raises(BadData, match=r"cannot read .*index.json"):
        open_index(folder)
    left_ready(folder, {})
    (folder / READY / STALE).write_text("[" * 100_000)
    with pytest.raises(BadData, match=r"cannot read .*stale.json"):
        settle(folder, INDEX)


def test_nothing_is_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("not ours")
    (tmp_path / f"facts.json{PARTIAL}").symlink_to("precious")
    (tmp_path / "facts.json").symlink_to("precious")
    write_json(tmp_path / "facts.json", {"ours": True})
    assert (tmp_path / "precious").read_text() == "not ours"
    assert json.loads((tmp_path / "facts.json").read_text()) == {"ours": True}
    assert not (tmp_path / "facts.json").is_symlink()
