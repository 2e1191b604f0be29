"""Describe and verify folders of embeddings, indices and encoders."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast

from retrieval.choices import resolve_choices
from retrieval.errors import BadData, BadInput
from retrieval.index.folder import INDEX, IndexFacts, is_index, open_index
from retrieval.registry import open_encoder
from retrieval.storage.cards import CARD, is_trained
from retrieval.storage.files import sha256_of
from retrieval.storage.places import Place
from retrieval.storage.sets.assigned import read_assigned
from retrieval.storage.sets.columns import read_further
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import MANIFEST, Manifest
from retrieval.storage.sets.shard_writer import UPDATE
from retrieval.storage.sets.shards import read_shard
from retrieval.storage.sets.skipped import SKIPPED, UPDATE_SKIPPED, skipped_file
from retrieval.storage.tables import check_unique


class Kind(StrEnum):
    """The kinds of folder that retr writes."""

    EMBEDDINGS = "embeddings"
    INDEX = "index"
    ENCODER = "encoder"


@dataclass(frozen=True, slots=True)
class FolderCheck:
    """Result of a check; `problems` is empty if the folder is intact."""

    kind: Kind
    rows: int  # 0 for an encoder
    files: int
    problems: tuple[str, ...]

    def __post_init__(self) -> None:
        resolve_choices(self)


def kind_of(folder: Place) -> Kind:
    """Return the kind of the folder. Raises BadInput if retr did not write it."""
    if (folder / MANIFEST).is_file():
        return Kind.EMBEDDINGS
    if is_index(folder):
        return Kind.INDEX
    if isinstance(folder, Path) and is_trained(folder):
        return Kind.ENCODER
    if not folder.exists():
        raise BadInput(f"{folder} not found; give an embeddings, an index or an encoder folder")
    raise BadInput(
        f"{folder} is neither embeddings (no {MANIFEST}) nor an index (no {INDEX}) nor an encoder "
        f"(no {CARD}); name a folder that 'retr encode', 'retr index' or 'retr train' made"
    )


def verify(folder: Place) -> FolderCheck:
    """Check hashes, schema, counts, finiteness and the uniqueness of ids of the folder."""
    match kind_of(folder):
        case Kind.EMBEDDINGS:
            return _verify_embeddings(folder)
        case Kind.INDEX:
            return _verify_index(folder)
        case Kind.ENCODER:
            return _verify_encoder(cast(Path, folder))


def _verify_embeddings(folder: Place) -> FolderCheck:
    import pyarrow as pa

    problems: list[str] = []
    manifest = Manifest.read(folder)
    ids = []
    for shard in manifest.shards:
        try:
            ids.append(read_shard(folder, shard, manifest.facts)["id"])
        except BadData as error:
            problems.append(str(error))
    try:
        open_embeddings(folder)
        if ids:
            check_unique(
                pa.chunked_array([c for column in ids for c in column.chunks]), str(folder)
            )
    except BadInput as error:
        problems.append(str(error))
    listed = {shard.file for shard in manifest.shards} | {SKIPPED}
    listed |= {*manifest.column_files}
    try:
        if manifest.columns is not None:
            read_further(folder, manifest.columns.file, manifest.columns.sha256)
        if manifest.assigned is not None:
            read_assigned(folder, manifest.assigned)
    except BadData as error:
        problems.append(str(error))
    if (folder / UPDATE).is_file():
        listed |= {shard.file for shard in Manifest.read(folder, UPDATE).shards} | {UPDATE_SKIPPED}
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".parquet")
    stray = [name for name in names if name not in listed]
    problems += [f"{folder / name} is not in the manifest; delete it" for name in stray]
    skipped = skipped_file(folder, manifest)
    if (manifest.skipped + manifest.skipped_folders > 0) != skipped.is_file():
        problems.append(
            f"{skipped} and the manifest do not agree: {manifest.skipped:,} skipped images and "
            f"{manifest.skipped_folders:,} folders"
        )
    elif (
        manifest.complete
        and manifest.skipped_sha256 is not None
        and manifest.skipped_sha256 != sha256_of(skipped)
    ):
        problems.append(f"{skipped} is damaged: checksum mismatch; encode again")
    return FolderCheck(Kind.EMBEDDINGS, manifest.rows, len(manifest.shards), tuple(problems))


def _verify_index(folder: Place) -> FolderCheck:
    facts = IndexFacts.read(folder)
    problems: list[str] = []
    files = len(facts.files)
    try:
        files = len(facts.paths_in(folder))
        check_unique(open_index(folder).rows["id"], str(folder))
    except BadInput as error:
        problems.append(str(error))
    return FolderCheck(Kind.INDEX, facts.rows, files, tuple(problems))


def _verify_encoder(folder: Path) -> FolderCheck:
    from retrieval.pairs.calibration import CALIBRATIONS, Calibration  # imports SciPy

    problems: list[str] = []
    try:
        open_encoder(str(folder.resolve()), device="cpu")
    except BadInput as error:
        problems.append(str(error))
    calibrations = sorted(folder.glob(CALIBRATIONS))
    for path in calibrations:
        try:
            Calibration.read(path)
        except BadInput as error:
            problems.append(str(error))
    return FolderCheck(Kind.ENCODER, 0, 2 + len(calibrations), tuple(problems))
