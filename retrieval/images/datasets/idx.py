"""Images in idx files, as those of MNIST and Fashion-MNIST, gzipped or not.

An idx file of bytes begins with 0, 0, 8 and the number of dimensions, then has each dimension
as a big-endian 32 bit integer, then the values. http://yann.lecun.com/exdb/mnist/
"""

import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from retrieval.contracts import Images
from retrieval.errors import BadSource
from retrieval.images.source import CHUNK_ITEMS, Item, digest, name_and_size, text

IMAGES = "-images-idx3-ubyte"
LABELS = "-labels-idx1-ubyte"
SPLITS = {"train": "train", "test": "t10k"}


@dataclass(frozen=True, slots=True, eq=False)
class IdxSource:
    """The images and labels of one split; a label is a number, or a name if names are known."""

    name: str
    split: str
    fingerprint: str
    images: Path
    labels: Path
    count: int
    names: Sequence[str] | None

    @classmethod
    def of(
        cls, name: str, files: tuple[Path, Path], split: str, names: Sequence[str] | None = None
    ) -> "IdxSource":
        """Return the source of the files (images, labels).

        Raises BadSource if they do not match.
        """
        images, labels = files
        with _opened(images, 3) as (_, (count, *_)), _opened(labels, 1) as (_, (n_labels,)):
            if count != n_labels:
                raise BadSource(
                    f"{text(images)} has {count:,} images and {text(labels)} has {n_labels:,} "
                    "labels; they do not belong together"
                )
        fingerprint = digest(["idx", split, *map(name_and_size, files)])
        return cls(name, split, fingerprint, images, labels, count, names)

    def __len__(self) -> int:
        return self.count

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the items from position `start` on."""
        with _opened(self.images, 3) as (images, shape), _opened(self.labels, 1) as (labels, _):
            pixels = shape[1] * shape[2]
            images.seek(start * pixels, 1)
            labels.seek(start, 1)
            for row in range(start, self.count, CHUNK_ITEMS):
                n = min(CHUNK_ITEMS, self.count - row)
                block = _values(self.images, images, (n, *shape[1:]))
                of_block = _values(self.labels, labels, (n,))
                for i in range(n):
                    yield Item(
                        id=f"{self.split}/{row + i:05}",
                        label=self._label(int(of_block[i])),
                        path=f"{self.images}#{row + i}",
                        content=block[i],
                    )

    def _label(self, value: int) -> str:
        if self.names is None:
            return str(value)
        if value >= len(self.names):
            raise BadSource(
                f"{text(self.labels)} holds the label {value} of {len(self.names)} classes; "
                "it belongs to another data set"
            )
        return self.names[value]


def split_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return the files of each split: images, labels."""
    found = {}
    for split, prefix in SPLITS.items():
        images, labels = (_either(folder / f"{prefix}{kind}") for kind in (IMAGES, LABELS))
        if images and labels:
            found[split] = images, labels
    return found


def is_images(file: Path) -> bool:
    """Return whether the file holds images, by its name."""
    return file.name.removesuffix(".gz").endswith(IMAGES)


def read_row(file: Path, row: int) -> Images | None:
    """Return the image (h, w) in this row; None beyond the last row. Raises BadSource."""
    with _opened(file, 3) as (stream, (count, height, width)):
        if row >= count:
            return None
        stream.seek(row * height * width, 1)
        return cast(Images, _values(file, stream, (1, height, width))[0])


def _either(plain: Path) -> Path | None:
    packed = plain.with_name(f"{plain.name}.gz")
    return plain if plain.is_file() else packed if packed.is_file() else None


@contextmanager
def _opened(file: Path, dimensions: int) -> Iterator[tuple[BinaryIO, tuple[int, ...]]]:
    """Yield the stream of values and their shape. Errors while it is open become BadSource."""
    try:
        with _stream(file) as stream:
            header = stream.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
                raise BadSource(
                    f"{text(file)} is not an idx file of bytes in {dimensions} dimensions; "
                    "put the original in its place"
                )
            yield stream, struct.unpack(f">{dimensions}I", header[4:])
    except (OSError, EOFError, zlib.error) as error:
        raise BadSource(f"cannot read {text(file)}: {error}; copy it again") from error


def _stream(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _values(file: Path, stream: BinaryIO, shape: tuple[int, ...]) -> Images:
    wanted = int(np.prod(shape))
    data = stream.read(wanted)
    if len(data) < wanted:
        raise BadSource(f"{text(file)} is truncated; copy it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
