"""Embeddings on disk: a folder of Parquet shards and a manifest.

Shard `part-00000.parquet` holds the columns id, label, path and embedding; `manifest.json` says
which encoder made them from which source, and each shard's rows and sha256. docs/formats.md
writes the format out.

A shard is the outcome of a fixed stretch of the source's images, so that a run that was killed
goes on behind its last whole shard and ends with the same files as one that was not.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self
from unicodedata import is_normalized

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.choices import resolve_choices
from retrieval.contracts import Encoder, Json, Metric, Vectors
from retrieval.errors import BadData, BadInput
from retrieval.labels import as_ids, as_labels
from retrieval.storage.files import (
    LOCK,
    OF_A_BUILD,
    PARTIAL,
    check_format,
    made_folder,
    read_sealed,
    sha256_of,
    write_sealed,
    write_whole,
)
from retrieval.storage.names import restored, storable
from retrieval.storage.places import Place, place_of
from retrieval.values import shown

FORMAT = "retr-embeddings"
VERSION = 2  # 1 had no checksum
MANIFEST = "manifest.json"
SKIPPED = "skipped.parquet"
SCHEMA_KEY = b"retr"  # of the facts in each shard's Parquet schema metadata

ROW_FIELDS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("path", pa.string()),
)
ROWS = tuple(field.name for field in ROW_FIELDS)
SKIPPED_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string()), ("shard", pa.int32())])
_SkippedRow = tuple[str, str, int | None]  # the shard's number is null for a folder


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


def _is_whole(path: Place, shard: Shard) -> bool:
    """Whether the shard is there as it was written; of one in a store the size must do."""
    try:
        if isinstance(path, Path):
            return path.is_file() and sha256_of(path) == shard.sha256
        return path.stat().st_size == shard.bytes
    except FileNotFoundError:
        return False


def shard_name(number: int) -> str:
    """The file name of the shard."""
    return f"part-{number:05d}.parquet"


def write_shard(
    file: Place,
    facts: Facts,
    ids: Sequence[str],
    labels: Sequence[str | None],
    paths: Sequence[str | None],
    vectors: Vectors,
    skipped: Sequence[Skipped] = (),
) -> Shard:
    """Write a shard's file, whole or not at all; the manifest's entry for it.

    n ids, labels and paths, vectors (n, dim), and the images of the stretch that were skipped.
    Paths are as `open` takes them, and stored as `names.storable` writes them.
    Raises BadInput if a vector is not finite, also as float16.
    """
    dtype = np.float16 if facts.dtype is Dtype.FLOAT16 else np.float32
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(vectors, dtype=dtype)
    finite = np.isfinite(stored).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        remedy = "use --dtype float32" if np.isfinite(vectors[row]).all() else "mend the encoder"
        raise BadInput(f"the embedding of {ids[row]} is not finite as {facts.dtype}; {remedy}")
    table = pa.table(
        [
            pa.array(as_ids(ids), pa.string()),
            pa.array(as_labels(labels), pa.string()),
            pa.array([path and storable(path) for path in paths], pa.string()),
            pa.FixedSizeListArray.from_arrays(
                pa.array(stored.reshape(-1)), type=facts.schema.field("embedding").type
            ),
        ],
        schema=facts.schema,
    )
    content = _parquet(table)
    write_whole(file, lambda partial: partial.write_bytes(content))
    sha256 = hashlib.sha256(content).hexdigest()
    return Shard(file.name, len(ids), len(skipped), len(content), sha256)


class ShardWriter:
    """Writes embeddings shard by shard into a folder that it has to itself.

    Made on a folder of the same run, it keeps the shards that are whole and continues behind
    the last of them; the caller holds `files.locked(folder)` meanwhile.
    """

    def __init__(
        self,
        folder: Place,
        facts: Facts,
        passed_over: Mapping[str, int] | None = None,
        folders: Sequence[Skipped] = (),
    ) -> None:
        """passed_over: files that look like images and are not read, by ending. folders: those
        that could not be listed.

        Raises BadInput if the folder holds anything but an earlier state of this very run.
        """
        self.folder = folder
        self.facts = facts
        self._folders: list[_SkippedRow] = [(each.path, each.reason, None) for each in folders]
        self._skipped: list[_SkippedRow] = []
        self.manifest = self._resumed()
        if not self.manifest.complete:
            self.manifest = replace(
                self.manifest, passed_over=dict(passed_over or {}), skipped_folders=len(folders)
            )

    def _resumed(self) -> Manifest:
        check_free(self.folder, MANIFEST)
        made_folder(self.folder)
        if not (self.folder / MANIFEST).exists():
            return Manifest(self.facts)
        found = Manifest.read(self.folder)
        if found.facts != self.facts:
            raise BadInput(
                f"{self.folder} holds other embeddings: {_difference(found.facts, self.facts)}; "
                "name another folder with --out"
            )
        whole = []
        for shard in found.shards:
            if not _is_whole(self.folder / shard.file, shard):
                break
            whole.append(shard)
        # Written before the manifest, it may tell of a shard that the manifest does not know.
        rows = _read_skipped(self.folder)
        self._skipped = [row for row in rows if row[2] is not None and row[2] < len(whole)]
        return replace(
            found,
            shards=tuple(whole),
            complete=found.complete and len(whole) == len(found.shards),
        )

    @property
    def skipped(self) -> list[Skipped]:
        """The images that could not be read so far, those of earlier runs included."""
        return [Skipped(path, reason) for path, reason, _ in self._skipped]

    @property
    def position(self) -> int:
        """How many of the source's images the shards cover."""
        return min(len(self.manifest.shards) * self.facts.shard_images, self.facts.source.images)

    def write(
        self,
        ids: Sequence[str],
        labels: Sequence[str | None],
        paths: Sequence[str | None],
        vectors: Vectors,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        """Add the next shard, and what was skipped. Takes and raises what `write_shard` does."""
        file = self.folder / shard_name(len(self.manifest.shards))
        self.record(write_shard(file, self.facts, ids, labels, paths, vectors, skipped), skipped)

    def record(self, shard: Shard, skipped: Sequence[Skipped] = ()) -> None:
        """Say in the manifest that this is the next shard; its file is in the folder already."""
        if skipped:
            number = len(self.manifest.shards)
            self._skipped += [(s.path, s.reason, number) for s in skipped]
            self._write_skipped()
        self.manifest = replace(self.manifest, shards=(*self.manifest.shards, shard))
        self.manifest.write(self.folder)

    def finish(self) -> Manifest:
        """Say in the manifest that the set is complete."""
        if self._folders:
            self._write_skipped()
        elif not self._skipped:
            (self.folder / SKIPPED).unlink(missing_ok=True)
            self.manifest = replace(self.manifest, skipped_sha256=None)
        self.manifest = replace(self.manifest, complete=True)
        self.manifest.write(self.folder)
        return self.manifest

    def _write_skipped(self) -> None:
        sha256 = _write_skipped(self.folder, [*self._folders, *self._skipped])
        self.manifest = replace(self.manifest, skipped_sha256=sha256)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A complete embeddings folder, opened for reading."""

    folder: Place
    manifest: Manifest
    first: int | None = None  # the number of the first shard, where it is not all of them

    @property
    def identity(self) -> str:
        """What tells this set from all others: the sha256 of its manifest, `#` and the numbers of
        its first and last shard where it is not all of them."""
        whole = sha256_of(self.folder / MANIFEST)
        if self.first is None:
            return whole
        return f"{whole}#{self.first}-{self.first + len(self.manifest.shards) - 1}"

    def some(self, first: int, count: int) -> Self:
        """The rows of `count` shards from the shard `first` on."""
        shards = self.manifest.shards[first : first + count]
        return replace(self, manifest=replace(self.manifest, shards=shards), first=first)

    @property
    def facts(self) -> Facts:
        """What these embeddings are."""
        return self.manifest.facts

    def __len__(self) -> int:
        return self.manifest.rows

    def tables(self) -> Iterator[pa.Table]:
        """The shards, one table at a time. Raises BadData for one that is not as listed."""
        for shard in self.manifest.shards:
            yield read_shard(self.folder, shard, self.facts)

    def vectors(self) -> Vectors:
        """All embeddings, (n, dim) float32."""
        return self.read()[1]

    def rows(self) -> pa.Table:
        """The table of id, label and path. Raises what `read` raises."""
        return self._joined([table.select([*ROWS]) for table in self.tables()])

    def read(self) -> tuple[pa.Table, Vectors]:
        """The table of id, label and path, and the embeddings (n, dim), in the same order.

        Raises BadData for a damaged shard, an embedding that is not finite, or an id that
        stands twice.
        """
        vectors = np.empty((len(self), self.facts.dim), np.float32)
        rows = []
        start = 0
        for table in self.tables():
            vectors[start : start + len(table)] = vectors_of(table)
            rows.append(table.select([*ROWS]))
            start += len(table)
        return self._joined(rows), vectors

    def _joined(self, rows: Sequence[pa.Table]) -> pa.Table:
        none = pa.schema(ROW_FIELDS).empty_table()
        joined = pa.concat_tables([none, *(table.replace_schema_metadata() for table in rows)])
        check_unique(joined["id"], str(self.folder))
        return joined


def open_embeddings(folder: Place | str) -> Embeddings:
    """The embeddings in the folder, or at the URL.

    Raises BadInput if it is no embeddings folder or not complete, BadData if it is damaged.
    """
    folder = place_of(folder)
    manifest = Manifest.read(folder)
    if not manifest.complete:
        covered = min(
            len(manifest.shards) * manifest.facts.shard_images, manifest.facts.source.images
        )
        raise BadInput(
            f"{folder} is not complete: {covered:,} of {manifest.facts.source.images:,} images "
            "are encoded; run the same 'retr encode' again, and it goes on from there"
        )
    return Embeddings(folder, manifest)


def embeddings_list(sets: Any) -> list[Embeddings]:
    """Return the sets as a list, one set as a list of one.

    Raises BadInput for what is no set, such as the name of a folder that is not opened.
    """
    each = [sets] if isinstance(sets, Embeddings) else sets
    if isinstance(each, Iterable) and not isinstance(each, str | bytes):
        found = list(each)
        if all(isinstance(one, Embeddings) for one in found):
            return found
    raise BadInput(f"the embeddings are {shown(sets)}; open them with open_embeddings")


def read_shard(folder: Place, shard: Shard, facts: Facts) -> pa.Table:
    """The table of one shard, checked: hash, schema, rows, finiteness. Raises BadData."""
    path = folder / shard.file
    remedy = "run the same 'retr encode' again, and it is made anew"
    try:
        if isinstance(path, Path) and path.exists() and not path.is_file():
            raise BadData(f"{path} is no file; {remedy}")  # a pipe or a device has no end
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise BadData(f"{path} is damaged: its sha256 is not the manifest's; {remedy}")
        table = read_table(content)
    except FileNotFoundError:
        raise BadData(f"{path} is missing; {remedy}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); {remedy}") from None
    if not table.schema.equals(facts.schema):
        raise BadData(f"{path} has other columns than its manifest says; {remedy}")
    if len(table) != shard.rows:
        raise BadData(f"{path} has {len(table):,} rows, the manifest says {shard.rows:,}; {remedy}")
    if table["embedding"].null_count or table["id"].null_count:
        raise BadData(f"{path} has rows without id or embedding; {remedy}")
    finite = np.isfinite(vectors_of(table)).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise BadData(f"{path} has NaN or infinity in row {row} ({table['id'][row]}); {remedy}")
    return with_nfc_labels(table)


def with_nfc_labels(table: pa.Table) -> pa.Table:
    """Return the table with its column `label` in Unicode NFC, as new sets have it already."""
    for chunk in table["label"].chunks:
        # One check of all text: `pyarrow.compute` takes its time to import.
        content = chunk.buffers()[2]
        text = "" if content is None else content.to_pybytes().decode("utf-8", "replace")
        if not text.isascii() and not is_normalized("NFC", text):
            break
    else:
        return table
    import pyarrow.compute as pc

    place = table.schema.get_field_index("label")
    labels = pc.utf8_normalize(table["label"], "NFC")
    return table.set_column(place, table.schema.field(place), labels)


def read_table(content: bytes) -> pa.Table:
    """The table of a Parquet file's bytes. Raises OSError or ValueError where they are none.

    `pyarrow.parquet.read_table` would import what reads sets of files, and pandas where it is
    installed, which a search from the command line would wait for.
    """
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        return file.read()


def write_table(path: Path, table: pa.Table, compression: str = "snappy") -> None:
    """Write the table as Parquet, whole or not at all."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            pq.write_table(table, file, compression=compression)

    write_whole(path, write)


def vectors_of(table: pa.Table) -> np.ndarray[tuple[int, int], np.dtype[Any]]:
    """The column `embedding` as an array (n, dim) of the type on disk.

    No copy is made of a table that was read from one shard.
    """
    column = table["embedding"]
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    array: np.ndarray[tuple[int, int], np.dtype[Any]] = (
        chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), column.type.list_size)
    )
    return array


def check_unique(ids: pa.ChunkedArray, where: str) -> None:
    """Raise BadData, naming one, if an id stands twice."""
    if len(ids.unique()) == len(ids):
        return
    counts = ids.value_counts()
    twice = next(entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1)
    raise BadData(
        f"the id '{twice}' stands twice in {where}; ids must be unique: leave out what repeats"
    )


def check_free(folder: Place, owner: str) -> None:
    """Raise BadInput if the folder holds files but not `owner`, the file that says it is ours
    to write into."""
    if not folder.is_dir() or (folder / owner).exists() or (folder / PARTIAL).is_dir():
        return  # new, ours, or what an index build that was killed left behind
    other = sorted(
        path.name
        for path in folder.iterdir()
        # Left behind by a run that was killed before its first manifest, or with some parts.
        if path.name not in (LOCK, SKIPPED, shard_name(0))
        and not path.name.endswith(PARTIAL)
        and not OF_A_BUILD.fullmatch(path.name)
    )
    if other:
        raise BadInput(
            f"{folder} holds something else ({other[0]}"
            + (f" and {len(other) - 1} more" if len(other) > 1 else "")
            + "); name an empty or new folder with --out"
        )


def _difference(found: Facts, wanted: Facts) -> str:
    """The first fact in which two runs differ, for an error message."""
    if found.encoder != wanted.encoder:
        if found.encoder.name != wanted.encoder.name:
            return f"of encoder {found.encoder.name}, not {wanted.encoder.name}"
        return f"of another version of encoder {found.encoder.name}"
    if found.source != wanted.source:
        if found.source.name != wanted.source.name:
            return f"of {found.source.name}, not {wanted.source.name}"
        return f"of {found.source.name} as it was before it changed"
    if found.dtype != wanted.dtype:
        return f"as {found.dtype}, not {wanted.dtype}"
    return f"in shards of {found.shard_images} images, not {wanted.shard_images}"


def _parquet(table: pa.Table) -> pa.Buffer:
    stream = pa.BufferOutputStream()
    pq.write_table(
        table,
        stream,
        row_group_size=max(1, len(table)),
        use_dictionary=False,
        # Embeddings do not compress; ids and paths do.
        compression={"id": "zstd", "label": "zstd", "path": "zstd"},
        write_statistics=["id", "label", "path"],
    )
    return stream.getvalue()


def _write_skipped(folder: Place, rows: Sequence[_SkippedRow]) -> str:
    """Write the rows of `SKIPPED`; the sha256 of the file."""
    columns = zip(*((storable(path), *others) for path, *others in rows), strict=True)
    table = pa.table([*columns], schema=SKIPPED_SCHEMA)
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    content = stream.getvalue()
    write_whole(folder / SKIPPED, lambda partial: partial.write_bytes(content))
    return hashlib.sha256(content).hexdigest()


def _read_skipped(folder: Place) -> list[_SkippedRow]:
    path = folder / SKIPPED
    if not path.is_file():
        return []
    try:
        table = read_table(path.read_bytes()).cast(SKIPPED_SCHEMA)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadData(f"cannot read {path} ({error}); delete the folder and encode anew") from None
    return [(restored(row["path"]), row["reason"], row["shard"]) for row in table.to_pylist()]
