"""Images in tar archives, as WebDataset writes them.

Members that follow each other and share a name up to its first dot are a sample: `0001.jpg` is its
image, `0001.cls` its label, `0001.json` an object that may hold the label. Archives are read where
they are; nothing is unpacked. https://github.com/webdataset/webdataset
"""

import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal
from urllib.parse import quote

from retrieval.errors import BadImage, BadSource, UnknownName
from retrieval.images.datasets import cifar
from retrieval.images.pixels.decoding import PILLOW_SUFFIXES, SUFFIXES
from retrieval.images.source import Item, Note, digest, name_and_size, no_note, text
from retrieval.images.tables.cells import label_text
from retrieval.images.tables.choice import NO_CHOICE, Columns
from retrieval.images.tables.columns import LABEL_COLUMNS
from retrieval.images.tables.endings import TAR
from retrieval.storage.places import Place

COMPRESSED_SUFFIXES = frozenset({".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst"})
"""Suffixes of compressed archives, which follow `.tar` or replace it."""

MAX_LABEL_BYTES = 16 << 20  # maximum size of a member with a label
_CLASS = "cls"
_JSON = "json"
_FIRST_MEMBERS = 64  # members to look at to recognize CIFAR-10
# Exceptions that `tarfile` raises on damaged archives.
_DAMAGE = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Member:
    """Offset and size, in bytes, of a member's content in the archive."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Members with the same name up to the first dot, by the rest of their names in lower case."""

    name: str
    members: dict[str, Member] = field(default_factory=dict)

    def images(self) -> list[str]:
        """Return the members that are images, the simplest suffix first: `jpg` before `seg.png`.

        Those that need another package than Pillow come last, so that installed packages do not
        change which image is taken.
        """
        suffix_of = {e: f".{e.rpartition('.')[2]}" for e in self.members}
        found = [e for e, suffix in suffix_of.items() if suffix in SUFFIXES]
        return sorted(found, key=lambda e: (suffix_of[e] not in PILLOW_SUFFIXES, e.count("."), e))


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """An archive, its number of samples, and the prefix of their ids."""

    file: Path
    samples: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class TarSource:
    """The samples of the archives, one after the other; ids are `ARCHIVE#SAMPLE`, from 0.

    A label is the text of the member `cls`, else the value of `label` in the member `json`.
    """

    name: str
    fingerprint: str
    archives: tuple[Archive, ...]
    columns: Columns

    @classmethod
    def of_files(
        cls,
        name: str,
        files: Mapping[str, Place],
        note: Note = no_note,
        columns: Columns = NO_CHOICE,
    ) -> "TarSource":
        """Return all samples of the archives, by the paths that lead to them."""
        archives: list[Archive] = []
        endings: dict[str, None] = {}
        several: list[str] = []
        keys: Mapping[str, object] = {}
        for path, file in files.items():
            assert isinstance(file, Path)  # archives in stores are refused
            count = 0
            for sample in _samples(file):
                count += 1
                endings |= dict.fromkeys(sample.members)
                if not several and len(images := sample.images()) > 1:
                    several = images
                if columns.label and not keys and _JSON in sample.members:
                    keys = _keys(file, sample)
            archives.append(Archive(file, count, text(path)))
        if endings:
            _check_chosen(name, columns, endings, keys)
        if columns.image is None and several:
            note(
                f"samples of {name} have several images: {several[0]} is taken, not "
                f"{', '.join(several[1:])}; choose with --image-column"
            )
        facts: list[object] = ["webdataset", columns.image, columns.label]
        for archive in archives:
            stat = archive.file.stat()
            facts.append((archive.name, *name_and_size(archive.file), stat.st_mtime_ns))
        return cls(name, digest(facts), tuple(archives), columns)

    def __len__(self) -> int:
        return sum(archive.samples for archive in self.archives)

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the items from position `start` on."""
        before = 0
        for archive in self.archives:
            if start < before + archive.samples:
                yield from self._items(archive, max(0, start - before))
            before += archive.samples

    def _items(self, archive: Archive, start: int) -> Iterator[Item]:
        chosen = self.columns.image
        with archive.file.open("rb") as stream:
            for row, sample in islice(enumerate(_samples(archive.file)), start, None):
                path = _path(archive.file, chosen, row)
                found = _image(sample, chosen)
                yield Item(
                    id=f"{archive.name}#{row}",
                    label=_label(archive.file, stream, sample, self.columns.label),
                    path=path,
                    content=_content(stream, found, path, sample),
                )


def is_archive_of_images(file: Path) -> bool:
    """Return whether a tar archive holds samples, and not CIFAR-10.

    Raises BadSource if it holds images and is compressed.
    """
    names: list[str] = []
    with suppress(BadSource), _archive(file, "r:*") as archive:  # whoever reads on will say it
        names = [member.name for member in islice(archive, _FIRST_MEMBERS)]
    if any(cifar.is_batch(PurePosixPath(name).name) for name in names):
        return False
    if file.suffix.lower() in TAR:
        return True
    if any(PurePosixPath(name).suffix.lower() in SUFFIXES for name in names):
        raise packed(file)
    return False


def is_packed(file: Path) -> bool:
    """Return whether the file is named as a compressed tar archive."""
    suffix = file.suffix.lower()
    return suffix in COMPRESSED_SUFFIXES and (
        suffix.startswith(".t") or Path(file.stem).suffix.lower() in TAR
    )


def packed(file: Path) -> BadSource:
    """Return the error for a compressed archive, in which a row cannot be found by its position."""
    return BadSource(
        f"{text(file)} is a compressed archive; decompress it to a .tar file, and give that file"
    )


def read_row(file: Path, row: int, image: str | None = None) -> bytes | BadImage | None:
    """Return the content of this sample's image; None if the archive has fewer samples.

    image: the rest of the member's name; None: the one that is found. Raises BadSource.
    """
    images = _kept(file, image, file.stat().st_mtime_ns)
    if row >= len(images):
        return None
    with file.open("rb") as stream:
        return _content(stream, images[row], _path(file, image, row))


@lru_cache(maxsize=16)
def _kept(file: Path, image: str | None, _stamp: int) -> Sequence[Member | None]:
    return [_image(sample, image) for sample in _samples(file)]


def _path(file: Path, image: str | None, row: int) -> str:
    mark = "" if image is None else f"#{quote(image.lower(), safe='')}"
    return f"{file}{mark}#{row}"


def _image(sample: Sample, chosen: str | None) -> Member | None:
    if chosen is not None:
        return sample.members.get(chosen.lower())
    images = sample.images()
    return sample.members[images[0]] if images else None


def _content(
    stream: BinaryIO, member: Member | None, path: str, sample: Sample | None = None
) -> bytes | BadImage:
    if member is None:
        there = f": it has {', '.join(sample.members)}" if sample else ""
        return BadImage(path, f"no image in this sample{there}")
    return _read(stream, member)


def _read(stream: BinaryIO, member: Member) -> bytes:
    stream.seek(member.start)
    return stream.read(member.size)


def _label(file: Path, stream: BinaryIO, sample: Sample, chosen: str | None) -> str | None:
    """Return the label: the member of this name, or the value of this key in the member `json`."""
    if chosen == "":
        return None
    where = f"sample {sample.name} of {text(file)}"
    member = sample.members.get(_CLASS if chosen is None else chosen.lower())
    if member is not None:
        value = label_text(where, _label_bytes(where, stream, member))
        return None if value is None or value.strip() == "-1" else value.strip()
    if _JSON not in sample.members:
        return None
    known = _json(where, stream, sample)
    keys = LABEL_COLUMNS if chosen is None else (chosen,)
    return next((label_text(where, known[key]) for key in keys if key in known), None)


def _json(where: str, stream: BinaryIO, sample: Sample) -> Mapping[str, object]:
    try:
        document = json.loads(_label_bytes(where, stream, sample.members[_JSON]))
    except (ValueError, RecursionError) as error:
        raise BadSource(f"the json of {where} is damaged: {error}; write it again") from error
    return document if isinstance(document, dict) else {}


def _keys(file: Path, sample: Sample) -> Mapping[str, object]:
    with file.open("rb") as stream:
        return _json(f"sample {sample.name} of {text(file)}", stream, sample)


def _check_chosen(name: str, columns: Columns, endings: Iterable[str], keys: Iterable[str]) -> None:
    """Raise UnknownName for a chosen member, or key of the member `json`, that is not there."""
    endings = {*endings}
    if columns.image is not None and columns.image.lower() not in endings:
        raise UnknownName(f"member of the samples of {name}", columns.image, endings)
    labels = endings | {*keys}
    if columns.label and columns.label.lower() not in endings and columns.label not in labels:
        raise UnknownName(f"member or key of the samples of {name}", columns.label, labels)


def _label_bytes(where: str, stream: BinaryIO, member: Member) -> bytes:
    if member.size > MAX_LABEL_BYTES:
        raise BadSource(f"a label of {where} has {member.size:,} bytes; choose another member")
    return _read(stream, member)


def _samples(file: Path) -> Iterator[Sample]:
    """Yield the samples in the archive's order, without names that begin with a dot."""
    sample: Sample | None = None
    size = file.stat().st_size
    with _archive(file, "r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
            base = PurePosixPath(member.name).name
            if not member.isreg() or member.issparse() or base[:1] in ("", "."):
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError("unexpected end of data")
            stem, _, ending = base.partition(".")
            name = text(str(PurePosixPath(member.name).with_name(stem)))
            ending = text(ending.lower())
            if sample is None or sample.name != name or ending in sample.members:
                if sample is not None:
                    yield sample
                sample = Sample(name)
            sample.members[ending] = Member(member.offset_data, member.size)
        _check_end(file, archive.offset)
    if sample is not None:
        yield sample


class _TarInfo(tarfile.TarInfo):
    """A header whose size is not negative, with which Python before 3.11.14 goes on for ever."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError("negative size of a member")
        return -(-count // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


@contextmanager
def _archive(file: Path, mode: Literal["r:", "r:*"]) -> Iterator[tarfile.TarFile]:
    """Yield the open archive. Raises BadSource for errors of the `with` block, too."""
    try:
        with tarfile.open(file, mode, tarinfo=_TarInfo) as archive:
            yield archive
    except _DAMAGE as error:
        raise BadSource(f"cannot read the archive {text(file)}: {error}; copy it again") from error


def _check_end(file: Path, end: int) -> None:
    """Raise ReadError unless zeros or nothing follow the last member: `tarfile` stops silently."""
    with file.open("rb") as stream:
        stream.seek(end)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged header at byte {end:,}")
