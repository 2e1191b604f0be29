"""The manifest of an embeddings folder: its encoder, its source and its shards.

`manifest.json` lists the shards with their rows and checksums. docs/formats.md describes it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from retrieval.choices import resolve_choices
from retrieval.contracts import Encoder, Json, Metric
from retrieval.errors import BadData, BadInput
from retrieval.storage.document import check_at_least, fields_of, parsed
from retrieval.storage.files import (
    check_format,
    read_sealed,
    write_sealed,
)
from retrieval.storage.places import Place
from retrieval.storage.sets.made_by import MadeBy

FORMAT = "retr-embeddings"
VERSION = (
    4  # 1 had no checksum; 2 no root, and so could not be brought up to date; 3 no photo columns
)
MANIFEST = "manifest.json"
REMEDY = "encode again"
SCHEMA_KEY = b"retr"  # key of the facts in each shard's Parquet schema metadata
ROW_FIELDS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("path", pa.string()),
)
FILE_FIELDS = (
    pa.field("stamp", pa.uint64(), nullable=False),
    pa.field("content", pa.binary(16), nullable=False),
)
"""Columns of a set whose images are files: what tells whether a file has changed, and a hash of its
bytes."""
PHOTO_FIELDS = (
    pa.field("taken", pa.timestamp("ms")),
    pa.field("modified", pa.timestamp("ms", "UTC")),
    pa.field("bytes", pa.int64()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("camera", pa.string()),
    pa.field("latitude", pa.float64()),
    pa.field("longitude", pa.float64()),
)
"""Columns of such a set for filters. Each is null where it is not known.

taken: the date in the EXIF data, in the camera's local time. modified, bytes: time of the last
change and size of the file. width, height: in pixels, upright. camera: the model. latitude,
longitude: in degrees, north and east positive.
"""
THUMBNAIL_SIDE = 16  # pixels
THUMBNAIL_FIELD = pa.field("thumbnail", pa.binary(THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3))
"""Last column of such a set: pixels of `retrieval.images.pixels.thumbnail`. Older sets lack it."""
LATER_FIELDS = (*PHOTO_FIELDS, THUMBNAIL_FIELD)
"""Columns that version 3 lacks."""


class Dtype(StrEnum):
    """The type of the numbers on disk; in memory they are float32."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """Encoder of a set of embeddings."""

    name: str
    fingerprint: str
    config: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def of(cls, encoder: Encoder) -> Self:
        """Return the facts about this encoder."""
        return cls(encoder.name, encoder.fingerprint, dict(encoder.config))

    @property
    def title(self) -> str:
        """The name for a picture: of an encoder in a folder, the folder's own name alone."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Source of a set of embeddings.

    first_of: the fingerprint of the whole source, where only its first images were taken.
    root: the folder or URL that ids and paths are relative to; None for a source whose images are
    not files of their own.
    """

    name: str
    fingerprint: str
    images: int
    first_of: str | None = None
    root: str | None = None

    @property
    def whole(self) -> str:
        """The fingerprint of the whole source."""
        return self.first_of or self.fingerprint


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of a set of embeddings, apart from its shards: also the identity of a run."""

    encoder: EncoderFacts
    dim: int
    dtype: Dtype
    metric: Metric
    source: SourceFacts
    shard_images: int  # images of the source that one shard covers, skipped ones included

    def __post_init__(self) -> None:
        resolve_choices(self)

    def to_json(self) -> dict[str, Json]:
        """Return the facts as they stand in the manifest and in each shard's schema metadata."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def of_json(cls, document: Mapping[str, Any], where: Place) -> Self:
        """Return the facts in the document.

        Raises BadData, naming `where`, if they are not there.
        """
        check_format(document, FORMAT, VERSION, where)
        facts = parsed(fields_of(document, cls), cls, where, REMEDY)
        counts = {
            "dim": facts.dim,
            "shard_images": facts.shard_images,
            "source.images": facts.source.images,
        }
        check_at_least(1, counts, where, REMEDY)
        return facts

    @property
    def schema(self) -> pa.Schema:
        """The Parquet schema of the shards."""
        number = pa.float16() if self.dtype is Dtype.FLOAT16 else pa.float32()
        element = pa.field("element", number, nullable=False)
        embedding = pa.field("embedding", pa.list_(element, self.dim), nullable=False)
        metadata = {SCHEMA_KEY: json.dumps(self.to_json(), sort_keys=True).encode()}
        of_files = (*FILE_FIELDS, *LATER_FIELDS) if self.has_files else ()
        return pa.schema([*ROW_FIELDS, embedding, *of_files], metadata=metadata)

    @property
    def has_files(self) -> bool:
        """Return whether each image is a file, so that the set can follow changes."""
        return self.source.root is not None


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard, as the manifest lists it.

    made_by: what computed the rows that were encoded; None where that is not known.
    """

    file: str
    rows: int
    skipped: int
    bytes: int
    sha256: str
    made_by: MadeBy | None = None

    @property
    def number(self) -> int:
        """The number in the name of the file."""
        return int("".join(filter(str.isdigit, self.file)) or 0)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be read, or a folder that could not be listed, and why.

    stamp: of an image that is a file, what tells whether it has changed.
    """

    path: str
    reason: str
    stamp: int | None = None


@dataclass(frozen=True, slots=True)
class ColumnsFile:
    """The file of further columns. source: fingerprint of the tables that they were read from."""

    file: str
    sha256: str
    source: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of an embeddings folder."""

    facts: Facts
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    skipped_sha256: str | None = (
        None  # sha256 of skipped.parquet; None: no such file, or an old set
    )
    skipped_folders: int = 0  # folders that could not be listed
    passed_over: Mapping[str, int] = field(default_factory=dict)  # image-like files, by suffix
    columns: ColumnsFile | None = None
    assigned: ColumnsFile | None = None  # labels of `retr label`; source: how they were found
    version: int = VERSION  # read from the file

    @property
    def columns_source(self) -> str | None:
        """The fingerprint of the tables of further columns; None if there are none."""
        return None if self.columns is None else self.columns.source

    @property
    def column_files(self) -> list[str]:
        """The files of columns beside the shards."""
        return [each.file for each in (self.columns, self.assigned) if each is not None]

    @property
    def made_by(self) -> list[MadeBy]:
        """The ways that the embeddings were computed in, each once."""
        return [*dict.fromkeys(shard.made_by for shard in self.shards if shard.made_by)]

    @property
    def rows(self) -> int:
        """The rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def skipped(self) -> int:
        """The images that could not be read."""
        return sum(shard.skipped for shard in self.shards)

    def write(self, folder: Place, name: str = MANIFEST) -> None:
        """Write `manifest.json`, or a file of another name, whole or not at all."""
        shards: list[Json] = [asdict(shard) for shard in self.shards]
        document = self.facts.to_json() | {
            "shards": shards,
            "rows": self.rows,
            "skipped": self.skipped,
            "complete": self.complete,
            "skipped_sha256": self.skipped_sha256,
            "skipped_folders": self.skipped_folders,
            "passed_over": dict(self.passed_over),
            "columns": None if self.columns is None else asdict(self.columns),
            "assigned": None if self.assigned is None else asdict(self.assigned),
            "version": self.version,
        }
        write_sealed(folder / name, FORMAT, VERSION, document)

    @classmethod
    def read(cls, folder: Place, name: str = MANIFEST) -> Self:
        """Return the manifest in the folder.

        Raises BadInput if it is missing, BadData if it is damaged or of a newer format.
        """
        path = folder / name
        if not path.is_file():
            raise BadInput(
                f"{folder} is not an embeddings folder: {name} not found; "
                "make one with 'retr encode'"
            )
        document = read_sealed(path, FORMAT, VERSION, REMEDY)
        stated = {"shards": None, "complete": None, **fields_of(document, cls)}
        stated["facts"] = Facts.of_json(document, path)
        manifest = parsed(stated, cls, path, REMEDY)
        names = [shard.file for shard in manifest.shards]
        names += manifest.column_files
        if any(Path(name).name != name for name in names):
            raise BadData(f"{path} names a file outside its folder; {REMEDY}")
        manifest._check_counts(path)
        return manifest

    def _check_counts(self, path: Place) -> None:
        """Raise BadData for negative counts, missing shards of a complete set, too many rows."""
        for number, shard in enumerate(self.shards):
            counts = {"rows": shard.rows, "skipped": shard.skipped, "bytes": shard.bytes}
            named = {f"shards.{number}.{name}": count for name, count in counts.items()}
            check_at_least(0, named, path, REMEDY)
        passed_over = {f"passed_over.{ending}": n for ending, n in self.passed_over.items()}
        counts = {"skipped_folders": self.skipped_folders, **passed_over}
        check_at_least(0, counts, path, REMEDY)
        wanted = -(-self.facts.source.images // self.facts.shard_images)
        if self.complete and not self.facts.has_files and len(self.shards) != wanted:
            raise BadData(
                f"{path} says that it is complete, with {len(self.shards):,} of {wanted:,} shards; "
                f"{REMEDY}"
            )
        there = self.rows + self.skipped
        if self.complete and self.facts.has_files and there < self.facts.source.images:
            raise BadData(
                f"{path} says that it is complete, with {there:,} of "
                f"{self.facts.source.images:,} images; {REMEDY}"
            )
        # The column is not compressed: a file is at least as large as its vectors.
        width = self.facts.dim * (2 if self.facts.dtype is Dtype.FLOAT16 else 4)
        if any(shard.rows * width > shard.bytes for shard in self.shards):
            raise BadData(f"{path}: more rows than its shards have bytes for; {REMEDY}")
