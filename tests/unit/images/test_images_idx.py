"""idx files, as MNIST's."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from retrieval.contracts import Images
from retrieval.errors import BadImage, BadSource
from retrieval.images import Item, open_source, read_image

COUNT = 600
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 5, 4), dtype=np.uint8)
LABELS = (np.arange(COUNT) % 10).astype(np.uint8)


def idx(values: Images) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def pixels(item: Item) -> Images:
    assert isinstance(item.content, np.ndarray)
    return item.content


def write(folder: Path, prefix: str, images: bytes, labels: bytes, *, packed: bool) -> None:
    folder.mkdir(exist_ok=True)
    for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
        name = f"{prefix}-{kind}-ubyte"
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
        else:
            (folder / name).write_bytes(content)


@pytest.fixture(params=[True, False], ids=["gzipped", "plain"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    root = tmp_path / "numbers"
    write(root, "train", idx(PIXELS), idx(LABELS), packed=request.param)
    write(root, "t10k", idx(PIXELS[::-1]), idx(LABELS[::-1]), packed=request.param)
    return root


def test_a_folder_of_idx_files_is_a_source(folder: Path) -> None:
    source = open_source(str(folder))
    items = list(source.items())
    assert len(source) == len(items) == COUNT
    assert source.name == f"{folder}/train"
    assert np.array_equal([pixels(item) for item in items], PIXELS)
    assert [item.label for item in items] == [str(label) for label in LABELS]
    assert items[42].id == "train/00042"
    assert items[42].path.partition("#")[2] == "42"


def test_the_test_split_has_files_of_its_own(folder: Path) -> None:
    first = next(open_source(str(folder), split="test").items())
    assert (first.id, first.label) == ("test/00000", "9")
    assert np.array_equal(pixels(first), PIXELS[-1])


@pytest.mark.parametrize("start", [1, 255, 256, 257, COUNT - 1, COUNT, COUNT + 1])
def test_items_start_anywhere(folder: Path, start: int) -> None:
    items = list(open_source(str(folder)).items(start))
    assert [item.id for item in items] == [f"train/{i:05}" for i in range(start, COUNT)]
    assert all(
        np.array_equal(pixels(item), expected)
        for item, expected in zip(items, PIXELS[start:], strict=True)
    )
    assert [item.label for item in items] == [str(label) for label in LABELS[start:]]


def test_images_can_be_read_again(folder: Path) -> None:
    for item in list(open_source(str(folder)).items())[::99]:
        assert np.array_equal(np.asarray(read_image(item.path))[:, :, 1], pixels(item))
    with pytest.raises(BadImage, match="no such row"):
        read_image(item.path.partition("#")[0] + f"#{COUNT}")


def test_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    write(tmp_path, "train", idx(PIXELS), idx(LABELS[1:]), packed=True)
    with pytest.raises(BadSource, match=r"has 600 images and .* has 599 labels"):
        open_source(str(tmp_path))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "train", idx(PIXELS), idx(PIXELS), packed=True)
    with pytest.raises(BadSource, match=r"labels.* is not an idx file of bytes in 1 dimensions"):
        open_source(str(tmp_path))
    write(tmp_path, "train", b"short", idx(LABELS), packed=True)
    with pytest.raises(BadSource, match=r"images.* is not an idx file of bytes in 3 dimensions"):
        open_source(str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not gzipped, that is")
    with pytest.raises(BadSource, match=r"cannot read .*Not a gzipped file"):
        open_source(str(tmp_path))


def test_files_that_end_too_early_are_refused_where_they_end(tmp_path: Path) -> None:
    write(tmp_path, "train", idx(PIXELS)[:-1], idx(LABELS), packed=False)
    items = open_source(str(tmp_path)).items()
    assert [next(items).id for _ in range(512)][-1] == "train/00511"
    with pytest.raises(BadSource, match="is truncated; copy it again"):
        next(items)
    write(tmp_path / "gz", "train", idx(PIXELS), idx(LABELS), packed=True)
    file = tmp_path / "gz" / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(BadSource, match="cannot read"):
        list(open_source(str(tmp_path / "gz")).items())
    with pytest.raises(BadImage, match="cannot read"):
        read_image(f"{file}#599")


def test_the_fingerprint_survives_a_copy_and_tells_the_splits(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    original = open_source(str(folder))
    assert open_source(str(copy)).fingerprint == original.fingerprint
    assert open_source(str(copy), split="test").fingerprint != original.fingerprint


def test_files_without_images_are_refused(tmp_path: Path) -> None:
    none = np.empty((0, 28, 28), np.uint8)
    write(tmp_path, "train", idx(none), idx(none[:, 0, 0]), packed=False)
    with pytest.raises(BadSource, match=r"no images in .*: its files have no rows"):
        open_source(str(tmp_path))
