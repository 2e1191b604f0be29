"""The queries and the database that the suite measures on."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.suite import hdf5
from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Json, Metric
from retrieval.quality.labelled import Labelled
from retrieval.quality.ranking import Rows
from retrieval.quality.words.texts import text_queries
from retrieval.storage.sets.compatible import check_same_encoder
from retrieval.storage.sets.embeddings import Embeddings, open_embeddings
from retrieval.workspace import Role, Workspace

HELD_OUT_ROWS = 1000  # queries, without a test split


@dataclass(frozen=True, slots=True, eq=False)
class BenchData:
    """Queries and database, with their names.

    encoder: None for vectors that retr did not encode. neighbors: (q, k), the true neighbors if
    they are known.
    """

    queries: Labelled
    database: Labelled
    metric: Metric
    queries_name: str
    database_name: str
    encoder: str | None = None
    neighbors: Rows | None = None

    def __post_init__(self) -> None:
        resolve_choices(self)

    def to_json(self) -> dict[str, Json]:
        """Return the names and counts, as in `data` of `retr bench --json`."""
        return {
            "queries": self.queries_name,
            "database": self.database_name,
            "counts": {"queries": len(self.queries), "database": len(self.database)},
            "encoder": self.encoder,
        }


def data_of_embeddings(
    queries: Embeddings | None, database: Embeddings, metric: Metric | str | None, seed: int
) -> BenchData:
    """Return the data of two embeddings folders.

    queries: None to hold out rows of the database, drawn by seed. metric: None for the encoder's.

    Raises Mismatch for folders of two encoders, BadInput for a database of fewer than 5 rows.
    """
    facts = database.facts
    chosen = facts.metric if metric is None else choice(Metric, metric)
    names = (str(database.folder), facts.encoder.name)
    if queries is None:
        asked, searched = Labelled.of(database).split_off(HELD_OUT_ROWS, seed)
        held_out = f"{len(asked):,} rows held out of {database.folder}"
        return BenchData(asked, searched, chosen, held_out, *names)
    where = str(queries.folder), str(database.folder)
    check_same_encoder(queries.facts.encoder, facts.encoder, *where)
    sides = Labelled.of(queries), Labelled.of(database)
    return BenchData(*sides, chosen, str(queries.folder), *names)


def data_of_texts(file: str, database: Embeddings, metric: Metric | str | None) -> BenchData:
    """Return the data of text queries of a CSV file. Raises the errors of `text_queries`."""
    chosen = None if metric is None else choice(Metric, metric)
    facts = database.facts
    chosen = chosen or facts.metric
    asked = text_queries(file, facts.encoder)
    names = file, str(database.folder), facts.encoder.name
    return BenchData(asked, Labelled.of(database), chosen, *names)


def data_of_hdf5(file: Path, metric: Metric | str | None) -> BenchData:
    """Return the data of a file of ann-benchmarks. Raises the errors of `hdf5.read`."""
    data = hdf5.read(file, metric)
    names = f"{file}: test", f"{file}: train"
    return BenchData(data.queries, data.database, data.metric, *names, neighbors=data.neighbors)


def latest_test_split(workspace: Workspace, database: Embeddings) -> Embeddings | None:
    """Return the workspace's last test split; None unless it belongs to the database.

    It belongs to it if the same encoder made both from the same data set.
    """
    folder = workspace.latest(Role.QUERIES)
    if folder is None:
        return None
    found = open_embeddings(folder)
    same_encoder = found.facts.encoder.fingerprint == database.facts.encoder.fingerprint
    # Splits are named `cifar10/test` or `FOLDER/test`: the data set, and the split.
    sets = {each.facts.source.name.rpartition("/")[0] for each in (found, database)}
    return found if same_encoder and len(sets) == 1 and found.folder != database.folder else None
