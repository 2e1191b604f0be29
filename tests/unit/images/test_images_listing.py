"""The listing of a source: its files, their later changes, and the files left out."""

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retrieval.errors import BadImage, BadSource, UnknownName
from retrieval.images import decode, open_source
from retrieval.images.folders import folder as folder_module
from retrieval.images.folders.listing import Listing, listed, said_of, unread_suffix
from retrieval.images.pixels.decoding import SUFFIXES
from retrieval.images.source import Source, natural

names = st.lists(st.sampled_from("ab12"), min_size=1, max_size=3).map("".join)
trees = st.dictionaries(st.lists(names, min_size=1, max_size=3).map("/".join), st.integers(0, 2))


def in_order(files: dict[str, int]) -> list[tuple[str, object]]:
    return sorted(files.items(), key=lambda file: [natural(part) for part in file[0].split("/")])


@given(trees, trees)
def test_changes_are_those_of_sets(before: dict[str, int], now: dict[str, int]) -> None:
    changes = Listing.of(in_order(before)).changes(in_order(now))
    assert changes.arrived == len(now.keys() - before.keys())
    assert changes.changed == sum(before[p] != now[p] for p in before.keys() & now.keys())


def test_a_listing_gives_every_path_from_any_position() -> None:
    paths = [f"folder {i // 700}/é\udce9{i}.jpg" for i in range(2_500)]
    listing = Listing.of((path, i) for i, path in enumerate(paths))
    assert len(listing) == 2_500
    for start in (0, 1, 999, 1_000, 1_001, 2_499, 2_500, 9_000):
        assert [*listing.paths(start)] == paths[start:]


def test_a_listing_costs_little_memory_a_file() -> None:
    tracemalloc.start()
    try:
        files = ((f"folder {i % 100:03}/IMG_{i:08}.jpeg", i) for i in range(50_000))
        listing = Listing.of(files)
        taken, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(listing) == 50_000
    assert taken < 40 * 50_000
    assert peak < 60 * 50_000


def picture(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (200, 30, 30)).save(path, kind)
    return path


def left_out(source: Source) -> dict[str, int]:
    found = listed(source)
    assert found is not None
    return dict(found.left_out.passed_over)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.psd", ".psd"),
        ("a.PSD", ".psd"),
        ("a.svg", ".svg"),
        ("a.jpg_large", ".jpg_large"),
        ("a.JPG~", ".jpg~"),
        ("a.psd!", ".psd!"),
        ("a.jpgx", None),
        ("a.txt", None),
        ("a.jpg.xmp", None),
        ("psd", None),
    ],
)
def test_endings_of_files_that_look_like_images(name: str, suffix: str | None) -> None:
    assert unread_suffix(name) == suffix


def test_files_that_look_like_images_are_counted_by_kind(tmp_path: Path) -> None:
    root = tmp_path / "root"
    picture(root / "1.png")
    picture(root / "2.PNG")
    for name in ("a.psd", "sub/b.PSD", "c.svg", "notes.txt", ".d.psd", ".sub/e.psd"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"some bytes")
    picture(root / "IMG_1")  # no ending, and an image
    (root / "README").write_text("BM is how some words begin")
    source = open_source(str(root))
    assert [item.id for item in source.items()] == ["1.png", "2.PNG"]
    assert left_out(source) == {".psd": 2, ".svg": 1, "": 1}
    assert left_out(open_source(f"{root}/*")) == {".psd": 1, ".svg": 1, "": 1}
    assert left_out(open_source(f"{root}/*.png")) == {}
    assert left_out(open_source(str(root / "1.png"))) == {}


def test_what_was_passed_over_is_said_by_count() -> None:
    kinds = {".svg": 3, ".psd": 5, "": 1, ".tga": 3}
    said = "passed over: 12 files, .psd 5, .svg 3, .tga 3, without a suffix 1"
    assert said_of(kinds) == said
    assert said_of({".psd": 1}) == "passed over: 1 file, .psd 1"
    assert said_of({}) == ""


def test_a_folder_of_unread_images_alone_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.psd").write_bytes(b"some bytes")
    with pytest.raises(BadSource, match=r"\(passed over: 1 file, \.psd 1\); .* convert them"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".avif", "AVIF"), (".jp2", "JPEG2000"), (".j2k", "JPEG2000")]
)
def test_avif_and_jpeg_2000_are_read(tmp_path: Path, suffix: str, kind: str) -> None:
    file = picture(tmp_path / f"1{suffix}", kind)
    (item,) = open_source(str(tmp_path)).items()
    image = decode(item.content, item.path)
    assert (image.mode, image.size) == ("RGB", (16, 12))
    red, green, blue = image.getpixel((8, 6))  # type: ignore[misc]
    assert (abs(red - 200) < 9, abs(green - 30) < 9, abs(blue - 30) < 9) == (True, True, True)
    content = file.read_bytes()
    with pytest.raises(BadImage, match=r"truncated|damaged"):
        decode(content[: len(content) // 2], "half")


def test_endings_are_those_that_pillow_registers() -> None:
    assert {".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".j2c", ".jpf", ".apng"} <= SUFFIXES
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif"} <= SUFFIXES
    assert not {".eps", ".pdf", ".psd", ".ico"} & SUFFIXES


def made(root: Path, *files: str) -> Path:
    for file in files:
        picture(root / file)
    return root


def taken(source: Source) -> list[tuple[str, str | None]]:
    return [(item.id, item.label) for item in source.items()]


def test_folders_of_splits_are_no_labels(tmp_path: Path) -> None:
    root = made(tmp_path, "train/cat/1.png", "train/dog/1.png", "Val/cat/2.png", "test/3.png")
    said: list[str] = []
    source = open_source(str(root), note=said.append)
    assert taken(source) == [("cat/1.png", "cat"), ("dog/1.png", "dog")]
    assert source.name == f"{root}/train"
    assert said == [
        f"the folders of {root} are splits: took train, not Val or test; choose with --split"
    ]
    for split in ("Val", "val", "validation", "valid"):
        assert taken(open_source(str(root), split)) == [("cat/2.png", "cat")]
    assert taken(open_source(str(root), "test")) == [("3.png", None)]
    with pytest.raises(UnknownName, match=r"there are: Val, test, train"):
        open_source(str(root), "other")


def test_images_beside_the_splits_are_said(tmp_path: Path) -> None:
    root = made(tmp_path, "test/cat/1.png", "cover.png")
    (root / "annotations").mkdir()
    said: list[str] = []
    assert taken(open_source(str(root), note=said.append)) == [("cat/1.png", "cat")]
    assert said == [
        f"the folders of {root} are splits: took test",
        f"left out 1 image beside the splits of {root}",
    ]


@pytest.mark.parametrize(
    "files",
    [
        ("train/1.png", "test/2.png"),  # no classes
        ("train/steam/1.png", "car/2.png"),  # trains among other vehicles
        ("cat/1.png", "dog/2.png"),
    ],
)
def test_folders_that_are_no_splits_are_labels(tmp_path: Path, files: tuple[str, ...]) -> None:
    source = open_source(str(made(tmp_path, *files)))
    assert {label for _, label in taken(source)} == {file.partition("/")[0] for file in files}


def test_a_copy_of_a_data_set_here_is_not_said_to_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").touch()
    said: list[str] = []
    open_source("digits", note=said.append)
    assert said == [
        "took the data set 'digits', not the file of that name here; for that write ./digits"
    ]


def test_labels_are_in_nfc_and_names_as_they_are(tmp_path: Path) -> None:
    decomposed = "cafe\u0301"
    root = made(tmp_path, f"{decomposed}/1.png")
    (item,) = open_source(str(root)).items()
    assert item.label == "caf\u00e9"
    assert item.id == f"{decomposed}/1.png"
    assert os.fsencode(item.path) == os.fsencode(root / decomposed / "1.png")


@pytest.mark.parametrize("closed", ["train", "train/cat", "lost+found"])
def test_a_split_that_cannot_be_listed_is_a_split_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    for name in ("train/cat", "test/cat", "lost+found"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(b"x")
    scandir = os.scandir

    def refused(folder: Path) -> "os._ScandirIterator[str]":
        if Path(folder) == tmp_path / closed:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(folder_module, "scandir", refused)
    (tmp_path / "lost+found" / "1.png").unlink()
    assert len(open_source(str(tmp_path), "test")) == 1
    if closed == "lost+found":
        assert open_source(str(tmp_path)).name == str(tmp_path / "train")
    else:  # test images never replace them
        with pytest.raises(BadSource, match=r"(?i)/train.*permission denied"):
            open_source(str(tmp_path))
