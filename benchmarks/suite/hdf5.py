"""HDF5 files of ann-benchmarks: vectors and their true neighbors.

`train` (n, dim) is the database, `test` (q, dim) the queries; `neighbors` (q, k) are rows of the
database, nearest first, and `distances` (q, k) are theirs. The attribute `distance` names
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
"""True neighbors of each query in a file that is written."""

METRICS = {"euclidean": Metric.EUCLIDEAN, "angular": Metric.COSINE}
RELATIVE_TOLERANCE = 1e-3
"""Allowed error of a stored distance, as a share of it: files have distances in float32, from
squares that almost cancel."""
ABSOLUTE_TOLERANCE = 1e-5  # allowed distance of copies, which should be 0


@dataclass(frozen=True, slots=True, eq=False)
class BenchmarkData:
    """Queries against a database, without labels.

    neighbors: (q, k), rows of the true neighbors, nearest first; None if they are not known.
    """

    queries: Labelled
    database: Labelled
    metric: Metric
    neighbors: Rows | None

    def __post_init__(self) -> None:
        resolve_choices(self)


def read(path: Path, metric: Metric | str | None = None) -> BenchmarkData:
    """Return the data in a file; with another metric than the file's, neighbors are left out.

    Raises BadInput for a missing file, or one without a metric if none is given; BadData for a
    damaged file, or distances that do not fit its vectors.
    """
    metric = None if metric is None else choice(Metric, metric)
    if not path.is_file():
        raise BadInput(f"{path} not found; give an HDF5 file in the form of ann-benchmarks")
    try:
        with _h5py().File(path, "r") as file:
            return _read(path, file, metric)
    except OSError as error:
        raise BadData(
            f"{path} is damaged or not an HDF5 file ({error}); download it again"
        ) from None


def _read(path: Path, file: Any, metric: Metric | None) -> BenchmarkData:
    own = _metric_of(path, file.attrs.get("distance"), metric)
    database, queries = (_vectors(path, file, name) for name in ("train", "test"))
    if database.shape[1] != queries.shape[1]:
        raise BadData(
            f"{path}: train has dimension {database.shape[1]}, test {queries.shape[1]}; "
            "download it again"
        )
    neighbors = None
    if own is not None and metric is None and "neighbors" in file:
        neighbors = np.asarray(file["neighbors"][()], np.int64)
        stored = np.asarray(file["distances"][()]) if "distances" in file else None
        _check_neighbors(path, queries, database, neighbors, stored, own)
    chosen = metric or own
    assert chosen is not None  # otherwise an error above
    return BenchmarkData(
        _labelled("test", queries), _labelled("train", database), chosen, neighbors
    )


def write(path: Path, queries: Vectors, database: Vectors, metric: Metric | str) -> None:
    """Write the vectors and their true neighbors; the file is complete or absent.

    Raises BadInput for a metric that ann-benchmarks lacks, CannotWrite if the disk is full.
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
        raise BadInput("h5py is not installed; pip install 'retr[hdf5]'") from None
    return h5py


def _metric_of(path: Path, name: object, given: Metric | None) -> Metric | None:
    """Return the metric that the file names. Raises BadInput if none is known or given."""
    own = METRICS.get(name.decode() if isinstance(name, bytes) else str(name))
    if own is None and given is None:
        said = "names no metric" if name is None else f"has the metric {name}"
        raise BadInput(f"{path} {said}, and retr supports {' and '.join(METRICS)}; give --metric")
    return own


def _vectors(path: Path, file: Any, name: str) -> Vectors:
    """Return a table of vectors (n, dim) as float32. Raises BadData if it is missing."""
    table = file.get(name)
    shape = getattr(table, "shape", None)
    if shape is None or len(shape) != 2 or 0 in shape or table.dtype.kind not in "fiu":
        raise BadData(
            f"{path} has no numeric table {name} (n, dim); give a file in the form of "
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
        raise BadData(f"{path}: some neighbors are not rows of train; download it again")
    if stored is None:
        return
    distances = distances_of(queries, database, neighbors, metric)
    # A share of the farthest neighbor's distance: distances near zero are mostly rounding.
    allowed = (
        RELATIVE_TOLERANCE * distances.max(axis=1, keepdims=True, initial=0.0) + ABSOLUTE_TOLERANCE
    )
    if stored.shape != distances.shape or not (np.abs(stored - distances) <= allowed).all():
        raise BadData(
            f"{path}: its distances are not those of its vectors by metric {metric}; download it "
            "again, or give --metric to compute the neighbors again"
        )


def _labelled(name: str, vectors: Vectors) -> Labelled:
    ids = [f"{name}/{row}" for row in range(len(vectors))]
    return Labelled(vectors, ids, [None] * len(vectors))
