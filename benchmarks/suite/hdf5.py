"""Data as ann-benchmarks has it: an HDF5 file with vectors and their true neighbours.

`train` (n, dim) is the database, `test` (q, dim) the queries; `neighbors` (q, k) are rows of the
database, nearest first, and `distances` (q, k) how far they are. The attribute `distance` names
the metric: `euclidean`, or `angular`, 1 minus the cosine. Aumüller, Bernhardsson and Faithfull,
ANN-Benchmarks, arXiv:1807.05614.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData, BadInput, CannotWrite
from retrieval.quality.labelled import Labelled
from retrieval.quality.ranking import Rows, distances_of, nearest
from retrieval.storage.files import made_folder, write_whole

NEIGHBORS = 100
"""How many true neighbours of a query the files have."""

METRICS = {"euclidean": Metric.EUCLIDEAN, "angular": Metric.COSINE}
TOLERANCE = 1e-3
"""By how much of its size a stored distance may differ from that of the vectors: theirs are of
float32, and of squares that almost cancel."""
ROUNDING = 1e-5  # of distances of copies, which should be 0


@dataclass(frozen=True, slots=True, eq=False)
class BenchmarkData:
    """Queries against a database, without labels.

    neighbors: (q, k), the rows of the true neighbours, nearest first; None where these are not
    known.
    """

    queries: Labelled
    database: Labelled
    metric: Metric
    neighbors: Rows | None

    def __post_init__(self) -> None:
        resolve_choices(self)


def read(path: Path, metric: Metric | str | None = None) -> BenchmarkData:
    """The data in a file; with a metric in place of the file's own, its neighbours are left out.

    Raises BadInput where there is no such file, or it names no metric and none is given; BadData
    where it is damaged, or its distances are not those of its vectors.
    """
    metric = None if metric is None else choice(Metric, metric)
    if not path.is_file():
        raise BadInput(f"{path} is not there; give an HDF5 file in the form of ann-benchmarks")
    try:
        with _h5py().File(path, "r") as file:
            return _read(path, file, metric)
    except OSError as error:
        raise BadData(f"{path} is no HDF5 file, or damaged ({error}); fetch it again") from None


def _read(path: Path, file: Any, metric: Metric | None) -> BenchmarkData:
    own = _metric_of(path, file.attrs.get("distance"), metric)
    database, queries = (_vectors(path, file, name) for name in ("train", "test"))
    if database.shape[1] != queries.shape[1]:
        raise BadData(
            f"{path}: train has dimension {database.shape[1]}, test {queries.shape[1]}; fetch it "
            "again"
        )
    neighbors = None
    if own is not None and metric is None and "neighbors" in file:
        neighbors = np.asarray(file["neighbors"][()], np.int64)
        stored = np.asarray(file["distances"][()]) if "distances" in file else None
        _check_neighbors(path, queries, database, neighbors, stored, own)
    chosen = metric or own
    assert chosen is not None  # else refused above
    return BenchmarkData(
        _labelled("test", queries), _labelled("train", database), chosen, neighbors
    )


def write(path: Path, queries: Vectors, database: Vectors, metric: Metric | str) -> None:
    """Write the vectors and their true neighbours, whole or not at all.

    Raises BadInput for a metric that ann-benchmarks has not, CannotWrite where there is no room.
    """
    metric = choice(Metric, metric)
    names = {metric: name for name, metric in METRICS.items()}
    if metric not in names:
        raise BadInput(
            f"ann-benchmarks has no metric {metric}; give --metric euclidean or --metric cosine"
        )
    h5py = _h5py()
    made_folder(path.parent)
    if path.is_dir():
        raise BadInput(f"{path} is a folder; name a file")
    hits = nearest(queries, database, metric, min(NEIGHBORS, len(database)))

    def write_file(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            file.attrs["type"] = "dense"
            file.attrs["point_type"] = "float"
            file.attrs["distance"] = names[metric]
            file.attrs["dimension"] = queries.shape[1]
            file["train"] = database
            file["test"] = queries
            file["neighbors"] = hits.rows.astype(np.int32)
            file["distances"] = hits.distances

    try:
        write_whole(path, write_file)
    except OSError as error:
        raise CannotWrite(path, error) from None


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise BadInput("there is no h5py; pip install 'retr[hdf5]'") from None
    return h5py


def _metric_of(path: Path, name: object, given: Metric | None) -> Metric | None:
    """The metric that the file names. Raises BadInput where none is known or given."""
    own = METRICS.get(name.decode() if isinstance(name, bytes) else str(name))
    if own is None and given is None:
        said = "names no metric" if name is None else f"has the metric {name}"
        raise BadInput(f"{path} {said}, and retr reads {' and '.join(METRICS)}; give --metric")
    return own


def _vectors(path: Path, file: Any, name: str) -> Vectors:
    """A table of vectors (n, dim) as float32. Raises BadData where there is none."""
    table = file.get(name)
    shape = getattr(table, "shape", None)
    if shape is None or len(shape) != 2 or 0 in shape or table.dtype.kind not in "fiu":
        raise BadData(
            f"{path} has no vectors {name} (n, dim) of numbers; give a file in the form of "
            "ann-benchmarks"
        )
    return np.asarray(table[()], np.float32)


def _check_neighbors(
    path: Path,
    queries: Vectors,
    database: Vectors,
    neighbors: Rows,
    stored: Any,
    metric: Metric,
) -> None:
    """Raise BadData unless these are rows of the database at the stored distances."""
    if neighbors.ndim != 2 or len(neighbors) != len(queries):
        raise BadData(f"{path}: neighbors are {neighbors.shape}, not a row for each test vector")
    if neighbors.size and not 0 <= neighbors.min() <= neighbors.max() < len(database):
        raise BadData(f"{path}: neighbors are not all rows of train; fetch it again")
    if stored is None:
        return
    distances = distances_of(queries, database, neighbors, metric)
    # A thousandth of a query's farthest neighbour, as what is near zero is mostly rounding.
    allowed = TOLERANCE * distances.max(axis=1, keepdims=True, initial=0.0) + ROUNDING
    if stored.shape != distances.shape or not (np.abs(stored - distances) <= allowed).all():
        raise BadData(
            f"{path}: its distances are not those of its vectors by metric {metric}; fetch it "
            "again, or give --metric to have its neighbours worked out anew"
        )


def _labelled(name: str, vectors: Vectors) -> Labelled:
    ids = [f"{name}/{row}" for row in range(len(vectors))]
    return Labelled(vectors, ids, [None] * len(vectors))
