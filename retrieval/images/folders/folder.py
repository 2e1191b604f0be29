"""A folder of images, or those that a glob names: sub-folders are labels.

The order is that of names, folders and files alike, with numbers in them counted: 2 before 10.
The folder is listed once, when the source is opened; see `listing`.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from os import DirEntry, scandir
from pathlib import Path

from retrieval.errors import BadSource
from retrieval.images.folders.excludes import IGNORE_FILE, NO_EXCLUDES, Excludes, Rules
from retrieval.images.folders.listing import (
    Changes,
    LeftOut,
    Listing,
    said_of,
    stamp,
    unread_suffix,
)
from retrieval.images.folders.metadata import METADATA_FILES, fingerprint_of, read_metadata
from retrieval.images.optional.formats import OPTIONAL_FORMATS, install_command
from retrieval.images.pixels.decoding import PILLOW_SUFFIXES, SUFFIXES, begins_like_image
from retrieval.images.source import Item, natural, text
from retrieval.storage.sets.columns import FurtherColumns
from retrieval.storage.sets.manifest import Skipped

ALL_FILES_GLOB = ("**",)
_CACHED_REAL_PATHS = 1_000  # folders whose links are resolved


@dataclass(frozen=True, slots=True, eq=False)
class FoundFile:
    """A file below a folder: its relative path in parts, and its entry."""

    parts: tuple[str, ...]
    entry: DirEntry[str]

    def fact(self) -> tuple[tuple[str, ...], int, int]:
        """Return names, size in bytes and time of the last change in ns."""
        return fact_of(self.parts, self.entry.path)


def fact_of(parts: tuple[str, ...], path: str) -> tuple[tuple[str, ...], int, int]:
    """Return names, size in bytes and time of the last change in ns.

    For a broken link, they are those of the link. If neither can be read, both are -1.
    """
    for look in (os.stat, os.lstat):
        try:
            status = look(path)
        except OSError:
            continue
        return parts, status.st_size, status.st_mtime_ns
    return parts, -1, -1


@dataclass(frozen=True, slots=True, eq=False)
class FolderSource:
    """The images below `root` that matched `pattern` when it was listed; see `walk`.

    An id is the path below the root. A label is the first folder of this path; None for files
    in the root itself.
    """

    name: str
    root: Path
    pattern: tuple[str, ...]
    listing: Listing
    left_out: LeftOut
    excludes: Excludes = NO_EXCLUDES

    @classmethod
    def of(
        cls,
        name: str,
        root: Path,
        pattern: tuple[str, ...],
        noted: frozenset[str] = frozenset(),
        excludes: Excludes = NO_EXCLUDES,
    ) -> "FolderSource":
        """Return the source of the files that are there now, which may be none.

        noted: suffixes of other matching files, which are noted in `left_out`. Raises BadSource as
        `walk` does.
        """
        left_out = LeftOut()
        listing = Listing.of(_files(root, pattern, left_out, excludes, noted))
        return cls(name, root, pattern, listing, left_out, excludes)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the names, sizes and times of the files."""
        return self.listing.fingerprint

    def __len__(self) -> int:
        return len(self.listing)

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the items from position `start` on, none of them opened."""
        stamps = self.listing.stamps[start:]
        yield from map(self._item, self.listing.paths(start), stamps)

    def items_at(self, positions: Sequence[int]) -> Iterator[Item]:
        """Yield the items at these positions, which ascend, none of them opened."""
        stamps = (self.listing.stamps[position] for position in positions)
        yield from map(self._item, self.listing.at(positions), stamps)

    def _item(self, path: str, stamp: int) -> Item:
        folder, below, _ = path.partition("/")
        place = self.root / path
        label = text(folder) if below else None
        return Item(text(path), label, str(place), place, stamp)

    @property
    def columns_fingerprint(self) -> str | None:
        """The sha256 of names, sizes and times of the metadata files; None without any."""
        return fingerprint_of(self.left_out.metadata)

    def further_columns(self) -> FurtherColumns | None:
        """Read the metadata files; see `metadata.read_metadata`."""
        return read_metadata(self.root, self.left_out.metadata, self.listing.paths())

    def changes(self) -> Changes:
        """List the files again, and compare."""
        return self.listing.changes(_files(self.root, self.pattern, LeftOut(), self.excludes))

    def check_root(self) -> None:
        """Raise BadSource if the folder is empty or missing."""
        try:
            with scandir(self.root) as entries:
                gone = next(entries, None) is None
        except OSError:
            gone = True
        if gone:
            raise BadSource(
                f"{self.name} disappeared during the run; restore it and run the command again"
            )

    def differing(self, positions: Sequence[int]) -> list[int]:
        """Return the positions, of these ascending ones, whose files changed since the listing."""
        return [
            position
            for position, path in zip(positions, self.listing.at(positions), strict=True)
            if stamp(fact_of(tuple(path.split("/")), str(self.root / path)))
            != self.listing.stamps[position]
        ]


def none_in(name: str, left_out: LeftOut) -> BadSource:
    """Return the error for a folder without images."""
    kinds = ", ".join(sorted(suffix[1:] for suffix in PILLOW_SUFFIXES))
    more = [each.name for each in OPTIONAL_FORMATS if each.is_installed()]
    also = f", or those of {', '.join(more)}" if more else ""
    said = ", ".join(filter(None, (said_of(left_out.passed_over), *left_out.sentences())))
    _, readable = install_command(left_out.passed_over)
    others = len(left_out.passed_over) > len(readable)
    remedy = f"; convert {'the others' if readable else 'them'} to JPEG or PNG" if others else ""
    return BadSource(
        f"no images in {name}{said and f' ({said})'}; images have the suffixes {kinds}{also}"
        f"{remedy}"
    )


def _files(
    root: Path,
    pattern: tuple[str, ...],
    left_out: LeftOut,
    excludes: Excludes,
    noted: frozenset[str] = frozenset(),
) -> Iterator[tuple[str, object]]:
    for found in walk(root, pattern, SUFFIXES | noted, left_out, excludes):
        if noted and Path(found.entry.name).suffix.lower() in noted:
            left_out.noted["/".join(found.parts)] = Path(found.entry.path)
        else:
            yield "/".join(found.parts), found.fact()


def walk(
    root: Path,
    pattern: tuple[str, ...],
    suffixes: frozenset[str],
    left_out: LeftOut | None = None,
    excludes: Excludes = NO_EXCLUDES,
) -> Iterator[FoundFile]:
    """Return the files below `root` that match and have one of these suffixes, in natural order.

    `pattern` has a part for each part of a path, with `*`, `?` and `[…]` as in a shell, and `**`
    for any number of folders. What `excludes` and ignore files name is left out. Links are
    followed, but each file and folder is returned once: under its own path if that is below `root`,
    else under the first link. `left_out` records what is left out, and sub-folders that cannot be
    listed. Raises BadSource for a root that cannot be listed.
    """
    found = _Walk(root, pattern, suffixes, left_out or LeftOut(), excludes)
    return found.below(root, excludes.rules())


class _Walk:
    """A walk, and which links it has followed."""

    def __init__(
        self,
        root: Path,
        pattern: tuple[str, ...],
        suffixes: frozenset[str],
        left_out: LeftOut,
        excludes: Excludes,
    ) -> None:
        self.root = os.path.realpath(root)
        self.pattern = pattern
        self.suffixes = suffixes
        self.left_out = left_out
        self.excludes = excludes
        self._met = {self.root}  # real paths that a link led to
        self._real_folder = lru_cache(_CACHED_REAL_PATHS)(os.path.realpath)

    def below(
        self, folder: Path, rules: Rules, parts: tuple[str, ...] = (), real: str | None = None
    ) -> Iterator[FoundFile]:
        """Yield the files below the folder that these names lead to.

        real: its real path, if a link is among the names.
        """
        try:
            with scandir(folder) as entries:
                listed = [*entries]
        except OSError as error:
            reason = error.strerror or str(error)
            if not parts:
                raise BadSource(
                    f"cannot list folder {text(folder)}: {reason}; make it readable or leave it out"
                ) from error
            self.left_out.folders.append(Skipped(str(folder), reason.lower()))
            return
        if any(entry.name == IGNORE_FILE for entry in listed):
            rules = rules.with_file(folder / IGNORE_FILE, len(parts))
        for entry in sorted(listed, key=lambda entry: natural(entry.name)):
            names = (*parts, entry.name)
            kind = _kind(entry)
            if rules.leave_out(names, kind is _FOLDER):
                self.left_out.exclude(entry.name, kind is _FOLDER)
            elif kind is _FOLDER:
                if _leads_on(names, self.pattern):
                    own = self._real(entry, real)
                    if self._is_first(own, _FOLDER):
                        yield from self.below(Path(entry.path), rules, names, own)
            elif entry.name in METADATA_FILES and kind is _FILE:
                self.left_out.metadata["/".join(names)] = fact_of(names, entry.path)
            elif kind is not _OTHER and matches(names, self.pattern):
                if Path(entry.name).suffix.lower() not in self.suffixes:
                    self._pass_over(entry)
                elif kind is _MISSING or self._is_first(self._real(entry, real), _FILE):
                    yield FoundFile(names, entry)

    def _real(self, entry: DirEntry[str], folder: str | None) -> str | None:
        """Return the entry's real path, if a link leads to it or to its folder; else None."""
        if not entry.is_symlink():
            return None if folder is None else str(Path(folder, entry.name))
        link = Path(entry.path)
        try:
            target = link.parent / link.readlink()
        except OSError:  # it was deleted since
            return None
        # The real path of a folder is asked for once, not for each of a million links into it.
        real = Path(self._real_folder(target.parent), target.name)
        return os.path.realpath(link) if target.name == ".." or real.is_symlink() else str(real)

    def _is_first(self, real: str | None, kind: str) -> bool:
        """Return whether this is the first path to a link's target; count further ones."""
        if real is None:
            return True
        if self._is_met_without_link(real, kind) or real in self._met:
            self.left_out.links += 1
            return False
        self._met.add(real)
        return True

    def _is_met_without_link(self, real: str, kind: str) -> bool:
        """Return whether the walk meets it, or all below it, under its real path."""
        if real != self.root and not real.startswith(self.root.rstrip("/") + "/"):
            return False
        names = tuple(Path(real).relative_to(self.root).parts)
        if self.excludes.leaves_out(names, kind is _FOLDER):
            return False
        if kind is _FOLDER:
            return self.pattern == ALL_FILES_GLOB
        return Path(real).suffix.lower() in self.suffixes and matches(names, self.pattern)

    def _pass_over(self, entry: DirEntry[str]) -> None:
        suffix = unread_suffix(entry.name)
        if suffix is None and not Path(entry.name).suffix and begins_like_image(_head(entry)):
            suffix = ""
        if suffix is not None:
            self.left_out.passed_over[suffix] += 1


_FOLDER, _FILE, _MISSING, _OTHER = "folder", "file", "missing", "other"


def _kind(entry: DirEntry[str]) -> str:
    """Return the kind of the entry, its link followed; a link to nothing is a missing file.

    An entry of a folder knows its kind without another call to the system, but for links.
    """
    try:
        if not entry.is_symlink():
            return _FOLDER if entry.is_dir() else _FILE if entry.is_file() else _OTHER
        mode = Path(entry.path).stat().st_mode
    except OSError:
        return _MISSING
    return _FOLDER if stat.S_ISDIR(mode) else _FILE if stat.S_ISREG(mode) else _OTHER


def _head(entry: DirEntry[str]) -> bytes:
    """Return the first bytes of a file; none if it cannot be read."""
    try:
        with Path(entry.path).open("rb") as file:
            return file.read(12)
    except OSError:
        return b""


def matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Return whether the names that lead to a file are those of the pattern."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return matches(parts, pattern[1:]) or (bool(parts) and matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def _leads_on(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Return whether something in the folder of these names may match."""
    if not pattern or pattern[0] == "**":
        return bool(pattern)
    if not parts:
        return True
    return fnmatchcase(parts[0], pattern[0]) and _leads_on(parts[1:], pattern[1:])
