"""Files of ann-benchmarks: what is written is what their own code would read, and is read back."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from benchmarks.suite import hdf5
from benchmarks.suite.run import run
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData, BadInput, CannotWrite
from retrieval.quality.ranking import Rows


def vectors(n: int, seed: int) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, 8), dtype=np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "data.hdf5"
    hdf5.write(path, vectors(20, 0), vectors(300, 1), Metric.EUCLIDEAN)
    return path


@pytest.mark.parametrize(
    ("metric", "name"), [(Metric.EUCLIDEAN, "euclidean"), (Metric.COSINE, "angular")]
)
def test_the_form_of_ann_benchmarks(tmp_path: Path, metric: Metric, name: str) -> None:
    queries, database = vectors(20, 0), vectors(300, 1)
    path = tmp_path / "data.hdf5"
    hdf5.write(path, queries, database, metric)
    with h5py.File(path) as file:
        assert {*file} == {"train", "test", "neighbors", "distances"}
        assert dict(file.attrs) == {
            "type": "dense", "point_type": "float", "distance": name, "dimension": 8,
        }  # fmt: skip
        assert np.array_equal(file["train"], database) and np.array_equal(file["test"], queries)
        rows, distances = file["neighbors"][()], file["distances"][()]
    assert rows.shape == distances.shape == (20, 100)
    if metric is Metric.COSINE:
        queries, database = (v / np.linalg.norm(v, axis=1)[:, None] for v in (queries, database))
        every = 1 - queries @ database.T
    else:
        every = np.linalg.norm(queries[:, None] - database, axis=2)
    assert np.array_equal(rows, np.argsort(every, axis=1)[:, :100])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :100], atol=1e-5)
    found = hdf5.read(path)
    assert found.metric is metric
    assert found.neighbors is not None and np.array_equal(found.neighbors, rows)
    assert found.queries.ids[1] == "test/1" and found.database.labels[0] is None


def test_known_neighbors_are_not_computed_again(file: Path) -> None:
    data = hdf5.read(file)
    assert data.neighbors is not None

    def recall(neighbors: Rows | None) -> float:
        report = run(
            data.queries, data.database, data.metric, ["exact"], repeats=1, neighbors=neighbors
        )
        assert report.rows[0].map_loss is None  # without labels
        return report.rows[0].recall_at[10]

    assert recall(data.neighbors) == recall(None) == 1
    first = np.repeat(data.neighbors[:, :1], 100, axis=1)  # all true neighbors equally near
    assert recall(first) == pytest.approx(0.1)
    assert recall(first[:, :50]) == 1  # too few to judge by


def test_another_metric_has_other_neighbors(file: Path) -> None:
    data = hdf5.read(file, Metric.COSINE)
    assert (data.metric, data.neighbors) == (Metric.COSINE, None)


def test_neighbors_may_be_missing(file: Path) -> None:
    with h5py.File(file, "r+") as data:
        del data["distances"]
    assert hdf5.read(file).neighbors is not None
    with h5py.File(file, "r+") as data:
        del data["neighbors"]
    assert hdf5.read(file).neighbors is None


def replaced(name: str, value: Any) -> Any:
    def change(file: Any) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced("train", None), "no numeric table train"),
        (replaced("test", np.zeros(8)), "no numeric table test"),
        (replaced("test", np.zeros((0, 8))), "no numeric table test"),
        (replaced("test", np.zeros((3, 8), "S4")), "no numeric table test"),
        (replaced("test", np.zeros((3, 7))), "train has dimension 8, test 7"),
        (replaced("neighbors", np.zeros((3, 100), int)), "not a row for each test vector"),
        (replaced("neighbors", np.full((20, 100), 300)), "not rows of train"),
        (replaced("neighbors", np.full((20, 100), -1)), "not rows of train"),
        (replaced("distances", np.zeros((20, 99))), "not those of its vectors"),
        (replaced("distances", np.zeros((20, 100))), "give --metric"),
        (replaced("distances", np.full((20, 100), np.nan)), "not those of its vectors"),
    ],
)
def test_damaged_files_are_refused(file: Path, change: Any, message: str) -> None:
    with h5py.File(file, "r+") as data:
        change(data)
    with pytest.raises(BadData, match=message):
        hdf5.read(file)


def test_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing\.hdf5 not found"):
        hdf5.read(tmp_path / "nothing.hdf5")
    text = tmp_path / "text.hdf5"
    text.write_text("no HDF5 at all")
    with pytest.raises(BadData, match="is damaged or not an HDF5 file"):
        hdf5.read(text)
    for name, said in (("jaccard", "has the metric jaccard"), (None, "names no metric")):
        with h5py.File(file, "r+") as data:
            del data.attrs["distance"]
            if name is not None:
                data.attrs["distance"] = name
        with pytest.raises(BadInput, match=f"{said}, and retr supports euclidean and angular"):
            hdf5.read(file)
        assert hdf5.read(file, Metric.EUCLIDEAN).neighbors is None
        with h5py.File(file, "r+") as data:
            data.attrs["distance"] = "euclidean"
    with pytest.raises(BadInput, match="no metric inner_product"):
        hdf5.write(tmp_path / "new.hdf5", vectors(2, 0), vectors(3, 1), Metric.INNER_PRODUCT)
    assert not (tmp_path / "new.hdf5").exists()


def test_a_file_with_a_damaged_part(tmp_path: Path) -> None:
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "euclidean"
        file.create_dataset("train", data=vectors(300, 1), chunks=(300, 8), compression="gzip")
        offset = file["train"].id.get_chunk_info(0).byte_offset
        file["test"] = vectors(20, 0)
    content = bytearray(path.read_bytes())
    content[offset : offset + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(BadData, match="is damaged or not an HDF5 file"):
        hdf5.read(path)


def test_copies_do_not_count_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "data.hdf5"
    copies = np.tile(1e3 * vectors(1, 0), (150, 1))
    hdf5.write(path, copies[:3], copies, Metric.COSINE)
    with h5py.File(path, "r+") as file:
        file["distances"][...] = 1e-7  # as float32 has it
    assert hdf5.read(path).neighbors is not None


def test_unwritable_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="is a folder; name a file"):
        hdf5.write(tmp_path, vectors(2, 0), vectors(7, 1), Metric.EUCLIDEAN)

    def full(path: Path, write: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hdf5, "write_whole", full)
    with pytest.raises(CannotWrite, match="No space left on device"):
        hdf5.write(tmp_path / "x.hdf5", vectors(2, 0), vectors(7, 1), Metric.EUCLIDEAN)


def test_a_small_database_has_fewer_neighbors(tmp_path: Path) -> None:
    path = tmp_path / "small.hdf5"
    hdf5.write(path, vectors(2, 0), vectors(7, 1), Metric.EUCLIDEAN)
    data = hdf5.read(path)
    assert data.neighbors is not None and data.neighbors.shape == (2, 7)
    report = run(data.queries, data.database, data.metric, ["exact"], repeats=1)
    assert report.rows[0].recall_at[100] == 1
