"""Facts about a Milvus collection, stored in the collection and in milvus.json."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self, cast

from indexers.milvus.database import Database, Server, files_in
from retrieval.contracts import Json
from retrieval.errors import BadData
from retrieval.storage.document import fields_of, parsed
from retrieval.storage.files import check_format, read_json, write_json

FACTS = "milvus.json"
FORMAT, VERSION = "retr-milvus", 2  # version 1 has a row for each copy of a vector

REMEDY = "build the index again"

BATCH_BYTES = 2**22  # vectors of one insert; servers accept up to 64 MB
BATCH_ROWS = 5_000


@dataclass(frozen=True)
class CollectionFacts:
    """The content of a collection: its source, its size and its Milvus index.

    encoder, source: as in `Items`; empty for vectors without ids and labels.
    rows: number of rows of the retr index.
    build: parameters of Milvus's index.
    distinct: number of distinct vectors, which are the rows of the collection. None if all vectors
    differ, and in version 1, whose collections have a row for each copy.
    """

    encoder: str
    source: list[str]
    rows: int
    dim: int
    metric: str
    index_type: str
    build: dict[str, Json]
    distinct: int | None = None

    @property
    def version(self) -> int:
        """The oldest version of the format that has these facts."""
        return 1 if self.distinct is None else 2

    @property
    def stored(self) -> int:
        """Number of rows of the collection."""
        return self.rows if self.distinct is None else self.distinct

    @property
    def batch_rows(self) -> int:
        """Number of rows in one insert."""
        return max(1, min(BATCH_ROWS, BATCH_BYTES // (4 * self.dim)))

    def name(self) -> str:
        """Return a name for the collection, the same for the same content."""
        return f"retr_{sha256(self.text().encode()).hexdigest()[:16]}"

    def text(self) -> str:
        """Return the text that is stored in the collection."""
        return f"{FORMAT} {self.version} {json.dumps(self.document(), sort_keys=True)}"

    def document(self) -> dict[str, Json]:
        """Return the fields as JSON."""
        document: dict[str, Json] = asdict(self)
        if self.distinct is None:
            del document["distinct"]
        return document

    @classmethod
    def of(cls, text: str) -> "CollectionFacts | None":
        """Read the text of a collection; return None for a text that retr did not write."""
        form, _, rest = text.partition(" ")
        version, _, document = rest.partition(" ")
        try:
            if form != FORMAT or int(version) > VERSION:
                return None
            return cls.read(json.loads(document), "the collection")
        except (BadData, ValueError):
            return None

    @classmethod
    def read(cls, document: object, where: object) -> Self:
        """Read the fields from JSON. Raises BadData, which names `where`."""
        return parsed(document, cls, where, REMEDY).checked(where)

    def checked(self, where: object) -> Self:
        """Return the facts. Raises BadData if their numbers of rows are impossible."""
        if not 1 <= self.stored <= self.rows:
            raise BadData(f"{where}: {self.stored:,} distinct vectors of {self.rows:,}; {REMEDY}")
        return self


@dataclass(frozen=True)
class _Document:
    """milvus.json, apart from its format."""

    collection: str
    uri: str | None
    holds: CollectionFacts
    bytes: dict[str, int]


def write_facts(folder: Path, database: Database, holds: CollectionFacts) -> None:
    """Write milvus.json. Milvus Lite's files must be in the folder."""
    sizes: dict[str, Json] = {file.name: file.stat().st_size for file in files_in(folder)}
    facts: dict[str, Json] = {
        "format": FORMAT,
        "version": holds.version,
        "collection": database.collection,
        "uri": database.uri if isinstance(database, Server) else None,
        "holds": cast(Json, holds.document()),
        "bytes": sizes,
    }
    write_json(folder / FACTS, facts)


def read_facts(folder: Path) -> tuple[str, str | None, CollectionFacts]:
    """Read milvus.json: the collection, the server's address or None, and the facts.

    Raises BadData.
    """
    path = folder / FACTS
    document = read_json(path)
    check_format(document, FORMAT, VERSION, path)
    facts = parsed(fields_of(document, _Document), _Document, path, REMEDY)
    there = {file.name: file.stat().st_size for file in files_in(folder)}
    for name in sorted({*facts.bytes, *there}):
        if facts.bytes.get(name) != there.get(name):
            raise BadData(
                f"{folder / name} has {there.get(name, 0):,} of {facts.bytes.get(name, 0):,} "
                f"bytes; {REMEDY}"
            )
    return facts.collection, facts.uri, facts.holds.checked(path)
