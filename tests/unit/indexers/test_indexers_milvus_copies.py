"""Copies in the backend Milvus: stored once, found as all their rows. Needs Milvus Lite."""

import json
from pathlib import Path

import numpy as np
import pytest

from indexers.exact import Exact
from indexers.milvus import collection, holding
from indexers.milvus.backend import Milvus
from indexers.milvus.holding import FACTS, CollectionFacts
from indexers.milvus.index import MilvusIndex
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData, Mismatch
from retrieval.index.build import build_index
from retrieval.index.folder import open_index
from retrieval.index.searching import Searcher
from tests.made import embeddings

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs Milvus Lite: see the Makefile")

pytestmark = pytest.mark.usefixtures("no_server")

ROWS, DISTINCT, DIM = 90, 60, 6
SOURCES = np.concatenate([np.arange(30), np.arange(60)])
"""The vector of each row: rows 30 to 59 are copies of rows 0 to 29."""


def vectors(rows: int = DISTINCT, seed: int = 1) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def labels() -> list[str | None]:
    """Return labels; copies have 'first' and 'second', so that a vector's rows differ in label."""
    return ["first"] * 30 + ["second"] * 30 + ["alone"] * 30


@pytest.mark.parametrize("index_type", ["HNSW", "IVF_FLAT", "FLAT"])
@pytest.mark.parametrize("place", ["lite", "server"])
def test_filters_admit_a_vector_by_any_of_its_rows(
    place: str, index_type: str, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "server":
        monkeypatch.setenv("MILVUS_URI", server)
    data = vectors()[SOURCES]
    folder = tmp_path / "index"
    options = {"index_type": index_type, "n_probe": 64}
    made = embeddings(tmp_path / "a", data, labels=labels())
    facts = build_index([made], "milvus", folder, options=options)
    assert facts.details["distinct"] == DISTINCT
    monkeypatch.delenv("MILVUS_URI", raising=False)
    searcher = Searcher.open(folder)
    index = searcher.opened.index
    assert isinstance(index, MilvusIndex) and len(index) == ROWS
    with index.database.connected() as client:
        stored = client.query(index.database.collection, filter="row < 99", output_fields=["id"])
    assert [each["id"] for each in stored] == [f"a{i}" for i in [*range(30), *range(60, 90)]]
    true = Exact(Metric.EUCLIDEAN, "cpu").build(data)
    queries = vectors(7, 2)
    assert np.array_equal(searcher.hits(queries, 50).rows, true.search(queries, 50).rows)
    named = np.array(labels())
    for where in (["first"], ["second"], ["alone"], ["second", "alone"]):
        mask = np.isin(named, where)
        expected = true.search(queries, 25, mask).rows
        found = searcher.hits(queries, 25, f"label={','.join(where)}")
        assert np.array_equal(found.rows, expected), where
        assert np.array_equal(index.search(queries, 25, mask).rows, expected), where
    assert searcher.hits(queries[:1], 2, "id=a31,a1").rows.tolist() == [[1, 31]]
    assert searcher.hits(queries[:1], 1, "id=a31").rows.tolist() == [[31]]


def test_fetched_vectors_are_those_of_the_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks with and without gaps, of more rows than one request fetches."""
    monkeypatch.setattr("indexers.milvus.index.ROWS_PER_FETCH", 7)
    data = vectors()[SOURCES]
    monkeypatch.setattr(MilvusIndex, "_is_longer", lambda *_: True)
    true = Exact(Metric.EUCLIDEAN, "cpu").build(data)
    rows = np.arange(ROWS)
    for mask in (rows >= 30, rows < 40, rows % 3 == 0, (rows > 20) & (rows < 70)):
        index = Milvus(Metric.EUCLIDEAN).build(data)
        found = index.search(vectors(3, 2), 20, mask)
        assert np.array_equal(found.rows, true.search(vectors(3, 2), 20, mask).rows)


def test_a_killed_build_with_copies_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = vectors()[SOURCES]
    some = embeddings(tmp_path / "a", data, labels=labels())
    folder = tmp_path / "index"
    insert, firsts = collection.insert, []

    def fail(database: object, keys: object, *others: object, **named: object) -> None:
        firsts.append(keys[0])  # type: ignore[index]
        insert(database, keys, *others, **named)  # type: ignore[arg-type]
        if len(firsts) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(holding, "BATCH_ROWS", 20)
    monkeypatch.setattr(collection, "insert", fail)
    with pytest.raises(KeyboardInterrupt):
        build_index([some], "milvus", folder)
    assert build_index([some], "milvus", folder).details["resumed_at"] == 40
    assert firsts == [0, 20, 70]
    true = Exact(Metric.EUCLIDEAN, "cpu").build(data).search(vectors(4, 2), 20)
    found = open_index(folder, {"ef": 200}).index.search(vectors(4, 2), 20)
    assert np.array_equal(found.rows, true.rows)


def test_the_version_says_whether_copies_are_stored_once(tmp_path: Path, server: str) -> None:
    plain, copies = tmp_path / "plain", tmp_path / "copies"
    build_index([embeddings(tmp_path / "a", vectors())], "milvus", plain)
    options = {"uri": server, "collection": "copies"}
    build_index([embeddings(tmp_path / "b", vectors()[SOURCES])], "milvus", copies, None, options)
    facts = {folder: json.loads((folder / FACTS).read_text()) for folder in (plain, copies)}
    assert facts[plain]["version"] == 1 and "distinct" not in facts[plain]["holds"]
    assert facts[copies]["version"] == 2 and facts[copies]["holds"]["distinct"] == DISTINCT
    holds = CollectionFacts.read(facts[copies]["holds"], "facts")
    assert holds.text().startswith("retr-milvus 2 ") and CollectionFacts.of(holds.text()) == holds

    for wrong in (0, ROWS + 1, True, "60"):
        with pytest.raises(BadData, match=r"facts: .*distinct"):
            CollectionFacts.read({**facts[copies]["holds"], "distinct": wrong}, "facts")
    del facts[copies]["holds"]["distinct"]  # a collection that links every copy lacks it
    (copies / FACTS).write_text(json.dumps(facts[copies]))
    with pytest.raises(BadData, match="has 60 vectors, the graph 90"):
        Milvus().load(copies)
    (copies / "copies.parquet").unlink()
    with pytest.raises(Mismatch, match="has 60 vectors, not 90"):
        Milvus().load(copies)
    facts[copies]["holds"]["distinct"] = DISTINCT
    (copies / FACTS).write_text(json.dumps(facts[copies]))
    with pytest.raises(BadData, match="has 60 rows, not 90"):
        Milvus().load(copies)
