"""Folders and globs: what is taken, in which order, under which label."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.errors import BadImage, BadInput, BadSource
from retrieval.images import Item, Source, decode, open_source, read_image
from retrieval.images.folders import folder as folder_module
from retrieval.images.folders.listing import listed
from retrieval.images.source import natural


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (4, 3), (shade, 0, 0))
    image.save(path, "PNG")
    return path


def ids(source: Source) -> list[str]:
    return [item.id for item in source.items()]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in (
        "10.png",
        "2.png",
        "cat/10.JPG",
        "cat/9.jpeg",
        "cat/deep/1.webp",
        "dog/1.tiff",
        "dog/01.gif",
        "1.bmp",
    ):
        picture(root / name)
    for name in ("notes.txt", ".hidden.png", ".hidden/1.png", "dog/Thumbs.db", "cat/.x/1.png"):
        picture(root / name)
    (root / "empty").mkdir()
    return root


def test_the_order_is_natural_and_the_rest_is_left_out(tree: Path) -> None:
    assert ids(open_source(str(tree))) == [
        "1.bmp",
        "2.png",
        "10.png",
        "cat/9.jpeg",
        "cat/10.JPG",
        "cat/deep/1.webp",
        "dog/01.gif",
        "dog/1.tiff",
    ]


def test_labels_are_the_first_folder(tree: Path) -> None:
    labels = [item.label for item in open_source(str(tree)).items()]
    assert labels == [None, None, None, "cat", "cat", "cat", "dog", "dog"]


def test_items_can_be_read_again(tree: Path) -> None:
    source = open_source(str(tree))
    assert len(source) == 8
    for item in source.items():
        assert Path(item.path).is_absolute()
        again = np.asarray(read_image(item.path))
        assert np.array_equal(again, np.asarray(decode(item.content, item.path)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["a10b2", "a10b10", "a9b99"], ["a9b99", "a10b2", "a10b10"]),
        (["1", "01", "001", "a"], ["001", "01", "1", "a"]),
        (["b", "B", "a1", "a"], ["B", "a", "a1", "b"]),
        (["²1", "x٣"], ["x٣", "²1"]),  # no numbers: only 0 to 9 count
    ],
)
def test_natural_order(names: list[str], expected: list[str]) -> None:
    assert sorted(names, key=natural) == expected


def test_a_relative_folder_is_named_by_its_absolute_path(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.parent)
    assert open_source("tree").name == open_source("./tree").name == str(tree)
    monkeypatch.chdir(tree)
    assert open_source(".").name == str(tree)


def test_a_folder_named_like_a_data_set_is_written_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "digits" / "1.png")
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    assert open_source("digits", note=said.append).name == "digits/train"
    assert said == [
        "took the data set 'digits', not the folder of that name here; for that write ./digits"
    ]
    assert ids(open_source("./digits", note=said.append)) == ["1.png"]
    assert len(said) == 1


def test_bad_images_are_items(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("words")
    (tmp_path / "3.png").touch()
    (tmp_path / "4.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "5.png").symlink_to(tmp_path / "5.png")
    source = open_source(str(tmp_path))
    assert len(source) == 5
    reasons = []
    for item in islice(source.items(), 1, None):
        with pytest.raises(BadImage) as caught:
            decode(item.content, item.path)
        reasons.append(caught.value.reason)
    assert reasons[:3] == ["not an image", "empty file", "no such file"]
    assert reasons[3] == "too many levels of symbolic links"


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    assert ids(open_source(str(tmp_path))) == ["1.png"]
    with pytest.raises(BadImage, match="not a file"):
        read_image(str(tmp_path / "2.png"))


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    picture(root / "a" / "1.png")
    picture(other / "2.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "b").symlink_to(other)
    (other / "back").symlink_to(root / "a")
    said: list[str] = []
    assert ids(open_source(str(root), note=said.append)) == ["a/1.png", "b/2.png"]
    assert said == ["3 links lead to images that are in the set already, and were not followed"]


@pytest.mark.parametrize(
    ("links", "expected", "n_links"),
    [
        ({"b": "z"}, ["z/1.png", "z/2.png"], 1),
        ({"b.png": "z/1.png", "c.png": "z/2.png"}, ["z/1.png", "z/2.png"], 2),
        ({"b": "../out"}, ["b/in/4.png", "b/3.png", "z/1.png", "z/2.png"], 0),
        ({"b": "../out", "c": "../out"}, ["b/in/4.png", "b/3.png", "z/1.png", "z/2.png"], 1),
        ({"a": "../out/in", "b": "../out"}, ["a/4.png", "b/3.png", "z/1.png", "z/2.png"], 1),
        ({"b": "../out", "c.png": "../out/3.png"}, None, 1),
        ({"b.png": "../out/3.png", "c.png": "../out/3.png"}, ["b.png", "z/1.png", "z/2.png"], 1),
        ({"b": ".hidden"}, ["b/5.png", "z/1.png", "z/2.png"], 0),
        ({"b.png": ".hidden/5.png"}, ["b.png", "z/1.png", "z/2.png"], 0),
        ({"b.png": "z/raw"}, ["b.png", "z/1.png", "z/2.png"], 0),  # no image by its own name
        ({"b": "c", "c": "z"}, ["z/1.png", "z/2.png"], 2),
        ({"b": "."}, ["z/1.png", "z/2.png"], 1),
    ],
)
def test_each_file_is_met_once_under_its_own_path_first(
    tmp_path: Path, links: dict[str, str], expected: list[str] | None, n_links: int
) -> None:
    root = tmp_path / "root"
    for name in ("root/z/1.png", "root/z/2.png", "root/.hidden/5.png"):
        picture(tmp_path / name)
    picture(tmp_path / "out" / "3.png")
    picture(tmp_path / "out" / "in" / "4.png")
    picture(root / "z" / "raw")
    for name, target in links.items():
        (root / name).symlink_to(target)
    source = open_source(str(root))
    if expected is None:
        expected = ["b/3.png", "b/in/4.png", "z/1.png", "z/2.png"]
    assert sorted(ids(source)) == sorted(expected)
    found = listed(source)
    assert found is not None
    assert found.left_out.links == n_links


def test_a_glob_that_matches_links_alone_follows_them(tmp_path: Path) -> None:
    picture(tmp_path / "pool" / "1.png")
    (tmp_path / "picked").mkdir()
    (tmp_path / "picked" / "a.png").symlink_to(tmp_path / "pool" / "1.png")
    (tmp_path / "also").symlink_to("pool")
    assert ids(open_source(f"{tmp_path}/picked/*.png")) == ["a.png"]
    assert ids(open_source(f"{tmp_path}/also/*.png")) == ["1.png"]
    assert ids(open_source(f"{tmp_path}/p*/*.png")) == ["pool/1.png"]
    assert ids(open_source(f"{tmp_path}/**/*.png")) == ["pool/1.png"]


def test_names_that_are_no_utf8_can_be_stored(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:  # noqa: PTH123
        Image.new("RGB", (1, 1)).save(file, "PNG")
    (item,) = open_source(str(tmp_path)).items()
    assert item.id == "\\udcff.png"
    assert os.fsencode(item.path) == os.fsencode(tmp_path) + b"/\xff.png"
    assert decode(item.content, item.path).size == (1, 1)
    assert read_image(item.path).size == (1, 1)


def test_a_folder_is_listed_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed_folders = []
    scandir = os.scandir

    def counted(folder: Path) -> "os._ScandirIterator[str]":
        listed_folders.append(folder.name)
        return scandir(folder)

    monkeypatch.setattr(folder_module, "scandir", counted)
    source = open_source(str(tree))
    assert listed_folders == ["tree", "cat", "deep", "dog", "empty"]
    before = [*source.items()]
    picture(tree / "0.png")
    (tree / "2.png").unlink()
    assert [item.id for item in source.items()] == [item.id for item in before]
    assert len(source) == len(before)
    assert [item.id for item in source.items(5)] == [item.id for item in before[5:]]
    assert isinstance(before[0].content, Path)
    assert len(listed_folders) == 5


@pytest.fixture
def locked_dog(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tree, of which one sub-folder cannot be listed; root may list everything."""
    scandir = os.scandir

    def refused(folder: Path) -> "os._ScandirIterator[str]":
        if folder.name == "dog":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(folder_module, "scandir", refused)
    return tree


def test_a_sub_folder_that_cannot_be_listed_is_skipped_and_named(locked_dog: Path) -> None:
    said: list[str] = []
    source = open_source(str(locked_dog), note=said.append)
    assert "cat/9.jpeg" in ids(source)
    assert not any(name.startswith("dog") for name in ids(source))
    assert said == [f"skipped folder {locked_dog}/dog: permission denied"]


def test_a_root_that_cannot_be_listed_is_an_error(locked_dog: Path) -> None:
    with pytest.raises(BadSource, match=r"cannot list folder .*dog: Permission denied; "):
        open_source(str(locked_dog / "dog"))


def test_the_fingerprint_follows_names_sizes_times_and_limit(tree: Path) -> None:
    def fingerprint() -> str:
        return open_source(str(tree)).fingerprint

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    assert len(seen[0]) == 64
    (tree / "notes.txt").write_text("another")
    assert fingerprint() == seen[0]
    status = (tree / "2.png").stat()
    os.utime(tree / "2.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.append(fingerprint())
    (tree / "2.png").rename(tree / "3.png")
    seen.append(fingerprint())
    with (tree / "3.png").open("ab") as file:
        file.write(b"more")
    os.utime(tree / "3.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.append(fingerprint())
    seen.append(open_source(str(tree), limit=3).fingerprint)
    seen.append(open_source(str(tree), limit=4).fingerprint)
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["2.png", "10.png"]),
        ("?.*", ["1.bmp", "2.png"]),
        ("*/*.j*", ["cat/9.jpeg"]),
        ("*/*.[jJ]*", ["cat/9.jpeg", "cat/10.JPG"]),
        ("**/1.*", ["1.bmp", "cat/deep/1.webp", "dog/1.tiff"]),
        ("**/deep/*", ["cat/deep/1.webp"]),
        ("c*/**", ["cat/9.jpeg", "cat/10.JPG", "cat/deep/1.webp"]),
        ("**/c*/**/*.webp", ["cat/deep/1.webp"]),
    ],
)
def test_globs(tree: Path, pattern: str, expected: list[str]) -> None:
    source = open_source(f"{tree}/{pattern}")
    assert ids(source) == expected
    assert len(source) == len(expected)
    assert source.name == f"{tree}/{pattern}"


def test_a_glob_takes_ids_and_labels_below_its_fixed_part(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [(i.id, i.label) for i in open_source(f"{tree}/cat/*/*").items()] == [
        ("deep/1.webp", "deep")
    ]
    monkeypatch.chdir(tree)
    assert [(i.id, i.label) for i in open_source("d*/01*").items()] == [("dog/01.gif", "dog")]


def test_a_glob_does_not_list_folders_that_cannot_match(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []
    scandir = os.scandir

    def counted(folder: Path) -> Iterator[object]:
        listed.append(folder.name)
        return scandir(folder)

    monkeypatch.setattr(folder_module, "scandir", counted)
    open_source(f"{tree}/c*/*.jpeg")
    assert set(listed) == {"tree", "cat"}


def test_an_existing_path_with_brackets_is_no_glob(tmp_path: Path) -> None:
    picture(tmp_path / "a[1]" / "b[2].png")
    assert ids(open_source(str(tmp_path / "a[1]"))) == ["b[2].png"]
    single = open_source(str(tmp_path / "a[1]" / "b[2].png"))
    assert ids(single) == ["b[2].png"]
    assert single.name == str(tmp_path / "a[1]" / "b[2].png")


def test_a_split_of_a_folder_is_its_sub_folder(tree: Path) -> None:
    picture(tree / "test" / "cow" / "1.png")
    source = open_source(str(tree), split="test")
    assert [(item.id, item.label) for item in source.items()] == [("cow/1.png", "cow")]
    assert source.name == str(tree / "test")


@pytest.mark.parametrize("suffix", ["", "/*.png", "/2.png"])
def test_a_split_that_is_not_there_is_refused(tree: Path, suffix: str) -> None:
    with pytest.raises(BadSource, match=r"has no split 'train'; leave out --split"):
        open_source(f"{tree}{suffix}", split="train")


def test_what_has_no_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadSource, match=r"no images in .*; images have the suffixes apng"):
        open_source(str(tmp_path))
    with pytest.raises(BadSource, match=r"no images in .*notes\.txt"):
        open_source(str(tmp_path / "notes.txt"))
    with pytest.raises(BadSource, match=r"no images in .*\*\.png"):
        open_source(f"{tmp_path}/*.png")
    with pytest.raises(BadSource, match=r"nothing matches .*: .*none not found"):
        open_source(f"{tmp_path}/none/*.png")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(BadSource) as caught:
        open_source("cifar")
    assert str(caught.value) == (
        "'cifar' is neither a data set nor a path; did you mean 'cifar10'? give one of the data "
        "sets cifar10, digits, fashion-mnist, mnist, or a folder, a file or a glob"
    )
    with pytest.raises(BadSource, match=r"nor a path; give one of the data sets"):
        open_source("/nowhere/at/all")


def test_limits(tree: Path) -> None:
    whole: list[Item] = list(open_source(str(tree)).items())
    for limit in (1, 3, 8, 100):
        source = open_source(str(tree), limit=limit)
        assert ids(source) == [item.id for item in whole[:limit]]
        assert len(source) == min(limit, 8)
    for limit in (0, -1):
        with pytest.raises(BadInput, match="give 1 or more"):
            open_source(str(tree), limit=limit)
