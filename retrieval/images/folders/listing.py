"""List the files of a folder or store once, and record what was left out.

A source is listed once. Its items, their number and the fingerprint follow from that listing, so
that they agree however the folder changes while it is encoded.
"""

import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path, PurePath
from typing import Protocol, runtime_checkable

from retrieval.images.optional.formats import OPTIONAL_FORMATS, install_command
from retrieval.images.pixels.decoding import SUFFIXES
from retrieval.images.source import First, Item, Source, digest, natural
from retrieval.storage.places import Place
from retrieval.storage.sets.manifest import Skipped

BLOCK_NAMES = 1_000
MAX_LISTED_FOLDERS = 10  # skipped folders, in a message

# Fact: anything whose `ascii` changes when the file does.
Files = Iterable[tuple[str, object]]
"""Paths below a root, in natural order, each with a fact that changes when the file does."""

_IMAGE_LIKE = (
    "ai apng avci avif avifs bmp bpg cur dcm dds dib emf eps exr flif gif hdp hdr icns ico j2c j2k "
    "jp2 jpc jpf jpm jpx jxr kra pam pbm pcx pfm pgm pnm ppm psb psd qoi sgi svg svgz tga wdp webp "
    "wmf xbm xcf xpm"
)
UNREAD_SUFFIXES = (
    frozenset(f".{ending}" for ending in _IMAGE_LIKE.split()).union(
        *(each.suffixes for each in OPTIONAL_FORMATS)
    )
    - SUFFIXES
)
"""Suffixes of image files and videos that are not read, in lower case."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Numbers of files that arrived, and that were changed, since the listing."""

    arrived: int
    changed: int


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """Files below a root, in natural order, in about 20 bytes of memory a file.

    blocks: the paths, BLOCK_NAMES at a time, compressed. stamps: 8 bytes of each file's fact.
    fingerprint: the sha256 of all facts.
    """

    blocks: tuple[bytes, ...]
    stamps: "array[int]"
    fingerprint: str

    @classmethod
    def of(cls, files: Files) -> "Listing":
        """List the files."""
        blocks: list[bytes] = []
        stamps = array("Q")
        names: list[str] = []

        def facts() -> Iterator[object]:
            for path, fact in files:
                names.append(path)
                stamps.append(stamp(fact))
                if len(names) == BLOCK_NAMES:
                    blocks.append(_packed(names))
                    names.clear()
                yield fact

        fingerprint = digest(facts())
        if names:
            blocks.append(_packed(names))
        return cls(tuple(blocks), stamps, fingerprint)

    def __len__(self) -> int:
        return len(self.stamps)

    def paths(self, start: int = 0) -> Iterator[str]:
        """Yield the paths from position `start` on."""
        skipped = start % BLOCK_NAMES
        for block in islice(self.blocks, start // BLOCK_NAMES, None):
            yield from islice(_unpacked(block), skipped, None)
            skipped = 0

    def at(self, positions: Iterable[int]) -> Iterator[str]:
        """Yield the paths at these positions, which ascend."""
        number, names = -1, []
        for position in positions:
            if position // BLOCK_NAMES != number:
                number = position // BLOCK_NAMES
                names = _unpacked(self.blocks[number])
            yield names[position % BLOCK_NAMES]

    def changes(self, now: Files) -> Changes:
        """Compare the listing with the files that there are now."""
        arrived = changed = 0
        before = zip(self.paths(), self.stamps, strict=True)
        path, listed = next(before, (None, 0))
        for found, fact in now:
            while path is not None and path != found and _order(path) < _order(found):
                path, listed = next(before, (None, 0))
            if path != found:
                arrived += 1
                continue
            changed += stamp(fact) != listed
            path, listed = next(before, (None, 0))
        return Changes(arrived, changed)


@dataclass(slots=True)
class LeftOut:
    """Files and folders that a listing left out.

    passed_over: number of files that look like images and are not read, by suffix in lower case;
        the empty suffix is for files without one whose first bytes are those of an image.
    folders: folders that could not be listed, with the reason.
    links: number of paths through links to images that are listed under another path.
    noted: files with the suffixes that were asked for, by their path below the root.
    excluded: number of folders and of files that were left out by their name or a pattern.
    metadata: metadata files by their path below the root, each with a fact that changes with it.
    """

    passed_over: Counter[str] = field(default_factory=Counter)
    folders: list[Skipped] = field(default_factory=list)
    links: int = 0
    noted: dict[str, Path] = field(default_factory=dict)
    excluded: Counter[str] = field(default_factory=Counter)
    metadata: dict[str, object] = field(default_factory=dict)

    def exclude(self, name: str, is_folder: bool) -> None:
        """Count what an exclude left out. Files with a dot, which every system hides, are not."""
        if not name.startswith("."):
            self.excluded["folder" if is_folder else "file"] += 1

    def sentences(self) -> list[str]:
        """Describe the folders that could not be listed, and the links that were not followed."""
        said = [
            f"skipped folder {each.path}: {each.reason}"
            for each in self.folders[:MAX_LISTED_FOLDERS]
        ]
        if len(self.folders) > MAX_LISTED_FOLDERS:
            said.append(f"skipped {len(self.folders) - MAX_LISTED_FOLDERS:,} more folders")
        if self.links:
            one = self.links == 1
            said.append(
                f"{self.links:,} {'link leads' if one else 'links lead'} to images that are in "
                f"the set already, and {'was' if one else 'were'} not followed"
            )
        if self.excluded:
            counts = [f"{n:,} {what}{'' if n == 1 else 's'}" for what, n in self.excluded.items()]
            said.append(f"excluded {' and '.join(counts)} by name or pattern")
        return said


@runtime_checkable
class Listed(Protocol):
    """A source that was listed once, and whose files may change afterwards."""

    listing: Listing
    left_out: LeftOut

    @property
    def root(self) -> Place:
        """Return the folder, here or in a store, that the listed paths are relative to."""

    def items_at(self, positions: Sequence[int]) -> Iterator[Item]:
        """Yield the items at these positions, which ascend."""

    def changes(self) -> Changes:
        """List the files again, and compare."""

    def check_root(self) -> None:
        """Raise BadSource if the folder has disappeared, as when a disk was unplugged."""

    def differing(self, positions: Sequence[int]) -> list[int]:
        """Return the positions, of these ascending ones, whose files changed since the listing."""


def listed(source: Source) -> Listed | None:
    """Return the source, or the source of a `First`, if it was listed; None for others."""
    whole = source.source if isinstance(source, First) else source
    return whole if isinstance(whole, Listed) else None


def said_of(passed_over: Mapping[str, int]) -> str:
    """Return text such as `passed over: 8 files, .psd 5, .svg 3`; empty without files.

    If a package that reads some of them is not installed, the command that installs it follows.
    """
    if not passed_over:
        return ""
    count = sum(passed_over.values())
    kinds = sorted(passed_over.items(), key=lambda kind: (-kind[1], kind[0]))
    named = ", ".join(f"{suffix or 'without a suffix'} {number:,}" for suffix, number in kinds)
    command, needed = install_command(suffix for suffix, _ in kinds)
    hint = f"; to read {', '.join(needed)}, run {command}" if command else ""
    return f"passed over: {count:,} file{'' if count == 1 else 's'}, {named}{hint}"


def unread_suffix(name: str) -> str | None:
    """Return the suffix of a file that looks like an image but is not read; None for others.

    It is one of UNREAD_SUFFIXES, or an image's suffix followed by other text: `.jpg_large`.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix in UNREAD_SUFFIXES:
        return suffix
    letters = "".join(c if c.isascii() and c.isalnum() else " " for c in suffix[1:])
    first = letters.partition(" ")[0]
    known = f".{first}" in SUFFIXES | UNREAD_SUFFIXES
    return suffix if known and len(first) + 1 < len(suffix) else None


def stamp(fact: object) -> int:
    """Return 8 bytes of a hash of the fact."""
    return int.from_bytes(blake2b(ascii(fact).encode(), digest_size=8).digest())


def _packed(names: list[str]) -> bytes:
    return zlib.compress("\0".join(names).encode("utf-8", "surrogatepass"), 1)


def _unpacked(block: bytes) -> list[str]:
    return zlib.decompress(block).decode("utf-8", "surrogatepass").split("\0")


def _order(path: str) -> list[tuple[tuple[str | int, ...], str]]:
    return [natural(part) for part in path.split("/")]
