"""Sub-folders of a folder that are splits: `train/cat/1.jpg`, as in torchvision's ImageFolder."""

from collections.abc import Mapping, Sequence

from retrieval.errors import UnknownName
from retrieval.images.source import Note

_NAMES = (
    ("train", "training"),
    ("validation", "val", "valid", "dev"),
    ("test", "testing"),
)
"""The names of each split, the usual one first; upper and lower case do not matter."""


def is_split_name(folder: str) -> bool:
    """Return whether a folder of this name may be a split."""
    return any(folder.lower() in names for names in _NAMES)


def are_splits(folders: Mapping[str, bool]) -> bool:
    """Return whether the folders are the splits of one set.

    folders: those with images, and whether each has sub-folders with images. All must have the name
    of a split, and at least one must have sub-folders: those are the classes.
    """
    return any(folders.values()) and all(map(is_split_name, folders))


def chosen_split(
    split: str | None, folders: Sequence[str], loose: int, source: str, note: Note
) -> str | None:
    """Return the folder of the split, by default train; None if there are no such folders.

    loose: number of images outside the folders, which belong to no split. `note` gets the folder
    that is taken and the ones that are not. Raises UnknownName.
    """
    if not folders:
        return None
    chosen = next(
        (folder for name in _searched(split) for folder in folders if folder.lower() == name), None
    )
    if split in folders:
        chosen = split
    if chosen is None:
        raise UnknownName(f"split of {source}", str(split), folders)
    others = [folder for folder in folders if folder != chosen]
    if split is None:
        rest = f", not {' or '.join(others)}; choose with --split" if others else ""
        note(f"the folders of {source} are splits: took {chosen}{rest}")
    if loose:
        note(f"left out {loose:,} image{'' if loose == 1 else 's'} beside the splits of {source}")
    return chosen


def _searched(split: str | None) -> tuple[str, ...]:
    """Return the names of the folders that may be meant, the likeliest first."""
    if split is None:
        return tuple(name for names in _NAMES for name in names)
    wanted = split.lower()
    return (wanted, *(name for names in _NAMES if wanted in names for name in names))
