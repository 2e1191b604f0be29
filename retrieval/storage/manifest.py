"""The manifest of an embeddings folder: which encoder made them, from which source.

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
from retrieval.storage.files import (
    check_format,
    read_sealed,
    write_sealed,
)
from retrieval.storage.places import Place

FORMAT = "retr-embeddings"
VERSION = 2  # 1 had no checksum
MANIFEST = "manifest.json"
SCHEMA_KEY = b"retr"  # of the facts in each shard's Parquet schema metadata
ROW_FIELDS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("path", pa.string()),
)


class Dtype(StrEnum):
    """The type of the numbers on disk; in memory they are float32."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """Which encoder made a set of embeddings."""

    name: str
    fingerprint: str
    config: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def of(cls, encoder: Encoder) -> Self:
        """The facts about this encoder."""
        return cls(encoder.name, encoder.fingerprint, dict(encoder.config))

    @property
    def title(self) -> str:
        """The name for a picture: of an encoder in a folder, the folder's own name alone."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Which images a set of embeddings was made from.

    first_of: the fingerprint of the whole source, where only its first images were taken.
    """

    name: str
    fingerprint: str
    images: int
    first_of: str | None = None

    @property
    def whole(self) -> str:
        """The fingerprint of the whole source."""
        return self.first_of or self.fingerprint


@dataclass(frozen=True, slots=True)
class Facts:
    """What a set of embeddings is, apart from its shards: also the identity of a run."""

    encoder: EncoderFacts
    dim: int
    dtype: Dtype
    metric: Metric
    source: SourceFacts
    shard_images: int  # the stretch of the source that one shard covers

    def __post_init__(self) -> None:
        resolve_choices(self)

    def to_json(self) -> dict[str, Json]:
        """The facts as they stand in the manifest and in each shard's schema metadata."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def of_json(cls, document: Mapping[str, Any], where: Place) -> Self:
        """The facts in the document. Raises BadData, naming `where`, if they are not there."""
        check_format(document, FORMAT, VERSION, where)
        try:
            facts = cls(
                encoder=EncoderFacts(**document["encoder"]),
                dim=document["dim"],
                dtype=Dtype(document["dtype"]),
                metric=Metric(document["metric"]),
                source=SourceFacts(**document["source"]),
                shard_images=document["shard_images"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadData(f"{where} lacks or misstates {error}; encode anew") from None
        counts = {
            "dim": facts.dim,
            "shard_images": facts.shard_images,
            "source.images": facts.source.images,
        }
        for name, number in counts.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise BadData(f"{where} says {name} is {number!r}; encode anew")
        return facts

    @property
    def schema(self) -> pa.Schema:
        """The Parquet schema of the shards."""
        number = pa.float16() if self.dtype is Dtype.FLOAT16 else pa.float32()
        element = pa.field("element", number, nullable=False)
        embedding = pa.field("embedding", pa.list_(element, self.dim), nullable=False)
        metadata = {SCHEMA_KEY: json.dumps(self.to_json(), sort_keys=True).encode()}
        return pa.schema([*ROW_FIELDS, embedding], metadata=metadata)


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard, as the manifest lists it."""

    file: str
    rows: int
    skipped: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be read, or a folder that could not be listed, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of an embeddings folder."""

    facts: Facts
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    skipped_sha256: str | None = None  # of skipped.parquet; None where there is none, or it is old
    skipped_folders: int = 0  # that could not be listed
    passed_over: Mapping[str, int] = field(default_factory=dict)  # image-like files, by ending

    @property
    def rows(self) -> int:
        """The rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def skipped(self) -> int:
        """The images that could not be read."""
        return sum(shard.skipped for shard in self.shards)

    def write(self, folder: Place) -> None:
        """Write `manifest.json`, whole or not at all."""
        shards: list[Json] = [asdict(shard) for shard in self.shards]
        document = self.facts.to_json() | {
            "shards": shards,
            "rows": self.rows,
            "skipped": self.skipped,
            "complete": self.complete,
            "skipped_sha256": self.skipped_sha256,
            "skipped_folders": self.skipped_folders,
            "passed_over": dict(self.passed_over),
        }
        write_sealed(folder / MANIFEST, FORMAT, VERSION, document)

    @classmethod
    def read(cls, folder: Place) -> Self:
        """The manifest in the folder.

        Raises BadInput where there is none, BadData where it is damaged or of a newer format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise BadInput(
                f"{folder} is no embeddings folder: it has no {MANIFEST}; "
                "make one with 'retr encode'"
            )
        document = read_sealed(path, FORMAT, VERSION, "encode anew")
        facts = Facts.of_json(document, path)
        try:
            shards = tuple(Shard(**shard) for shard in document["shards"])
            complete = document["complete"] is True
            skipped_sha256 = document.get("skipped_sha256")
            if not isinstance(skipped_sha256, str | None):
                raise ValueError(f"skipped_sha256: {skipped_sha256!r}")
            if any(not _is_shard(shard) for shard in shards):
                raise ValueError("a shard's entry")
            skipped_folders = document.get("skipped_folders", 0)
            passed_over = document.get("passed_over", {})
            if any(not _is_count(n) for n in (skipped_folders, *passed_over.values())):
                raise ValueError("skipped_folders or passed_over")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadData(f"{path} lacks or misstates {error}; encode anew") from None
        if any(Path(shard.file).name != shard.file for shard in shards):
            raise BadData(f"{path} names a shard outside its folder; encode anew")
        manifest = cls(facts, shards, complete, skipped_sha256, skipped_folders, passed_over)
        manifest._check_counts(path)
        return manifest

    def _check_counts(self, path: Place) -> None:
        """Raise BadData for a complete set without all its shards, and for impossible rows."""
        wanted = -(-self.facts.source.images // self.facts.shard_images)
        if self.complete and len(self.shards) != wanted:
            raise BadData(
                f"{path} says that it is complete, with {len(self.shards):,} of {wanted:,} shards; "
                "encode anew"
            )
        # The column is not compressed: a file is no smaller than the numbers in it.
        width = self.facts.dim * (2 if self.facts.dtype is Dtype.FLOAT16 else 4)
        if any(shard.rows * width > shard.bytes for shard in self.shards):
            raise BadData(f"{path} tells of more numbers than its shards can hold; encode anew")


def _is_shard(shard: Shard) -> bool:
    """Whether the fields are of the types that they are declared with, and no count negative."""
    counts = (shard.rows, shard.skipped, shard.bytes)
    return isinstance(shard.file, str) and all(map(_is_count, counts))


def _is_count(number: object) -> bool:
    return type(number) is int and number >= 0
