"""A folder of images, or those that a glob names: sub-folders are labels.

The order is that of names, folders and files alike, with numbers in them counted: 2 before 10.
Folders are read one at a time, as the items are asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from os import DirEntry, scandir
from pathlib import Path

from retrieval.errors import BadSource
from retrieval.images.decoding import SUFFIXES
from retrieval.images.source import Item, digest, natural, text

EVERYTHING = ("**",)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A file below a folder: the names that lead to it, and where it is."""

    parts: tuple[str, ...]
    entry: DirEntry[str]

    def fact(self) -> tuple[tuple[str, ...], int, int]:
        """Names, size in bytes and time of the last change in ns."""
        missing = self.entry.is_symlink() and not Path(self.entry.path).exists()
        status = self.entry.stat(follow_symlinks=not missing)
        return self.parts, status.st_size, status.st_mtime_ns


@dataclass(frozen=True, slots=True, eq=False)
class FolderSource:
    """The images below `root` that match `pattern`, as `walk` has it.

    An id is the path below the root, a label the first folder of it, None for files that lie
    in the root itself.
    """

    name: str
    root: Path
    pattern: tuple[str, ...]
    count: int
    fingerprint: str

    @classmethod
    def of(cls, name: str, root: Path, pattern: tuple[str, ...]) -> "FolderSource":
        """The source of what lies there now. Raises BadSource where there are no images."""
        count = 0

        def facts() -> Iterator[object]:
            nonlocal count
            for found in walk(root, pattern, SUFFIXES):
                count += 1
                yield found.fact()

        fingerprint = digest(facts())
        if not count:
            raise none_in(name)
        return cls(name, root, pattern, count, fingerprint)

    def __len__(self) -> int:
        return self.count

    def items(self, start: int = 0) -> Iterator[Item]:
        """The items from position `start` on, none of them opened."""
        for found in islice(walk(self.root, self.pattern, SUFFIXES), start, None):
            yield Item(
                id=text("/".join(found.parts)),
                label=text(found.parts[0]) if len(found.parts) > 1 else None,
                path=text(found.entry.path),
                content=Path(found.entry.path),
            )


def none_in(name: str) -> BadSource:
    """What is wrong with a folder without images."""
    kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
    return BadSource(f"no images in {name}; they are told by their endings: {kinds}")


def walk(root: Path, pattern: tuple[str, ...], suffixes: frozenset[str]) -> Iterator[Found]:
    """The files below `root` of these endings that match, in natural order of their paths.

    `pattern` has a part for each name that leads to a file, with `*`, `?` and `[…]` as in a
    shell, and `**` for any number of folders. What begins with a dot is left out. Links to
    folders are followed, but not back to a folder that leads to them. Raises BadSource for a
    folder that cannot be listed.
    """
    return _walk(root, (), pattern, suffixes, frozenset())


def _walk(
    folder: Path,
    above: tuple[str, ...],
    pattern: tuple[str, ...],
    suffixes: frozenset[str],
    ancestors: frozenset[tuple[int, int]],
) -> Iterator[Found]:
    try:
        status = folder.stat()
        with scandir(folder) as entries:
            listed = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise BadSource(
            f"cannot list folder {text(folder)}: {error.strerror}; make it readable or leave it out"
        ) from error
    this = (status.st_dev, status.st_ino)
    if this in ancestors:
        return
    for entry in sorted(listed, key=lambda entry: natural(entry.name)):
        parts = (*above, entry.name)
        if _is_folder(entry):
            if _leads_on(parts, pattern):
                yield from _walk(Path(entry.path), parts, pattern, suffixes, ancestors | {this})
        elif (
            Path(entry.name).suffix.lower() in suffixes
            and matches(parts, pattern)
            and _is_file(entry)
        ):
            yield Found(parts, entry)


def _is_folder(entry: DirEntry[str]) -> bool:
    # An entry of a folder knows its kind without another call to the system; a link may lead
    # round in a circle, which Path takes for a link to nothing.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_file(entry: DirEntry[str]) -> bool:
    """Whether it is a file, and no device; a link to nothing is an image that is missing."""
    if not entry.is_symlink():
        return entry.is_file()
    target = Path(entry.path)
    return target.is_file() or not target.exists()


def matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the names that lead to a file are those of the pattern."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return matches(parts, pattern[1:]) or (bool(parts) and matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def _leads_on(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether something in the folder of these names may match."""
    if not pattern or pattern[0] == "**":
        return bool(pattern)
    if not parts:
        return True
    return fnmatchcase(parts[0], pattern[0]) and _leads_on(parts[1:], pattern[1:])
