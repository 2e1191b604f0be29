"""Data sets that are known by name: their search path, their downloads, and opening them.

A data set is a folder that holds Parquet in the Hugging Face schema (`train-*.parquet`,
`test-*.parquet`), idx files, or the official archive of CIFAR-10, unpacked or not.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval.errors import BadSource, UnknownName
from retrieval.images.datasets import cifar, idx
from retrieval.images.datasets.download import Official, download
from retrieval.images.source import Note, Source, no_note, text
from retrieval.images.tables import parquet
from retrieval.images.tables.choice import NO_CHOICE, Columns
from retrieval.storage.files import user_cache

SPLITS = ("train", "test")
DATA_DIR_VARIABLE = "RETR_DATA_DIR"


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set that can be fetched. `classes` names the labels of copies that have no names."""

    classes: Sequence[str]
    official: Official


def _idx_files(*md5s: str) -> dict[str, str]:
    names = (
        f"{prefix}{kind}.gz" for prefix in idx.SPLITS.values() for kind in (idx.IMAGES, idx.LABELS)
    )
    return dict(zip(names, md5s, strict=True))


DATA_SETS = {
    "cifar10": DataSet(
        cifar.CLASSES,
        Official(
            "https://www.cs.toronto.edu/~kriz",
            {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
        ),
    ),
    "mnist": DataSet(
        tuple("0123456789"),
        Official(
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            _idx_files(
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
    ),
    "fashion-mnist": DataSet(
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        Official(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            _idx_files(
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
    ),
}


def open_data_set(
    name: str,
    split: str,
    data_dir: Path | None = None,
    note: Note = no_note,
    columns: Columns = NO_CHOICE,
) -> Source:
    """Return a split of the data set of this name; download it if it is not found.

    Raises UnknownName for a split other than train and test, BadSource as `locate` does.
    """
    if split not in SPLITS:
        raise UnknownName(f"split of {name}", split, SPLITS)
    folder = locate(name, data_dir, split)
    return open_split(folder, split, f"{name}/{split}", DATA_SETS[name].classes, note, columns)


def locate(name: str, data_dir: Path | None = None, split: str = "train") -> Path:
    """Return the folder that has this split of the data set.

    Searched are `data_dir`, the folder in RETR_DATA_DIR, and the user's cache. If none has it, it
    is downloaded into the cache. Raises BadSource if that fails.
    """
    roots = [data_dir] if data_dir else []
    if variable := os.environ.get(DATA_DIR_VARIABLE):
        roots.append(Path(variable).expanduser())
    roots.append(user_cache())
    for root in roots:
        if split in splits(root / name):
            return (root / name).resolve()
    fetched = roots[-1] / name
    try:
        download(DATA_SETS[name].official, fetched)
    except (BadSource, OSError) as error:
        raise BadSource(
            f"no data set '{name}' in {', '.join(text(root) for root in roots)}, and fetching it "
            f"failed: {str(error).rpartition('; ')[0] or error}; put a copy into a folder '{name}' "
            f"and name the folder above it with --data or {DATA_DIR_VARIABLE}"
        ) from error
    return fetched.resolve()


def splits(folder: Path) -> list[str]:
    """Return the splits that the folder holds, told by the names of files; none if it's no data
    set.
    """
    if not folder.is_dir():
        return []
    if cifar.find(folder):
        return list(cifar.BATCHES)
    return list(parquet.split_files(folder) or idx.split_files(folder))


def open_split(
    folder: Path,
    split: str,
    name: str,
    classes: Sequence[str] | None = None,
    note: Note = no_note,
    columns: Columns = NO_CHOICE,
) -> Source:
    """Return the split, one of `splits(folder)`, as a source of this name."""
    if root := cifar.find(folder):
        return cifar.CifarSource.of(name, root, split)
    if parts := parquet.split_files(folder).get(split):
        return parquet.ParquetSource.of_split(name, parts, split, note, columns)
    return idx.IdxSource.of(name, idx.split_files(folder)[split], split, classes)
