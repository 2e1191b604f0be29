"""CIFAR-10's official archives, python and binary, packed and not; and pickles that are refused."""

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from retrieval.contracts import Images
from retrieval.errors import BadImage, BadSource, UnknownName
from retrieval.images import decode, open_source, read_image
from retrieval.images.datasets import cifar

PER_BATCH = 7
TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
BATCHES = [*TRAIN, "test_batch"]
PIXELS = np.random.default_rng(0).integers(0, 256, (6 * PER_BATCH, 32, 32, 3), dtype=np.uint8)
LABELS = [i % 10 for i in range(6 * PER_BATCH)]


def planes(images: Images) -> Images:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(-1, 3072))


class Python2:
    """Writes what Python 2's cPickle wrote in protocol 2, of what a batch holds."""

    @staticmethod
    def text(value: str | bytes) -> bytes:
        data = value.encode("latin1") if isinstance(value, str) else value
        if len(data) < 256:
            return b"U" + bytes([len(data)]) + data
        return b"T" + struct.pack("<i", len(data)) + data

    @staticmethod
    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)

    @classmethod
    def array(cls, values: Images, code: str = "u1", *, fortran: bool = False) -> bytes:
        data = values.tobytes("F" if fortran else "C")
        rows, columns = (cls.integer(n) for n in values.shape)
        unset = b"J" + struct.pack("<i", -1)
        dtype = (
            b"cnumpy\ndtype\n" + cls.text(code) + b"K\x00K\x01\x87R"
            b"(K\x03" + cls.text("|") + b"NNN" + unset + unset + b"K\x00tb"
        )
        return (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
            + cls.text("b")
            + b"\x87R(K\x01"
            + (rows + columns + b"\x86" + dtype)
            + (b"\x88" if fortran else b"\x89")
            + cls.text(data)
            + b"tb"
        )

    @classmethod
    def batch(cls, array: bytes, labels: list[int], more: bytes = b"") -> bytes:
        listed = b"](" + b"".join(cls.integer(label) for label in labels) + b"e"
        pairs = (
            cls.text("batch_label") + cls.text("training batch 1 of 5")
            + cls.text("labels") + listed
            + cls.text("data") + array
            + cls.text("filenames") + b"](" + cls.text("a.png") + b"e"
        )  # fmt: skip
        return b"\x80\x02}(" + pairs + more + b"u."

    @classmethod
    def meta(cls, count: int) -> bytes:
        """In protocol 0, as the archive has it."""
        return (
            b"(dp1\nS'num_cases_per_batch'\np2\nI%d\nsS'label_names'\np3\n(lp4\nS'airplane'\np5\na"
            b"sS'num_vis'\np6\nI3072\ns." % count
        )


def by_numpy(images: Images, labels: list[int], package: bytes) -> bytes:
    """A batch as this Python writes it, in the protocol of Python 2."""
    content = pickle.dumps({b"data": planes(images), b"labels": labels}, protocol=2)
    assert b"numpy._core.multiarray" in content
    return content.replace(b"numpy._core.multiarray", package)


def parts() -> list[tuple[str, Images, list[int]]]:
    cuts = [slice(i * PER_BATCH, (i + 1) * PER_BATCH) for i in range(6)]
    return [(name, PIXELS[cut], LABELS[cut]) for name, cut in zip(BATCHES, cuts, strict=True)]


def python_files() -> dict[str, bytes]:
    files = {
        name: Python2.batch(Python2.array(planes(images)), labels)
        for name, images, labels in parts()
    }
    return {"batches.meta": Python2.meta(PER_BATCH), **files}


def binary_files() -> dict[str, bytes]:
    files = {
        f"{name}.bin": b"".join(
            bytes([label]) + image.tobytes()
            for label, image in zip(labels, planes(images), strict=True)
        )
        for name, images, labels in parts()
    }
    return {"batches.meta.txt": b"airplane\n", **files}


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def packed(file: Path, inner: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        folder = tarfile.TarInfo(inner)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        # not in the order of the batches, as the real one
        for name in sorted(files, reverse=True):
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return file


LAYOUTS = ["python folder", "binary folder", "python archive", "binary archive"]


@pytest.fixture(params=LAYOUTS)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    version, layout = request.param.split()
    inner = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}[version]
    files = {"python": python_files, "binary": binary_files}[version]()
    if layout == "folder":
        return unpacked(tmp_path / inner, files)
    return packed(tmp_path / f"cifar-10-{version}.tar.gz", inner, files)


def test_every_layout_holds_the_same(root: Path) -> None:
    train, test = open_source(str(root)), open_source(str(root), split="test")
    assert (train.name, test.name) == (f"{root}/train", f"{root}/test")
    assert (len(train), len(test)) == (5 * PER_BATCH, PER_BATCH)
    items = [*train.items(), *test.items()]
    assert np.array_equal([np.asarray(decode(i.content, "x")) for i in items], PIXELS)
    assert [item.label for item in items] == [cifar.CLASSES[label] for label in LABELS]
    assert [item.id for item in items[33:37]] == [
        "train/00033",
        "train/00034",
        "test/00000",
        "test/00001",
    ]


def test_the_folder_above_will_do(root: Path) -> None:
    assert len(open_source(str(root.parent))) == 5 * PER_BATCH


@pytest.mark.parametrize("start", [1, 6, 7, 8, 34, 35, 36])
def test_items_start_anywhere(root: Path, start: int) -> None:
    ids = [item.id for item in open_source(str(root)).items(start)]
    assert ids == [f"train/{i:05}" for i in range(start, 5 * PER_BATCH)]


def test_batches_are_read_one_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(root))
    read = []
    read_batch = cifar.read_batch

    def counted(where: Path, batch: str) -> tuple[Images, list[int]]:
        read.append(batch.removesuffix(".bin"))
        return read_batch(where, batch)

    monkeypatch.setattr(cifar, "read_batch", counted)
    items = source.items()
    assert read == []
    next(items)
    assert read == ["data_batch_1"]
    list(items)
    assert read == TRAIN
    next(source.items(start=34))
    assert read == [*TRAIN, "data_batch_5"]


def test_images_can_be_read_again(root: Path) -> None:
    for split in ("train", "test"):
        for item in list(open_source(str(root), split=split).items())[::3]:
            assert Path(item.path).is_absolute()
            expected = np.asarray(decode(item.content, "x"))
            assert np.array_equal(np.asarray(read_image(item.path)), expected)
    batch = item.path.partition("#")[0]
    with pytest.raises(BadImage, match="no such row"):
        read_image(f"{batch}#{PER_BATCH}")


def test_a_batch_that_is_gone_is_a_bad_image(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "batches", python_files())
    (folder / "data_batch_3").unlink()
    with pytest.raises(BadImage, match="no such file"):
        read_image(f"{folder}/data_batch_3#0")
    with pytest.raises(BadSource, match="lacks the CIFAR-10 batch data_batch_3; unpack"):
        open_source(str(folder))
    assert len(open_source(str(folder), split="test")) == PER_BATCH


def test_other_splits_are_refused(root: Path) -> None:
    with pytest.raises(UnknownName, match="'valid'; there are: test, train"):
        open_source(str(root), split="valid")


def test_the_fingerprint_survives_a_copy(root: Path, tmp_path: Path) -> None:
    if root.is_dir():
        copy = unpacked(tmp_path / "copy", {f.name: f.read_bytes() for f in root.iterdir()})
    else:
        copy = tmp_path / "copy" / root.name
        copy.parent.mkdir()
        copy.write_bytes(root.read_bytes())
    assert open_source(str(copy)).fingerprint == open_source(str(root)).fingerprint
    assert open_source(str(copy), "test").fingerprint != open_source(str(root)).fingerprint


# --- pickles ---


def read(folder: Path, content: bytes) -> tuple[Images, list[int]]:
    unpacked(folder, {"test_batch": content})
    return cifar.read_batch(folder, "test_batch")


@pytest.mark.parametrize("package", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_batches_written_by_numpy_old_and_new(tmp_path: Path, package: bytes) -> None:
    images, labels = read(tmp_path, by_numpy(PIXELS[:9], LABELS[:9], package))
    assert np.array_equal(images, PIXELS[:9])
    assert labels == LABELS[:9]


@pytest.mark.parametrize("fortran", [False, True])
def test_batches_written_by_python_2(tmp_path: Path, fortran: bool) -> None:
    array = Python2.array(planes(PIXELS[:9]), fortran=fortran)
    content = Python2.batch(array, LABELS[:9])
    # The writer of this test is right: Python itself, which trusts it, reads the same.
    trusted = pickle.loads(content, encoding="bytes")  # noqa: S301 - written three lines above
    assert np.array_equal(trusted[b"data"], planes(PIXELS[:9]))
    images, labels = read(tmp_path, content)
    assert np.array_equal(images, PIXELS[:9])
    assert images.flags.c_contiguous
    assert labels == LABELS[:9]


class Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickle_that_runs_a_command_is_refused(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    attack = {b"data": Command(f"touch {proof}"), b"labels": []}
    content = pickle.dumps(attack, protocol=2)
    with pytest.raises(BadSource) as caught:
        read(tmp_path, content)
    assert not proof.exists()
    assert str(caught.value) == (
        f"test_batch in {tmp_path} is refused: it imports posix.system, which no batch of images "
        "does; fetch the official archive"
    )
    pickle.loads(content)  # noqa: S301 - shows that it would have run
    assert proof.exists()


def test_malicious_meta_data_are_refused(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    meta = pickle.dumps({b"num_cases_per_batch": Command(f"touch {proof}")}, protocol=2)
    folder = unpacked(tmp_path / "batches", {**python_files(), "batches.meta": meta})
    with pytest.raises(BadSource, match=r"batches\.meta .* is refused: it imports posix\.system"):
        open_source(str(folder))
    assert not proof.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"builtins\neval",
        b"__builtin__\neval",
        b"os\nsystem",
        b"numpy\nload",
        b"numpy\nsave",
        b"numpy.core.multiarray\nfromfile",
        b"_codecs\nlookup",
        b"codecs\nopen",
        b"numpy\nndarray.tofile",
    ],
)
def test_every_other_name_is_refused(tmp_path: Path, name: bytes) -> None:
    for content in (
        b"c" + name + b"\n.",
        b"(i" + name + b"\n.",
        b"\x80\x04" + b"".join(b"\x8c" + bytes([len(n)]) + n for n in name.split(b"\n")) + b"\x93.",
    ):
        with pytest.raises(BadSource, match="is refused: it imports "):
            read(tmp_path, content)


def test_arrays_of_anything_but_bytes_are_refused(tmp_path: Path) -> None:
    array = Python2.array(planes(PIXELS[:2]), code="O8")
    with pytest.raises(BadSource, match="refused: it has an array of b'O8', not of bytes"):
        read(tmp_path, Python2.batch(array, LABELS[:2]))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is damaged"),
        (b"no pickle", "is damaged"),
        (Python2.batch(Python2.array(planes(PIXELS[:2])), LABELS[:2])[:-500], "is damaged"),
        (pickle.dumps([1], 2), "wanted a dictionary"),
        (pickle.dumps({b"labels": [1]}, 2), r"no images: wanted an array \(n, 3072\)"),
        (Python2.batch(Python2.array(planes(PIXELS[:2])[:, 1:]), [1, 2]), "holds no images"),
        (Python2.batch(Python2.array(planes(PIXELS[:2])), [1, 2, 3]), "labels do not match images"),
        (Python2.batch(Python2.array(planes(PIXELS[:2])), [1, 10]), "labels do not match images"),
        (b"\x80\x02}(U\x04datacnumpy\nndarray\n)\x81U\x06labels]u.", "holds no images"),
        (
            Python2.batch(Python2.array(planes(PIXELS[:2])), [1], b"U\x06labelsU\x01a"),
            "no labels: wanted a list",
        ),
    ],
)
def test_damaged_batches_are_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(BadSource, match=problem):
        read(tmp_path, content)


def test_a_batch_of_another_length_than_promised_is_refused(tmp_path: Path) -> None:
    files = {**python_files(), "batches.meta": Python2.meta(PER_BATCH + 1)}
    source = open_source(str(unpacked(tmp_path / "batches", files)))
    with pytest.raises(BadSource, match=r"data_batch_1 in .* has 7 images, not 8"):
        list(source.items())


def test_other_archives_are_refused(tmp_path: Path) -> None:
    file = packed(tmp_path / "other.tar.gz", "other", {"a.txt": b"a"})
    with pytest.raises(BadSource, match="lacks the CIFAR-10 batch data_batch_1"):
        open_source(str(file))
    good = packed(tmp_path / "cifar-10-binary.tar.gz", "x", binary_files())
    good.write_bytes(good.read_bytes()[:-2000])
    with pytest.raises(BadSource, match=r"cannot read the archive .*; fetch it again"):
        list(open_source(str(good)).items())
