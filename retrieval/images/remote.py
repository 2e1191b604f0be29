"""Images in a store, named by a URL: a folder of them, a glob, one file, or Parquet.

What a folder here is, it is there: sub-folders are labels, the order is that of names. The listing
is taken once; images are fetched side by side, a stretch ahead of who takes them.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import has_magic
from pathlib import PurePosixPath

from retrieval.errors import BadSource, UnknownName
from retrieval.images.columns import Columns
from retrieval.images.decoding import SUFFIXES
from retrieval.images.folder import EVERYTHING, matches, none_in
from retrieval.images.parquet import ParquetSource, by_split
from retrieval.images.source import CHUNK, Item, Note, Source, digest, natural
from retrieval.images.tables import ARROW, PARQUET
from retrieval.images.webdataset import TAR
from retrieval.storage.places import RemotePath, RemoteStat

STRETCH_BYTES = 64 << 20  # of images that are fetched at once

Listing = dict[str, RemoteStat]


@dataclass(frozen=True, slots=True, eq=False)
class RemoteSource:
    """The images of these names below `root`; sizes in bytes."""

    name: str
    root: RemotePath
    names: Sequence[str]
    sizes: Sequence[int]
    fingerprint: str

    @classmethod
    def of(cls, name: str, root: RemotePath, files: Listing) -> "RemoteSource":
        """The source of the files that were listed, all of them images."""
        facts = ((path, stat.st_size, stat.version) for path, stat in files.items())
        sizes = [stat.st_size for stat in files.values()]
        return cls(name, root, [*files], sizes, digest(facts))

    def __len__(self) -> int:
        return len(self.names)

    def items(self, start: int = 0) -> Iterator[Item]:
        """The items from position `start` on."""
        with ThreadPoolExecutor(1, thread_name_prefix="fetch") as ahead:
            stretches = self._stretches(start)
            names = next(stretches, None)
            coming = names and ahead.submit(self.root.read_all, names)
            while names and coming:
                fetched = coming.result()
                behind = next(stretches, None)
                coming = behind and ahead.submit(self.root.read_all, behind)
                for name, content in zip(names, fetched, strict=True):
                    yield self._item(name, content)
                names = behind

    def _stretches(self, start: int) -> Iterator[list[str]]:
        """The names from there on, as many at a time as may be in memory."""
        while start < len(self.names):
            end, room = start, STRETCH_BYTES
            while end < min(len(self.names), start + CHUNK) and room > 0:
                room -= self.sizes[end]
                end += 1
            yield [*self.names[start:end]]
            start = end

    def _item(self, name: str, content: bytes | Exception) -> Item:
        place = self.root / name
        folder, below, _ = name.partition("/")
        # What could not be fetched is asked for again by who decodes it, and said there.
        got = place if isinstance(content, Exception) else content
        return Item(name, folder if below else None, str(place), got)


def open_remote(place: RemotePath, split: str | None, note: Note, columns: Columns) -> Source:
    """The source at the URL, as `open_source` has it. Raises BadSource, Unreachable."""
    url = str(place)
    if has_magic(url.partition("::")[0]):
        _refuse(split, url)
        root, pattern = _of_glob(place)
        return _of_listing(url, root, _listed(root), pattern, None, note, columns)
    if place.is_file():
        _refuse(split, url)
        if place.suffix.lower() not in SUFFIXES | PARQUET:
            raise BadSource(
                f"{url} is neither an image nor Parquet; of other files make a copy here, and "
                "name that"
            )
        root = place.parent
        return _of_listing(url, root, {place.name: place.stat()}, EVERYTHING, None, note, columns)
    files = _listed(place)
    if split is not None and any(name.startswith(f"{split}/") for name in files):
        place, split = place / split, None
        files = _listed(place)
    return _of_listing(str(place), place, files, EVERYTHING, split, note, columns)


def _of_listing(
    name: str,
    root: RemotePath,
    files: Listing,
    pattern: tuple[str, ...],
    split: str | None,
    note: Note,
    columns: Columns,
) -> Source:
    tables = _chosen(files, pattern, PARQUET)
    if images := _chosen(files, pattern, SUFFIXES):
        _refuse(split, name)
        if tables:
            note(
                f"{name} holds image and .parquet files: the image files are taken; for others "
                f"name them, as in '{root}/**/*.parquet'"
            )
        return RemoteSource.of(name, root, images)
    if not tables:
        if others := _chosen(files, pattern, ARROW | TAR):
            raise BadSource(
                f"{name} holds Arrow files or tar archives, such as {next(iter(others))}, which "
                "are not read in a store; make a copy here, and name that"
            )
        raise none_in(name)
    splits = by_split([root / path for path in tables if "/" not in path])
    if splits and pattern == EVERYTHING and name != str(root / next(iter(tables))):
        wanted = split or next(iter(splits))
        if wanted not in splits:
            raise UnknownName(f"split of {name}", wanted, splits)
        return ParquetSource.of_split(f"{name}/{wanted}", splits[wanted], wanted, note, columns)
    _refuse(split, name)
    return ParquetSource.of_files(name, {path: root / path for path in tables}, note, columns)


def _chosen(files: Listing, pattern: tuple[str, ...], suffixes: frozenset[str]) -> Listing:
    """The files of these endings that match, in natural order of their paths."""
    found = {
        tuple(path.split("/")): path
        for path in files
        if PurePosixPath(path).suffix.lower() in suffixes
    }
    kept = [
        parts
        for parts in found
        if not any(part.startswith(".") for part in parts) and matches(parts, pattern)
    ]
    kept.sort(key=lambda parts: [natural(part) for part in parts])
    return {found[parts]: files[found[parts]] for parts in kept}


def _listed(root: RemotePath) -> Listing:
    files = root.find()
    if not files:
        raise BadSource(f"there is nothing at {root}; mend the URL")
    return files


def _of_glob(place: RemotePath) -> tuple[RemotePath, tuple[str, ...]]:
    """The folder above the first part that is a pattern, and the pattern below it."""
    head, chain, rest = str(place).partition("::")
    protocol, _, path = head.partition("://")
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if has_magic(part))
    root = RemotePath(f"{protocol}://{'/'.join(parts[:first])}{chain}{rest}")
    return root, tuple(parts[first:])


def _refuse(split: str | None, name: str) -> None:
    if split is not None:
        raise BadSource(f"{name} has no split '{split}'; leave the split out, or name its folder")
