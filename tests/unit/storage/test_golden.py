"""Folders and files of every format version that was ever released, opened by the code of today."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.suite import report
from retrieval.contracts import Framing, Metric
from retrieval.index.folder import open_index
from retrieval.index.searching import Searcher
from retrieval.inspection import verify
from retrieval.pairs.calibration import Calibration, FittedTo, Method
from retrieval.quality.exchange import read_queries
from retrieval.quality.labelled import Labelled
from retrieval.quality.protocols import Protocol, read_draw
from retrieval.registry import make_indexer, open_encoder
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import Dtype

GOLDEN = Path(__file__).parents[2] / "golden"
V1 = GOLDEN / "v1"
EXPECTED = np.array(
    [
        [0, 0, 0, 1],
        [1, 0.5, -0.25, 1],
        [2, 1, -0.5, 1],
        [3, 1.5, -0.75, 1],
        [4, 2, -1, 1],
        [5, 2.5, -1.25, 1],
    ],
    np.float32,
)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_embeddings(version: str) -> None:
    embeddings = open_embeddings(GOLDEN / version / "embeddings")
    rows, vectors = embeddings.read()
    assert vectors.dtype == np.float32
    assert vectors.tolist() == EXPECTED.tolist()
    assert rows.to_pydict() == {
        "id": [f"train/{i:05d}" for i in range(6)],
        "label": ["even", None, "even", None, "even", None],
        "path": [f"images/{i}.png" for i in range(6)],
    }
    facts = embeddings.facts
    assert (facts.encoder.name, facts.encoder.fingerprint) == ("golden", "0" * 64)
    assert (facts.dim, facts.dtype, facts.metric) == (4, Dtype.FLOAT16, Metric.EUCLIDEAN)
    assert (facts.source.name, facts.source.images) == ("golden/train", 7)
    assert [shard.rows for shard in embeddings.manifest.shards] == [4, 2]
    assert embeddings.manifest.skipped == 1
    assert verify(GOLDEN / version / "embeddings").problems == ()


@pytest.mark.parametrize(
    "index",
    [
        *(
            f"{version}/{backend}"
            for version in ("v1", "v2")
            for backend in ("exact", "ivf", "hnsw")
        ),
        "v2/milvus",
        "v2/parts",
    ],
)
def test_indices(index: str) -> None:
    if index.endswith("milvus"):
        pytest.importorskip("milvus_lite", reason="needs Milvus Lite: see the Makefile")
    opened = open_index(GOLDEN / index)
    hits = opened.index.search(EXPECTED[4:5], 3)
    assert hits.rows.tolist()[0] == [4, 3, 5]
    step = np.sqrt(1 + 0.25 + 0.0625)
    np.testing.assert_allclose(hits.distances[0], [0, step, step], rtol=1e-6)
    assert opened.rows["path"].to_pylist()[4] == "images/4.png"
    assert verify(GOLDEN / index).problems == ()


@pytest.mark.parametrize("backend", ["hnsw", "hnsw-pca", "vamana", "milvus"])
def test_graphs_of_distinct_vectors(backend: str) -> None:
    if backend == "milvus":
        pytest.importorskip("milvus_lite", reason="needs Milvus Lite: see the Makefile")
    opened = open_index(GOLDEN / "v3" / f"copies-{backend}")
    assert opened.facts.details["distinct"] == 6
    hits = opened.index.search(EXPECTED[4:5], 4)
    assert hits.rows.tolist()[0] == [4, 6, 3, 5]
    step = np.sqrt(1 + 0.25 + 0.0625)
    np.testing.assert_allclose(hits.distances[0], [0, 0, step, step], rtol=1e-6)
    assert verify(GOLDEN / "v3" / f"copies-{backend}").problems == ()


@pytest.mark.parametrize("bits", [8, 16])
def test_graphs_of_codes(bits: int) -> None:
    """Rows are cos((i + 1) j / 10) for j from 0 to 63, and codes have 31 and 16 axes."""
    rows, columns = np.arange(1, 31)[:, None], np.arange(64)
    vectors = np.cos(rows * columns / 10).astype(np.float32)
    indexer = make_indexer("hnsw-pca", {"metric": "euclidean", "ef": 12})
    index = indexer.load(GOLDEN / "v4" / f"graph-{bits}")
    assert index.details == {"axes": 31 if bits == 8 else 16, "bits": bits}
    hits = index.search(vectors + np.float32(0.01), 3)
    true = np.linalg.norm(vectors[:, None] + np.float32(0.01) - vectors, axis=2)
    assert hits.rows[:, 0].tolist() == list(range(30))
    np.testing.assert_allclose(hits.distances, np.sort(true, axis=1)[:, :3], rtol=1e-4)


@pytest.mark.parametrize("version", ["v3", "v4"])
def test_photographs_and_their_columns(version: str) -> None:
    """Version 3 has no columns; version 4 has those of EXIF and of metadata.csv."""
    embeddings = open_embeddings(GOLDEN / version / "photos")
    opened = open_index(GOLDEN / version / "photos-exact")
    columns = embeddings.columns()
    assert opened.rows.equals(embeddings.rows())
    assert opened.rows["path"].to_pylist()[5] == "/golden/photos/trip/5.jpg"
    if version == "v3":
        assert columns["camera"].to_pylist() == [None] * 6
        assert opened.columns.names == []
    else:
        assert opened.columns.table().equals(columns)
        assert opened.columns.schema == opened.columns.table().schema
        assert columns["camera"].to_pylist() == ["Golden 1"] * 6
        assert columns["stars"].to_pylist() == [5, *[None] * 5]
        assert opened.rows["label"].to_pylist() == ["first", *["trip"] * 5]
        found = Searcher(opened).select(None, "taken > 2024-05-02 and width = 12")
        assert found is not None
        assert found.mask.tolist() == [False, False, True, True, True, True]
    for folder in ("photos", "photos-exact"):
        assert verify(GOLDEN / version / folder).problems == ()


@pytest.mark.parametrize(
    ("version", "fingerprint", "expected"),
    [
        (
            "v1",
            "9c1ce00a31d4c4a0",
            [[0.121, -0.426, -0.063, 0.894, 0.003], [0.298, -0.299, -0.147, 0.888, 0.110]],
        ),
        (
            "v2",
            "b1d56d0c658e95e5",
            [[-0.008, 0.411, 0.175, 0.002, 0.894], [0.129, 0.428, -0.017, 0.0, 0.894]],
        ),
    ],
)
def test_encoder(version: str, fingerprint: str, expected: list[list[float]]) -> None:
    encoder = open_encoder(str(GOLDEN / version / "encoder"))
    assert (encoder.dim, encoder.metric, encoder.framing) == (5, Metric.COSINE, Framing(side=32))
    # With another value, existing embeddings would be refused: raise a version then.
    assert encoder.fingerprint.startswith(fingerprint)
    lying = (np.arange(32 * 32 * 3) * 37 % 100).reshape(32, 32, 3).astype(np.uint8)
    lying[::4] += 150
    standing = np.ascontiguousarray(lying.transpose(1, 0, 2))
    # In float32; bfloat16 rounds on its way through the network.
    np.testing.assert_allclose(encoder.encode(np.stack((lying, standing))), expected, atol=0.03)
    assert verify(GOLDEN / version / "encoder").problems == ()


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("method", "probabilities"),
    [(Method.LOGISTIC, [0.908, 0.576, 0.158]), (Method.ISOTONIC, [1.0, 0.5, 0.0])],
)
def test_calibrations(method: Method, probabilities: list[float], version: str) -> None:
    found = Calibration.read(GOLDEN / version / f"calibration-{method}.json")
    assert (found.method, found.metric, found.encoder) == (method, Metric.COSINE, "0" * 64)
    assert found.fitted_to == FittedTo(9, 6, ("even", "odd"), "golden/test")
    assert (found.threshold, found.ece) == (0.625, None)
    np.testing.assert_allclose(
        found.curve.probability(np.array([0.0, 1.0, 2.0])), probabilities, atol=0.001
    )


def test_an_evaluation() -> None:
    table = read_queries(V1 / "queries.parquet")
    assert table.ids == [f"golden: {i}" for i in range(6)]
    assert table.columns[0] == "map"
    assert table.facts["protocol"] == "unseen"
    # The neighbors of 0 are 1 to 5. 2 and 4 of these are even.
    assert table.values[0, 0] == pytest.approx((1 / 2 + 2 / 4) / 2)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_draw(version: str) -> None:
    ids = [f"golden: {i}" for i in range(6)]
    images = Labelled(EXPECTED, ids, ["even", "odd"] * 3)
    test, train = images.take(np.arange(4)), images.take(np.array([4, 5]))
    sides = read_draw(GOLDEN / version / "draw.json", Protocol.HASHING_54K, test, train)
    assert [*sides.queries.ids] == ids[:2]
    assert [*sides.database.ids] == ids[2:4]
    assert (sides.seed, sides.left_out) == (3, ids[4:])


def test_a_report_of_bench() -> None:
    document = report.read(V1 / "bench.json")
    assert [row["pareto"] for row in document["rows"]] == [True, True]
    changes = report.compare(document, document)
    assert len(changes) == 2 * 8
    assert all(change.better is None for change in changes)
