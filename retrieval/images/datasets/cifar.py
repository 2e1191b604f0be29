"""CIFAR-10 as its author publishes it: the python or the binary version, packed or not.

Five training batches and a test batch hold 10,000 images each. In the binary version an image
is its label and 3,072 bytes: red, green, blue, each row by row. In the python version a batch
is a pickle with the same bytes as an array. https://www.cs.toronto.edu/~kriz/cifar.html
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np

from retrieval.contracts import Images
from retrieval.errors import BadSource
from retrieval.images.source import Item, digest, name_and_size, text

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}

_PIXELS = 3 * 32 * 32
_META = "batches.meta"
_BINARY = ".bin"
_LARGEST = 64 << 20  # bytes; a batch of 10,000 images has 31 MB


@dataclass(frozen=True, slots=True, eq=False)
class CifarSource:
    """The images of one split, read one batch at a time."""

    name: str
    split: str
    fingerprint: str
    root: Path
    counts: Mapping[str, int]

    @classmethod
    def of(cls, name: str, root: Path, split: str) -> "CifarSource":
        """Return the source of an archive or folder. Raises BadSource if a batch is missing."""
        sizes = _sizes(root)
        suffix = _BINARY if f"{BATCHES[split][0]}{_BINARY}" in sizes else ""
        batches = [f"{batch}{suffix}" for batch in BATCHES[split]]
        missing = sorted(set(batches) - set(sizes))
        if missing:
            raise BadSource(
                f"{text(root)} lacks the CIFAR-10 batch {missing[0]}; unpack the archive again"
            )
        if suffix:
            counts = {batch: sizes[batch] // (1 + _PIXELS) for batch in batches}
        else:
            counts = dict.fromkeys(batches, _images_per_batch(root))
        files = [(batch, sizes[batch]) for batch in batches]
        if root.is_file():
            files.append(name_and_size(root))
        return cls(name, split, digest(["cifar10", split, *files]), root, counts)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the items from position `start` on."""
        before = 0
        for batch, count in self.counts.items():
            if start < before + count:
                images, labels = read_batch(self.root, batch)
                if len(images) != count:
                    raise BadSource(
                        f"{batch} in {text(self.root)} has {len(images):,} images, not {count:,}; "
                        "unpack the archive again"
                    )
                for row in range(max(0, start - before), count):
                    yield Item(
                        id=f"{self.split}/{before + row:05}",
                        label=CLASSES[labels[row]],
                        path=f"{self.root / batch}#{row}",
                        content=images[row],
                    )
            before += count


def find(folder: Path) -> Path | None:
    """Return the archive or folder of batches that `folder` is or holds; unpacked before packed."""
    if any((folder / f"test_batch{suffix}").is_file() for suffix in ("", _BINARY)):
        return folder
    for name in FOLDERS:
        if (folder / name).is_dir():
            return folder / name
    for name in ARCHIVES:
        if (folder / name).is_file():
            return folder / name
    return None


def is_batch(name: str) -> bool:
    """Return whether a file of this name is a batch of images."""
    return any(name.removesuffix(_BINARY) in batches for batches in BATCHES.values())


def read_row(root: Path, batch: str, row: int) -> Images | None:
    """Return the image (32, 32, 3) in this row of a batch; None beyond its last row.

    The last batch is cached, for callers that read one hit after the other. Raises BadSource.
    """
    stamp = (root / batch if root.is_dir() else root).stat().st_mtime_ns
    images, _ = _kept(root, batch, stamp)
    return cast(Images, images[row]) if row < len(images) else None


def read_batch(root: Path, batch: str) -> tuple[Images, list[int]]:
    """Return the images (n, 32, 32, 3) and labels of a batch in an archive or folder.

    A pickle is read by an unpickler that makes arrays of bytes and nothing else. Raises BadSource
    for a batch that is damaged, or that asks for more than that.
    """
    where = f"{batch} in {text(root)}"
    data = _read(root, batch)
    planes, labels = _of_binary(data) if batch.endswith(_BINARY) else _of_pickle(data, where)
    if len(planes) != len(labels) or not set(labels) <= set(range(len(CLASSES))):
        raise BadSource(f"{where} is damaged: labels do not match images; unpack the archive again")
    images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


@lru_cache(maxsize=1)
def _kept(root: Path, batch: str, _stamp: int) -> tuple[Images, list[int]]:
    return read_batch(root, batch)


def _of_binary(data: bytes) -> tuple[Images, list[int]]:
    records = np.frombuffer(data[: len(data) // (1 + _PIXELS) * (1 + _PIXELS)], np.uint8)
    records = records.reshape(-1, 1 + _PIXELS)
    return records[:, 1:], records[:, 0].tolist()


def _of_pickle(data: bytes, where: str) -> tuple[Images, list[int]]:
    facts = _unpickled(data, where)
    array, labels = facts.get(b"data"), facts.get(b"labels")
    if not isinstance(array, _Array) or array.values.shape[1:] != (_PIXELS,):
        raise BadSource(f"{where} holds no images: wanted an array (n, {_PIXELS}) named data")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise BadSource(f"{where} holds no labels: wanted a list of integers named labels")
    return array.values, labels


def _images_per_batch(root: Path) -> int:
    where = f"{_META} in {text(root)}"
    count = _unpickled(_read(root, _META), where).get(b"num_cases_per_batch")
    if not isinstance(count, int):
        raise BadSource(f"{where} has no num_cases_per_batch; unpack the archive again")
    return count


def _unpickled(data: bytes, where: str) -> dict[object, object]:
    try:
        facts = _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
    except _Refused as error:
        raise BadSource(f"{where} is refused: {error}; fetch the official archive") from None
    except Exception as error:  # an unpickler fails in any way on damaged bytes
        raise BadSource(f"{where} is damaged: {error}; unpack the archive again") from error
    if not isinstance(facts, dict):
        raise BadSource(f"{where} is damaged: wanted a dictionary; unpack the archive again")
    return facts


class _Refused(pickle.UnpicklingError):
    """A pickle has content that no batch of images has."""


class _Dtype:
    """Stands for numpy.dtype: of bytes, or refused."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise _Refused(f"it has an array of {code!r}, not of bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which bytes have none of."""


class _Array:
    """Stands for numpy.ndarray: its values are set from shape, order and bytes."""

    values: Images = np.empty((0, 0), np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise _Refused("it has an array without a type")
        self.values = np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(kind: type, _shape: object, _code: object) -> _Array:
    if kind is not _Array:
        raise _Refused("it creates an object that is not an array")
    return _Array()


def _encode(characters: str, _encoding: object) -> bytes:
    """Return text as bytes, as Python 3 pickles bytes in the protocols of Python 2."""
    return characters.encode("latin1")


_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _BatchUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing and calls only functions of `_ADMITTED`."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"it imports {module}.{name}, which no batch of images does") from None


def _sizes(root: Path) -> dict[str, int]:
    """Return the files of an archive or folder by name, with their sizes in bytes."""
    if root.is_dir():
        return {file.name: file.stat().st_size for file in root.iterdir() if file.is_file()}
    with _archive(root) as archive:
        return {Path(member.name).name: member.size for member in archive if member.isfile()}


def _read(root: Path, name: str) -> bytes:
    """Return the content of a file in an archive or folder."""
    if root.is_dir():
        try:
            return (root / name).read_bytes()
        except OSError as error:
            raise BadSource(
                f"cannot read {name} in {text(root)}: {error.strerror}; unpack the archive again"
            ) from error
    with _archive(root) as archive:
        for member in archive:
            if member.isfile() and Path(member.name).name == name and member.size <= _LARGEST:
                return cast("io.BufferedReader", archive.extractfile(member)).read()
    raise BadSource(f"{text(root)} lacks {name}; fetch the official archive of CIFAR-10")


@contextmanager
def _archive(file: Path) -> Iterator[tarfile.TarFile]:
    """Yield the open archive. Raises BadSource for errors of the `with` block, too."""
    try:
        with tarfile.open(file) as archive:
            yield archive
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise BadSource(f"cannot read the archive {text(file)}: {error}; fetch it again") from error
