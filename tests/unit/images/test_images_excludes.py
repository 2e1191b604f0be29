"""What a listing leaves out: by default, by .retrignore, and by --exclude."""

from pathlib import Path

import pytest
from PIL import Image

from retrieval.errors import BadInput
from retrieval.images import open_source
from retrieval.images.folders.excludes import Excludes
from retrieval.images.folders.listing import listed
from retrieval.storage.places import RemotePath
from tests.stores import put


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of images, as cameras, archives and storage systems leave it."""
    names = (
        *("2020/a.jpg", "2020/@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "#recycle/b.jpg"),
        *("$RECYCLE.BIN/c.jpg", ".Trash-1000/d.jpg", "node_modules/x/e.jpg", "__MACOSX/._f.jpg"),
        *("raw/g.jpg", "raw/keep/h.jpg", "2021/raw.jpg", "2021/i.png", ".hidden.jpg"),
    )
    for name in names:
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return tmp_path / "p"


def ids(folder: Path | RemotePath, *patterns: str, defaults: bool = True) -> list[str]:
    source = open_source(str(folder), excludes=Excludes(patterns, defaults))
    found = listed(source)
    assert found is not None
    assert found.changes().arrived == 0
    return [item.id for item in source.items()]


ORDINARY = ["2020/a.jpg", "2021/i.png", "2021/raw.jpg", "raw/g.jpg", "raw/keep/h.jpg"]


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), ORDINARY),
        (("raw",), ORDINARY[:3]),
        (("/raw/**",), ORDINARY[:3]),
        (("raw/*", "!raw/keep/"), [*ORDINARY[:3], ORDINARY[4]]),
        (("*.png", "g.*"), ["2020/a.jpg", "2021/raw.jpg", "raw/keep/h.jpg"]),
        (("20??/",), ORDINARY[3:]),
        (("# a comment", ""), ORDINARY),
    ],
)
def test_patterns_are_those_of_gitignore(
    folder: Path, patterns: tuple[str, ...], left: list[str]
) -> None:
    assert ids(folder, *patterns) == left
    assert ids(put(folder, RemotePath("memory://excludes/p")), *patterns) == left


def test_without_the_defaults_all_files_are_taken(folder: Path) -> None:
    assert len(ids(folder, defaults=False)) == 12


def test_an_ignore_file_holds_in_its_folder_and_below(folder: Path) -> None:
    (folder / "raw" / ".retrignore").write_text("g.jpg\n")
    (folder / "2021" / ".retrignore").write_text("/g.jpg\nraw.*\n")
    assert ids(folder) == ["2020/a.jpg", "2021/i.png", "raw/keep/h.jpg"]


def test_the_inner_file_wins_over_the_outer_and_the_option_over_both(folder: Path) -> None:
    (folder / ".retrignore").write_text("*.jpg\n!@eaDir/\n")
    (folder / "raw" / ".retrignore").write_text("!g.jpg\n")
    assert ids(folder) == ["2021/i.png", "raw/g.jpg"]
    assert ids(folder, "!/2020/a.jpg") == ["2020/a.jpg", "2021/i.png", "raw/g.jpg"]


def test_what_was_excluded_is_said(folder: Path) -> None:
    said: list[str] = []
    open_source(str(folder), note=said.append, excludes=Excludes(("*.png",)))
    assert said == ["excluded 5 folders and 1 file by name or pattern"]


@pytest.mark.parametrize("pattern", ["!", "a\\"])
def test_patterns_that_cannot_be_read_are_refused(folder: Path, pattern: str) -> None:
    with pytest.raises(BadInput, match=r"--exclude has a pattern that cannot be read"):
        Excludes((pattern,))
    (folder / ".retrignore").write_text(pattern)
    with pytest.raises(BadInput, match=r"\.retrignore has a pattern that cannot be read"):
        ids(folder)


def test_other_sources_have_no_excludes() -> None:
    with pytest.raises(BadInput, match="digits/train is not a folder of images"):
        open_source("digits", excludes=Excludes(("x",)))


def test_a_file_that_is_named_is_taken_whatever_its_name(folder: Path) -> None:
    assert [item.id for item in open_source(str(folder / ".hidden.jpg")).items()] == [".hidden.jpg"]
