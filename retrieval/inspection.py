"""What a folder is, and whether it is whole."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from retrieval.errors import BadData, BadInput
from retrieval.indexing import INDEX, IndexFacts, check_files, open_index
from retrieval.shards import MANIFEST, SKIPPED, Manifest, check_unique, open_embeddings, read_shard


class Kind(StrEnum):
    """The kinds of folder that retr writes."""

    EMBEDDINGS = "embeddings"
    INDEX = "index"


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a check; `problems` is empty where all is well."""

    kind: Kind
    rows: int
    files: int
    problems: tuple[str, ...]


def kind_of(folder: Path) -> Kind:
    """What the folder is. Raises BadInput if it is neither embeddings nor index."""
    if (folder / MANIFEST).is_file():
        return Kind.EMBEDDINGS
    if (folder / INDEX).is_file():
        return Kind.INDEX
    if not folder.exists():
        raise BadInput(f"{folder} is not there; name an embeddings or an index folder")
    raise BadInput(
        f"{folder} is neither embeddings (no {MANIFEST}) nor an index (no {INDEX}); "
        "name a folder that 'retr encode' or 'retr index' made"
    )


def verify(folder: Path) -> Report:
    """Check hashes, schema, counts, finiteness and the uniqueness of ids of the folder."""
    if kind_of(folder) is Kind.EMBEDDINGS:
        return _verify_embeddings(folder)
    return _verify_index(folder)


def _verify_embeddings(folder: Path) -> Report:
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
    listed = {shard.file for shard in manifest.shards}
    stray = sorted(p.name for p in folder.glob("*.parquet") if p.name not in listed | {SKIPPED})
    problems += [f"{folder / name} is not in the manifest; delete it" for name in stray]
    if (manifest.skipped > 0) != (folder / SKIPPED).exists():
        problems.append(
            f"{folder / SKIPPED} and the manifest do not agree: {manifest.skipped:,} skipped images"
        )
    return Report(Kind.EMBEDDINGS, manifest.rows, len(manifest.shards), tuple(problems))


def _verify_index(folder: Path) -> Report:
    facts = IndexFacts.read(folder)
    problems: list[str] = []
    try:
        check_files(folder, facts)
        check_unique(open_index(folder).rows["id"], str(folder))
    except BadInput as error:
        problems.append(str(error))
    return Report(Kind.INDEX, facts.rows, len(facts.files), tuple(problems))
