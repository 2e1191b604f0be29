"""Images in a store, named by a URL: a folder of them, a glob, one file, or Parquet.

What a folder here is, it is there: sub-folders are labels, the order is that of names. The listing
is taken once; images are fetched in parallel, a block ahead of the consumer.
"""

from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import escape, has_magic
from itertools import islice
from pathlib import PurePosixPath

from retrieval.errors import BadSource, UnknownName
from retrieval.images.decoding import SUFFIXES
from retrieval.images.folders.folder import ALL_FILES_GLOB, matches, none_in
from retrieval.images.folders.listing import Changes, LeftOut, Listing, unread_suffix
from retrieval.images.folders.splits import are_splits, chosen_split
from retrieval.images.source import CHUNK_ITEMS, Item, Note, Source, natural
from retrieval.images.tables.choice import Columns
from retrieval.images.tables.endings import ARROW, PARQUET, TAR
from retrieval.images.tables.parquet import ParquetSource, by_split
from retrieval.storage.places import RemotePath, RemoteStat

FETCH_BYTES = 64 << 20  # images that are fetched at a time

Files = dict[str, RemoteStat]


@dataclass(frozen=True, slots=True, eq=False)
class RemoteSource:
    """The images below `root` that match `pattern`, as they were listed; sizes in bytes."""

    name: str
    root: RemotePath
    pattern: tuple[str, ...]
    listing: Listing
    sizes: "array[int]"
    left_out: LeftOut

    @classmethod
    def of(
        cls, name: str, root: RemotePath, files: Files, pattern: tuple[str, ...]
    ) -> "RemoteSource":
        """Return the source of the files that were listed, which may have no images among them."""
        images = _chosen(files, pattern, SUFFIXES)
        sizes = array("Q", [stat.st_size for stat in images.values()])
        left_out = LeftOut()
        for path in files:
            parts = tuple(path.split("/"))
            suffix = unread_suffix(path)
            if suffix is not None and matches(parts, pattern) and not _is_hidden(parts):
                left_out.passed_over[suffix] += 1
        return cls(name, root, pattern, Listing.of(_facts(images)), sizes, left_out)

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of the names, sizes and versions of the files."""
        return self.listing.fingerprint

    def __len__(self) -> int:
        return len(self.listing)

    def changes(self) -> Changes:
        """List the files again, and compare."""
        found = _chosen(self._files(), self.pattern, SUFFIXES)
        return self.listing.changes(_facts(found))

    def check_root(self) -> None:
        """Raise BadSource if there is nothing in the folder any more."""
        if not self.root.exists():
            raise BadSource(
                f"{self.name} disappeared during the run; restore it and run the command again"
            )

    def differing(self, start: int, stop: int) -> list[int]:
        """Return position `start` if its file is missing or has another size; else nothing.

        One file is enough: all nodes read the same store, and a request for each file would take
        too long. Versions are not compared: that of a single file may differ from its listing's.
        """
        for path in islice(self.listing.paths(start), min(1, stop - start)):
            try:
                stat = (self.root / path).stat()
            except FileNotFoundError:
                return [start]
            return [start] if stat.st_size != self.sizes[start] else []
        return []

    def _files(self) -> Files:
        """Return the files that there are now; the source may be one file."""
        if len(self.pattern) == 1 and not has_magic(self.pattern[0]):
            file = self.root / self.pattern[0]
            return {file.name: file.stat()} if file.is_file() else {}
        return self.root.find()

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the items from position `start` on."""
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
        """Yield the names from there on, as many at a time as may be in memory."""
        names = self.listing.paths(start)
        while start < len(self):
            end, room = start, FETCH_BYTES
            while end < min(len(self), start + CHUNK_ITEMS) and room > 0:
                room -= self.sizes[end]
                end += 1
            yield [*islice(names, end - start)]
            start = end

    def _item(self, name: str, content: bytes | Exception) -> Item:
        place = self.root / name
        folder, below, _ = name.partition("/")
        # A file that was not fetched is read again when it is decoded, which reports the error.
        got = place if isinstance(content, Exception) else content
        return Item(name, folder if below else None, str(place), got)


def open_remote(place: RemotePath, split: str | None, note: Note, columns: Columns) -> Source:
    """Return the source at the URL; see `open_source`. Raises BadSource, Unreachable."""
    url = str(place)
    if has_magic(url.partition("::")[0]):
        _refuse(split, url)
        root, pattern = _of_glob(place)
        return _of_listing(url, root, _listed(root), pattern, None, note, columns)
    if place.is_file():
        _refuse(split, url)
        if place.suffix.lower() not in SUFFIXES | PARQUET:
            raise BadSource(
                f"{url} is neither an image nor Parquet; copy other files to this machine, and "
                "give the copy"
            )
        root = place.parent
        files = {place.name: place.stat()}
        return _of_listing(url, root, files, (escape(place.name),), None, note, columns)
    files = _listed(place)
    folders = _split_folders(files)
    loose = len(_chosen(files, ("*",), SUFFIXES)) if folders else 0
    chosen = chosen_split(split, folders, loose, url, note)
    if chosen is None and split is not None and any(f.startswith(f"{split}/") for f in files):
        chosen = split
    if chosen is not None:
        place, split = place / chosen, None
        head = f"{chosen}/"
        files = {
            path.removeprefix(head): stat for path, stat in files.items() if path.startswith(head)
        }
    return _of_listing(str(place), place, files, ALL_FILES_GLOB, split, note, columns)


def _split_folders(files: Files) -> list[str]:
    """Return the folders at the top that are splits, see `splits.are_splits`."""
    images = [tuple(path.split("/")) for path in _chosen(files, ALL_FILES_GLOB, SUFFIXES)]
    folders = {parts[0]: False for parts in images if len(parts) > 1}
    for parts in images:
        if len(parts) > 2:
            folders[parts[0]] = True
    return [*folders] if are_splits(folders) else []


def _of_listing(
    name: str,
    root: RemotePath,
    files: Files,
    pattern: tuple[str, ...],
    split: str | None,
    note: Note,
    columns: Columns,
) -> Source:
    images = RemoteSource.of(name, root, files, pattern)
    tables = _chosen(files, pattern, PARQUET)
    if len(images):
        _refuse(split, name)
        if tables:
            note(
                f"{name} holds image and .parquet files: the image files are taken; for others "
                f"name them, as in '{root}/**/*.parquet'"
            )
        return images
    if not tables:
        if others := _chosen(files, pattern, ARROW | TAR):
            raise BadSource(
                f"{name} holds Arrow files or tar archives, such as {next(iter(others))}, which "
                "cannot be read from a store; copy them to this machine, and give the copy"
            )
        raise none_in(name, images.left_out)
    splits = by_split([root / path for path in tables if "/" not in path])
    if splits and pattern == ALL_FILES_GLOB and name != str(root / next(iter(tables))):
        wanted = split or next(iter(splits))
        if wanted not in splits:
            raise UnknownName(f"split of {name}", wanted, splits)
        return ParquetSource.of_split(f"{name}/{wanted}", splits[wanted], wanted, note, columns)
    _refuse(split, name)
    return ParquetSource.of_files(name, {path: root / path for path in tables}, note, columns)


def _chosen(files: Files, pattern: tuple[str, ...], suffixes: frozenset[str]) -> Files:
    """Return the matching files with these suffixes, in natural order of their paths."""
    found = {
        tuple(path.split("/")): path
        for path in files
        if PurePosixPath(path).suffix.lower() in suffixes
    }
    kept = [parts for parts in found if not _is_hidden(parts) and matches(parts, pattern)]
    kept.sort(key=lambda parts: [natural(part) for part in parts])
    return {found[parts]: files[found[parts]] for parts in kept}


def _is_hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") for part in parts)


def _fact(path: str, stat: RemoteStat) -> tuple[str, int, str]:
    return path, stat.st_size, stat.version


def _facts(files: Files) -> Iterator[tuple[str, object]]:
    for path, stat in files.items():
        yield path, _fact(path, stat)


def _listed(root: RemotePath) -> Files:
    files = root.find()
    if not files:
        raise BadSource(f"nothing found at {root}; correct the URL")
    return files


def _of_glob(place: RemotePath) -> tuple[RemotePath, tuple[str, ...]]:
    """Return the folder above the first part that is a pattern, and the pattern below it."""
    head, chain, rest = str(place).partition("::")
    protocol, _, path = head.partition("://")
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if has_magic(part))
    root = RemotePath(f"{protocol}://{'/'.join(parts[:first])}{chain}{rest}")
    return root, tuple(parts[first:])


def _refuse(split: str | None, name: str) -> None:
    if split is not None:
        raise BadSource(
            f"{name} has no split '{split}'; leave out --split, or give the folder of the split"
        )
