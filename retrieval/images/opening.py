"""Open a source by its name or path."""

import tarfile
from difflib import get_close_matches
from glob import escape, has_magic
from pathlib import Path

from retrieval.errors import BadInput, BadSource, UnknownName
from retrieval.images.datasets import cifar
from retrieval.images.datasets.catalog import (
    DATA_SETS,
    SPLITS,
    locate,
    open_data_set,
    open_split,
    splits,
)
from retrieval.images.folders.excludes import NO_EXCLUDES, Excludes
from retrieval.images.folders.folder import ALL_FILES_GLOB, FolderSource, none_in, walk
from retrieval.images.folders.listing import LeftOut, listed
from retrieval.images.folders.splits import are_splits, chosen_split, is_split_name
from retrieval.images.pixels.decoding import SUFFIXES
from retrieval.images.source import First, Note, Source, natural, no_note, text
from retrieval.images.tables.choice import NO_CHOICE, Columns
from retrieval.images.tables.endings import PARQUET
from retrieval.images.tables.parquet import ParquetSource
from retrieval.images.tables.saved import open_saved
from retrieval.images.tables.webdataset import (
    COMPRESSED_SUFFIXES,
    TarSource,
    is_archive_of_images,
    is_packed,
    packed,
)
from retrieval.storage.places import Place, RemotePath, place_of

DIGITS = "digits"
DATA_SET_NAMES = (*DATA_SETS, DIGITS)
"""The data sets that `open_source` knows by name."""

_CONTAINERS: dict[str, type[ParquetSource | TarSource]] = {
    ".parquet": ParquetSource,
    ".arrow": ParquetSource,
    ".tar": TarSource,
}
"""Source of each kind of container file, by suffix, in order of preference."""


def open_source(
    spec: str,
    split: str | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    note: Note = no_note,
    columns: Columns = NO_CHOICE,
    excludes: Excludes = NO_EXCLUDES,
) -> Source:
    """Return the source that `spec` names, cut to its first `limit` items if that is given.

    spec: a data set's name (a folder of the same name is written `./mnist`); a folder of images;
        a folder or file of Parquet or Arrow with a column of images; a folder that Hugging Face's
        `save_to_disk` wrote; tar archives of WebDataset; an archive or folder of CIFAR-10; an
        image; a glob of images, Parquet, Arrow or tar files, with `*`, `?`, `[…]` and `**`; or a
        URL of images or Parquet in a store, such as `s3://bucket/photos`.
    split: train or test, by default train; for sources that have splits. Of a folder of images
        it names the sub-folder. Sub-folders that are splits, such as `train` and `test` with a
        folder for each class, are not labels: see `splits`.
    data_dir: where data sets are looked for first; see `datasets.locate`.
    note: told what was taken where that may surprise, and what was left out.
    columns: the columns of images and labels, for Parquet, Arrow and tar archives.
    excludes: what to leave out of a folder, a glob or a store.

    Raises BadInput for a limit below 1 and for columns or excludes of other sources, UnknownName
    for a split or column that isn't there, BadSource for what is not there, has no images or is
    damaged.
    """
    source = _open(spec, split, data_dir, note, columns, excludes)
    if columns != NO_CHOICE and not isinstance(source, ParquetSource | TarSource):
        raise BadInput(
            f"{source.name} has no columns to choose from; leave --image-column, --label-column "
            "and --column out"
        )
    if columns.others and isinstance(source, TarSource):
        raise BadInput(
            f"{source.name} is of tar archives, which have no columns for --column; leave it out"
        )
    found = listed(source)
    if excludes != NO_EXCLUDES and found is None:
        raise BadInput(f"{source.name} is not a folder of images; leave out --exclude")
    if not len(source):
        raise BadSource(f"no images in {source.name}: its files have no rows; give others")
    if spec in DATA_SET_NAMES:
        _note_namesake(spec, source, data_dir, note)
    if found is not None:
        for sentence in found.left_out.sentences():
            note(sentence)
    return source if limit is None else First(source, limit)


def absolute_source(spec: str) -> str:
    """Return the spec with its path or glob absolute, for a process in another folder."""
    if spec in DATA_SET_NAMES or "://" in spec:
        return spec
    return str(Path(spec).expanduser().absolute())


def _open(
    spec: str,
    split: str | None,
    data_dir: Path | None,
    note: Note,
    columns: Columns,
    excludes: Excludes,
) -> Source:
    if spec == DIGITS:
        # scikit-learn takes its time to import.
        from retrieval.images.datasets.digits import DigitsSource

        if split not in (None, *SPLITS):
            raise UnknownName(f"split of {spec}", str(split), SPLITS)
        return DigitsSource(split or SPLITS[0])
    if spec in DATA_SETS:
        return open_data_set(spec, split or SPLITS[0], data_dir, note, columns)
    place = place_of(spec)
    if isinstance(place, RemotePath):
        from retrieval.images.folders.remote import open_remote

        return open_remote(place, split, note, columns, excludes)
    path = place.expanduser()
    if spec and path.is_dir():
        return _of_folder(path.resolve(), split, note, columns, excludes)
    if path.is_file():
        return _of_file(path.resolve(), split, note, columns)
    if has_magic(spec):
        _refuse(split, spec)
        return _of_glob(path, note, columns, excludes)
    near = get_close_matches(spec, DATA_SET_NAMES, n=1)
    guess = f"did you mean '{near[0]}'? " if near else ""
    raise BadSource(
        f"'{spec}' is neither a data set nor a path; {guess}give one of the data sets "
        f"{', '.join(sorted(DATA_SET_NAMES))}, or a folder, a file or a glob"
    )


def _of_folder(
    folder: Path, split: str | None, note: Note, columns: Columns, excludes: Excludes
) -> Source:
    if found := splits(folder):
        wanted = split or SPLITS[0]
        if wanted not in found:
            raise UnknownName(f"split of {text(folder)}", wanted, found)
        if next(walk(folder, ALL_FILES_GLOB, SUFFIXES), None) is not None:
            note(
                f"{text(folder)} holds a data set and images: the data set is taken; for the "
                f"images name '{text(folder)}/**'"
            )
        return open_split(folder, wanted, f"{text(folder)}/{wanted}", None, note, columns)
    if (saved := open_saved(folder, split, note, columns)) is not None:
        return saved
    folders = _split_folders(folder)
    loose = sum(1 for _ in walk(folder, ("*",), SUFFIXES)) if folders else 0
    chosen = chosen_split(split, folders, loose, text(folder), note) or split
    if chosen is not None:
        if not (folder / chosen).is_dir():
            _refuse(chosen, text(folder))
        folder = folder / chosen
    return _of_pattern(text(folder), folder, ALL_FILES_GLOB, note, columns, excludes)


def _split_folders(folder: Path) -> list[str]:
    """Return the sub-folders that are splits, see `splits.are_splits`, in natural order."""
    try:
        names = [each.name for each in folder.iterdir() if each.name[0] != "." and each.is_dir()]
    except OSError:
        return []  # the listing reports it
    names.sort(key=natural)
    # No folder of an ordinary source is looked into.
    if not any(map(is_split_name, names)):
        return []
    found = {}
    for name in names:
        may_be_split = is_split_name(name)
        if _has_image(folder / name, ALL_FILES_GLOB, may_be_split):
            if not may_be_split:
                return []
            found[name] = _has_image(folder / name, ("*", "**", "*"), may_be_split)
    return [*found] if are_splits(found) else []


def _has_image(folder: Path, pattern: tuple[str, ...], unlisted: bool) -> bool:
    """Return whether an image in the folder matches; `unlisted` if the listing is incomplete."""
    left_out = LeftOut()
    try:
        found = next(walk(folder, pattern, SUFFIXES, left_out), None)
    except BadSource:
        return unlisted
    return found is not None or (unlisted and bool(left_out.folders))


def _note_namesake(spec: str, source: Source, data_dir: Path | None, note: Note) -> None:
    """Note that a data set was taken if a file or folder here has its name, too."""
    here = Path(spec)
    if not here.exists():
        return
    if spec in DATA_SETS:
        split = source.name.rpartition("/")[2]
        if locate(spec, data_dir, split) == here.resolve():
            return
    kind = "folder" if here.is_dir() else "file"
    note(f"took the data set '{spec}', not the {kind} of that name here; for that write ./{spec}")


def _of_file(file: Path, split: str | None, note: Note, columns: Columns) -> Source:
    if (
        file.suffix.lower() not in PARQUET
        and tarfile.is_tarfile(file)
        and not is_archive_of_images(file)
    ):
        wanted = split or SPLITS[0]
        if wanted not in SPLITS:
            raise UnknownName(f"split of {text(file)}", wanted, SPLITS)
        return cifar.CifarSource.of(f"{text(file)}/{wanted}", file, wanted)
    _refuse(split, text(file))
    excludes = Excludes(defaults=False)  # the file was named
    return _of_pattern(text(file), file.parent, (escape(file.name),), note, columns, excludes)


def _of_glob(path: Path, note: Note, columns: Columns, excludes: Excludes) -> Source:
    parts = path.absolute().parts
    first = next(i for i, part in enumerate(parts) if has_magic(part))
    root = Path(*parts[:first])
    if not root.is_dir():
        raise BadSource(
            f"nothing matches {text(path)}: folder {text(root)} not found; correct the path"
        )
    name = text(path.absolute())
    return _of_pattern(name, root.resolve(), parts[first:], note, columns, excludes)


def _of_pattern(
    name: str,
    root: Path,
    pattern: tuple[str, ...],
    note: Note,
    columns: Columns,
    excludes: Excludes,
) -> Source:
    """Return the images that match; if there are none, the tables or archives."""
    noted = frozenset(_CONTAINERS) | COMPRESSED_SUFFIXES
    images = FolderSource.of(name, root, pattern, noted, excludes)
    found: dict[str, dict[str, Place]] = {}
    for below, path in images.left_out.noted.items():
        found.setdefault(path.suffix.lower(), {})[below] = path
    suffixes = [suffix for suffix in _CONTAINERS if suffix in found]
    kinds = [*(["image"] if len(images) else []), *suffixes]
    if len(kinds) > 1:
        note(
            f"{name} holds {' and '.join(kinds)} files: the {kinds[0]} files are taken; for others "
            f"name them, as in '{text(root)}/**/*{suffixes[-1]}'"
        )
    if len(images):
        return images
    if suffixes:
        return _CONTAINERS[suffixes[0]].of_files(name, found[suffixes[0]], note, columns)
    if archive := next(filter(is_packed, images.left_out.noted.values()), None):
        raise packed(archive)
    raise none_in(name, images.left_out)


def _refuse(split: str | None, spec: str) -> None:
    if split is not None:
        raise BadSource(
            f"{spec} has no split '{split}'; leave out --split, or give the folder of the split"
        )
