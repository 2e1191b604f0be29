"""Images in a store, named by a URL: a folder of them, a glob, one file, or Parquet.

What a folder here is, it is there: sub-folders are labels, the order is that of names. The listing
is taken once; images are fetched in parallel, a block ahead of the consumer.
"""

from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import escape, has_magic
from pathlib import PurePosixPath

from retrieval.errors import BadSource, UnknownName
from retrieval.images.folders.excludes import NO_EXCLUDES, Excludes
from retrieval.images.folders.folder import ALL_FILES_GLOB, matches, none_in
from retrieval.images.folders.listing import Changes, LeftOut, Listing, unread_suffix
from retrieval.images.folders.metadata import METADATA_FILES, fingerprint_of, read_metadata
from retrieval.images.folders.splits import are_splits, chosen_split
from retrieval.images.pixels.decoding import SUFFIXES
from retrieval.images.source import CHUNK_ITEMS, Item, Note, Source, natural
from retrieval.images.tables.choice import Columns
from retrieval.images.tables.endings import ARROW, PARQUET, TAR
from retrieval.images.tables.parquet import ParquetSource, by_split
from retrieval.storage.places import RemotePath, RemoteStat
from retrieval.storage.sets.columns import FurtherColumns

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
    excludes: Excludes = NO_EXCLUDES

    @classmethod
    def of(
        cls,
        name: str,
        root: RemotePath,
        files: Files,
        pattern: tuple[str, ...],
        excludes: Excludes = NO_EXCLUDES,
    ) -> "RemoteSource":
        """Return the source of the files that were listed, which may have no images among them."""
        images = _chosen(files, pattern, SUFFIXES, excludes)
        sizes = array("Q", [stat.st_size for stat in images.values()])
        left_out = LeftOut()
        for path, stat in files.items():
            parts = tuple(path.split("/"))
            if parts[-1] in METADATA_FILES and not excludes.leaves_out(parts):
                left_out.metadata[path] = _fact(path, stat)
            suffix = unread_suffix(path)
            if suffix is None or not matches(parts, pattern):
                continue
            if not excludes.leaves_out(parts):
                left_out.passed_over[suffix] += 1
        return cls(name, root, pattern, Listing.of(_facts(images)), sizes, left_out, excludes)

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of the names, sizes and versions of the files."""
        return self.listing.fingerprint

    def __len__(self) -> int:
        return len(self.listing)

    @property
    def columns_fingerprint(self) -> str | None:
        """The sha256 of names, sizes and versions of the metadata files; None without any."""
        return fingerprint_of(self.left_out.metadata)

    def further_columns(self) -> FurtherColumns | None:
        """Read the metadata files; see `metadata.read_metadata`."""
        return read_metadata(self.root, self.left_out.metadata, self.listing.paths())

    def changes(self) -> Changes:
        """List the files again, and compare."""
        found = _chosen(self._files(), self.pattern, SUFFIXES, self.excludes)
        return self.listing.changes(_facts(found))

    def check_root(self) -> None:
        """Raise BadSource if there is nothing in the folder any more."""
        if not self.root.exists():
            raise BadSource(
                f"{self.name} disappeared during the run; restore it and run the command again"
            )

    def differing(self, positions: Sequence[int]) -> list[int]:
        """Return the first position if its file is missing or has another size; else nothing.

        One file is enough: all nodes read the same store, and a request for each file would take
        too long. Versions are not compared: that of a single file may differ from its listing's.
        """
        for position, path in zip(positions, self.listing.at(positions[:1]), strict=False):
            try:
                stat = (self.root / path).stat()
            except FileNotFoundError:
                return [position]
            return [position] if stat.st_size != self.sizes[position] else []
        return []

    def _files(self) -> Files:
        """Return the files that there are now; the source may be one file."""
        if len(self.pattern) == 1 and not has_magic(self.pattern[0]):
            file = self.root / self.pattern[0]
            return {file.name: file.stat()} if file.is_file() else {}
        return self.root.find()

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the items from position `start` on."""
        return self.items_at(range(start, len(self)))

    def items_at(self, positions: Sequence[int]) -> Iterator[Item]:
        """Yield the items at these positions, which ascend."""
        with ThreadPoolExecutor(1, thread_name_prefix="fetch") as ahead:
            stretches = self._stretches(positions)
            some = next(stretches, None)
            coming = some and ahead.submit(self.root.read_all, [*some])
            while some and coming:
                fetched = coming.result()
                behind = next(stretches, None)
                coming = behind and ahead.submit(self.root.read_all, [*behind])
                for (name, position), content in zip(some.items(), fetched, strict=True):
                    yield self._item(name, content, self.listing.stamps[position])
                some = behind

    def _stretches(self, positions: Sequence[int]) -> Iterator[dict[str, int]]:
        """Yield the names at these positions, as many at a time as fit in memory."""
        some: dict[str, int] = {}
        n_bytes = 0
        for name, position in zip(self.listing.at(positions), positions, strict=True):
            some[name] = position
            n_bytes += self.sizes[position]
            if len(some) == CHUNK_ITEMS or n_bytes >= FETCH_BYTES:
                yield some
                some, n_bytes = {}, 0
        if some:
            yield some

    def _item(self, name: str, content: bytes | Exception, stamp: int) -> Item:
        place = self.root / name
        folder, below, _ = name.partition("/")
        # A file that was not fetched is read again when it is decoded, which reports the error.
        got = place if isinstance(content, Exception) else content
        return Item(name, folder if below else None, str(place), got, stamp)


def open_remote(
    place: RemotePath, split: str | None, note: Note, columns: Columns, excludes: Excludes
) -> Source:
    """Return the source at the URL; see `open_source`. Raises BadSource, Unreachable."""
    url = str(place)
    if has_magic(url.partition("::")[0]):
        _refuse(split, url)
        root, pattern = _of_glob(place)
        return _of_listing(url, root, _listed(root), pattern, None, note, columns, excludes)
    if place.is_file():
        _refuse(split, url)
        if place.suffix.lower() not in SUFFIXES | PARQUET:
            raise BadSource(
                f"{url} is neither an image nor Parquet; copy other files to this machine, and "
                "give the copy"
            )
        root = place.parent
        files = {place.name: place.stat()}
        excludes = Excludes(defaults=False)  # the file was named
        return _of_listing(url, root, files, (escape(place.name),), None, note, columns, excludes)
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
    return _of_listing(str(place), place, files, ALL_FILES_GLOB, split, note, columns, excludes)


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
    excludes: Excludes,
) -> Source:
    images = RemoteSource.of(name, root, files, pattern, excludes)
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


def _chosen(
    files: Files,
    pattern: tuple[str, ...],
    suffixes: frozenset[str],
    excludes: Excludes = NO_EXCLUDES,
) -> Files:
    """Return the matching files with these suffixes, in natural order of their paths.

    A store has no ignore files.
    """
    found = {
        tuple(path.split("/")): path
        for path in files
        if PurePosixPath(path).suffix.lower() in suffixes
    }
    kept = [parts for parts in found if matches(parts, pattern) and not excludes.leaves_out(parts)]
    kept.sort(key=lambda parts: [natural(part) for part in parts])
    return {found[parts]: files[found[parts]] for parts in kept}


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
