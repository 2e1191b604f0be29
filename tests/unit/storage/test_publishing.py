"""Publications that were interrupted, and folders that somebody tampered with."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import Searcher, build_index, open_embeddings, open_index
from retrieval.errors import BadData, BadInput, Busy
from retrieval.index.build_segments import build_segments
from retrieval.index.folder import INDEX, IndexFacts
from retrieval.index.update import add_rows, delete_rows
from retrieval.inspection import kind_of, verify
from retrieval.storage import publishing
from retrieval.storage.files import PARTIAL, locked, write_json
from retrieval.storage.publishing import READY, STALE, publish, settle
from tests.made import embeddings, unpublish

VECTORS = np.array([[0, 1], [1, 0], [1, 1]], np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index, and beside its folder a file that is none of its own."""
    build_index([embeddings(tmp_path / "set", VECTORS)], "exact", tmp_path / "index")
    (tmp_path / "precious").write_text("not an index's")
    return tmp_path / "index"


class Killed(BaseException):
    """Stands for the end of a process."""


def publication_killed(build: Callable[[], object], moves: int) -> None:
    """Build an index, and stop after `moves` files were moved."""
    replace = Path.replace
    moved = 0

    def counted(path: Path, target: Path) -> Path:
        nonlocal moved
        if path.parent.name == READY:
            if moved == moves:
                raise Killed
            moved += 1
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", counted)
        build()


@pytest.fixture(params=[0, 1, 2])
def unfinished(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder into which an index was to be published for the first time, by a process that was
    killed after some moves."""
    made = embeddings(tmp_path / "set", VECTORS)
    folder = tmp_path / "index"
    publication_killed(lambda: build_index([made], "exact", folder), request.param)
    assert (folder / READY / INDEX).is_file() and not (folder / INDEX).exists()
    return folder


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


def rebuilt(folder: Path) -> int:
    return build_index([open_embeddings(folder.parent / "set")], "exact", folder).rows


def grown(folder: Path) -> int:
    more = embeddings(folder.parent / "more", VECTORS[:1])
    return add_rows(folder, [more]).rows - 1


READERS: dict[str, Callable[[Path], int]] = {
    "facts": lambda folder: IndexFacts.read(folder).rows,
    "open": lambda folder: len(open_index(folder).index),
    "searcher": lambda folder: len(Searcher.open(folder)),
    "kind": lambda folder: 3 * (kind_of(folder) == "index"),
    "verify": lambda folder: verify(folder).rows,
    "build": rebuilt,
    "add": grown,
    "delete": lambda folder: delete_rows(folder, "id=set0").rows + 1,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_first_publication_is_finished_by_any_reader(unfinished: Path, reader: str) -> None:
    assert READERS[reader](unfinished) == 3
    assert (unfinished / INDEX).is_file() and not (unfinished / READY).exists()
    assert not verify(unfinished).problems


def test_a_part_whose_publication_was_interrupted_is_finished(tmp_path: Path) -> None:
    made = embeddings(tmp_path / "set", VECTORS, shard_rows=1)
    build_segments(
        [made],
        "exact",
        tmp_path / "index",
        2,
        engine=lambda build, tasks: ((number, build(task)) for number, task in enumerate(tasks)),
    )
    part = tmp_path / "index" / IndexFacts.read(tmp_path / "index").parts[1].folder
    unpublish(part)
    assert len(open_index(tmp_path / "index").index) == 3
    assert not (part / READY).exists()


def cannot_lock(folder: Path) -> Any:
    raise BadInput(f"cannot write into {folder}")


def cannot_write(path: Path, *_: Path) -> Path:
    raise OSError(errno.EROFS, "Read-only file system", str(path))


@pytest.fixture(params=["lock", "move"])
def read_only(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[], None]:
    """Make the folders of indices read-only, as on a disk that is mounted so."""

    def close() -> None:
        if request.param == "lock":
            monkeypatch.setattr(publishing, "locked", cannot_lock)
        else:
            monkeypatch.setattr(Path, "replace", cannot_write)
            monkeypatch.setattr("shutil.rmtree", cannot_write)

    return close


def test_an_index_on_a_read_only_disk_opens(folder: Path, read_only: Callable[[], None]) -> None:
    read_only()
    assert len(open_index(folder).index) == 3
    left_ready(folder, {"stale": []})  # all files were moved, and cleaning up was not over
    assert len(open_index(folder).index) == 3


def test_an_unfinished_index_on_a_read_only_disk_is_refused(
    unfinished: Path, read_only: Callable[[], None]
) -> None:
    read_only()
    for reader in ("facts", "open", "searcher", "kind", "verify"):
        with pytest.raises(BadInput, match=r"index was interrupted.*; run the command once as"):
            READERS[reader](unfinished)


def test_reader_stops_waiting(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "READER_TIMEOUT_SECONDS", 0)
    with locked(unfinished), pytest.raises(Busy, match="another process is writing into"):
        IndexFacts.read(unfinished)


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
    with pytest.raises(BadData, match=r"is a link; delete it"):
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
