"""The backend Milvus: what is stored, filters, resuming, what is refused. Needs Milvus Lite.

Milvus Lite also stands in for a server, on a port of this machine."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexers.exact import Exact
from indexers.milvus import collection, holding
from indexers.milvus import database as milvus_database
from indexers.milvus.backend import Milvus
from indexers.milvus.database import Lite, files_in
from indexers.milvus.holding import FACTS
from indexers.milvus.index import MilvusIndex, expression_of, rows_expression
from retrieval.contracts import Filter, Filtering, Metric, Storing
from retrieval.errors import BadData, BadInput, Mismatch, UnknownName
from retrieval.index.build import UNFINISHED_FOLDER, build_index
from retrieval.index.folder import INDEX, IndexFacts, open_index
from retrieval.index.searching import Searcher
from retrieval.inspection import verify
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.where.selection import select_rows
from tests.made import OTHER, embeddings
from tests.milvus_rows import DIM, collections, vectors

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs Milvus Lite: see the Makefile")

pytestmark = pytest.mark.usefixtures("no_server")


ODD = [
    "cat",
    'say "cat"',
    "it's",
    "back\\slash\\",
    "two\nlines\tand\ra tab",
    "ünï 猫 🐈",
    "a,b",
    "",
]


@pytest.mark.parametrize("place", ["lite", "server"])
def test_ids_labels_and_paths_are_stored_and_filtered_by(
    place: str, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "server":
        monkeypatch.setenv("MILVUS_URI", server)
    labels: list[str | None] = [[*ODD, None][i % 9] for i in range(90)]
    data = vectors(90)
    folder = tmp_path / "index"
    build_index([embeddings(tmp_path / "a", data, labels=labels)], "milvus", folder)
    monkeypatch.delenv("MILVUS_URI", raising=False)
    searcher = Searcher.open(folder)
    index = searcher.opened.index
    assert isinstance(index, MilvusIndex) and isinstance(index, Filtering)
    with index.database.connected() as client:
        stored = client.query(index.database.collection, filter="row < 9", output_fields=["*"])
    assert [each["label"] for each in stored] == [*ODD, None]
    assert [each["id"] for each in stored] == [f"a{i}" for i in range(9)]
    assert {each["path"] for each in stored} == {None}
    np.testing.assert_array_equal([each["vector"] for each in stored], data[:9])

    asked: list[str] = []
    search, query = client.search, client.query

    def told(call: Any) -> Any:
        return lambda *given, **named: (asked.append(named["filter"]), call(*given, **named))[1]

    monkeypatch.setattr(client, "search", told(search))
    monkeypatch.setattr(client, "query", told(query))
    true = Exact(Metric.EUCLIDEAN, "cpu").build(data)
    queries = vectors(3, 2)
    for label in ODD[:-1]:
        mask = np.array([each == label for each in labels])
        hits = searcher.hits(queries, 4, f"label={label}")
        assert hits.rows.tolist() == true.search(queries, 4, mask).rows.tolist(), label
        where = select_rows(searcher.opened.rows, f"label={label}").where
        assert where is not None  # with its other Unicode form
        assert label in where.values
        assert asked and all(expression_of(where) in each for each in asked)
        asked.clear()
    assert searcher.hits(queries, 5, "id=a7,a11").rows.tolist() == [
        [*line, -1, -1, -1] for line in true.search(queries, 2, np.isin(range(90), (7, 11))).rows
    ]
    assert all('id in ["a7", "a11"]' in each for each in asked)
    asked.clear()
    assert searcher.hits(queries, 2, "id = a7 or id = a11").rows.tolist() == [
        [*line] for line in true.search(queries, 2, np.isin(range(90), (7, 11))).rows
    ]
    assert all("row in [7, 11]" in each for each in asked)
    with pytest.raises(UnknownName):
        searcher.hits(queries, 1, "label=dog")
    everything = np.ones(90, np.bool_)
    where = Filter("label", tuple(ODD))
    assert index.search_where(queries, 90, everything, where).rows.min() >= 0


def test_expressions() -> None:
    assert expression_of(Filter("label", ('a"\\', "b\n"))) == 'label in ["a\\"\\\\", "b\\n"]'
    mask = np.array([True, False, False, True, True])
    assert rows_expression(np.arange(5), mask) == "row not in [1, 2]"
    assert rows_expression(np.arange(5), ~mask) == "row in [1, 2]"
    assert rows_expression(np.arange(5, 10), ~mask) == "row in [6, 7]"


@pytest.mark.parametrize("index_type", ["HNSW", "IVF_FLAT", "FLAT", "AUTOINDEX"])
@pytest.mark.parametrize("longer", [False, True])
def test_filters_find_the_true_neighbors_far_from_the_query(
    index_type: str, longer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a walk through the whole graph, or by fetching, whichever costs less."""
    data = vectors(1500)
    data[:700] += 100  # a walk that stops near the query sees none of these
    index = Milvus(Metric.EUCLIDEAN, index_type, ef=10, n_probe=1).build(data)
    monkeypatch.setattr(MilvusIndex, "_is_longer", lambda *_: longer)
    mask = np.arange(1500) < 700
    queries = vectors(5, 2)
    true = Exact(Metric.EUCLIDEAN, "cpu").build(data).search(queries, 10, mask)
    found = index.search(queries, 10, mask)
    assert (found.rows == true.rows).mean() > 0.99
    again = index.search(queries, 10, mask)
    assert np.array_equal(again.rows, found.rows)


@pytest.mark.parametrize("place", ["lite", "server"])
def test_killed_build_is_resumed(place: str, tmp_path: Path, server: str, some: Embeddings) -> None:
    folder, options = tmp_path / "index", {}
    if place == "server":
        options = {"uri": server, "collection": "killed"}
    killed = f"""
import os, signal, sys
from pathlib import Path
from indexers.milvus import collection, holding
from retrieval.index.build import build_index
from retrieval.storage.sets.embeddings import open_embeddings
holding.BATCH_ROWS = 30
insert = collection.insert
def until(database, keys, *others, **more):
    if keys[0] >= 120:
        os.kill(os.getpid(), signal.SIGKILL)
    insert(database, keys, *others, **more)
collection.insert = until
sets, folder = [open_embeddings({str(some.folder)!r})], Path({str(folder)!r})
build_index(sets, "milvus", folder, None, {options!r})
"""
    done = subprocess.run([sys.executable, "-c", killed], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / INDEX).exists()
    if place == "server":
        database = milvus_database.Server("killed", server, named_by_us=True)
        with database.connected() as client:
            assert client.list_indexes("killed") == []  # without which a server does not search
        database.close()
    facts = build_index([some], "milvus", folder, options=options)
    assert facts.details["resumed_at"] == 120
    assert not (folder / UNFINISHED_FOLDER).exists()
    assert verify(folder).problems == ()
    expected = Exact(Metric.EUCLIDEAN, "cpu").build(vectors(200)).search(vectors(4, 2), 20)
    found = open_index(folder, {"ef": 200}).index.search(vectors(4, 2), 20)
    assert np.array_equal(found.rows, expected.rows)


def test_an_unfinished_build_of_other_rows_is_not_taken_up(
    tmp_path: Path, some: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    insert, batches = collection.insert, []

    def fail(*given: Any, **named: Any) -> None:
        insert(*given, **named)
        batches.append(given[1])
        if len(batches) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(holding, "BATCH_ROWS", 30)
    monkeypatch.setattr(collection, "insert", fail)
    with pytest.raises(KeyboardInterrupt):
        build_index([some], "milvus", folder)
    assert (folder / UNFINISHED_FOLDER).is_dir()
    other = embeddings(tmp_path / "b", vectors(100, 3))
    assert "resumed_at" not in build_index([other], "milvus", folder).details
    assert len(open_index(folder).index) == 100
    assert not (folder / UNFINISHED_FOLDER).exists()


def test_bare_vectors_are_deleted_with_the_index(tmp_path: Path) -> None:
    from milvus_lite.server_manager import server_manager_instance

    index = Milvus().build(vectors(50))
    assert isinstance(index.database, Lite)
    place = index.database.folder
    assert place is not None and place.is_dir()
    index.save(tmp_path)
    hits = index.search(vectors(2, 2), 3)  # after its engine was stopped
    among = np.arange(50) < 9
    where = Filter("label", ("even",))
    of_mask = index.search(vectors(2, 2), 3, among)
    assert np.array_equal(index.search_where(vectors(2, 2), 3, among, where).rows, of_mask.rows)
    del index
    assert not place.exists()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for file in tmp_path.iterdir():
        file.chmod(0o444)
    for file in files_in(tmp_path):  # these names: docs/formats.md
        there = tmp_path / "copy" / file.name.replace("+", "/")
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, there)
    client = milvus_database.library().MilvusClient(str(tmp_path / "copy" / "milvus.db"))
    client.load_collection("retr")
    assert client.query("retr", filter="", output_fields=["count(*)"])[0]["count(*)"] == 50
    client.close()
    server_manager_instance.release_server(str(tmp_path / "copy" / "milvus.db"))
    shutil.rmtree(tmp_path / "copy")
    two = [Milvus().load(tmp_path) for _ in range(2)]  # both at once
    for loaded in two:
        assert np.array_equal(loaded.search(vectors(2, 2), 3).rows, hits.rows)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_folders_of_killed_processes_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_database, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = Milvus().build(vectors(3)).database
    left = tmp_path / "retr-milvus-left"
    new = tmp_path / "retr-milvus-new"
    for folder in (left, new):
        folder.mkdir()
    for folder in (left, held.folder):
        assert folder is not None
        os.utime(folder, (time.time() - 3600,) * 2)
    Milvus().build(vectors(3))
    assert not left.exists() and new.exists()
    assert held.folder is not None and held.folder.exists()


def test_what_a_collection_holds_is_checked(tmp_path: Path, server: str, some: Embeddings) -> None:
    options = {"uri": server, "collection": "checked"}
    folder, again = tmp_path / "index", tmp_path / "again"
    build_index([some], "milvus", folder, options=options)
    assert json.loads((folder / FACTS).read_text())["uri"] == server
    assert build_index([some], "milvus", again, options=options).details["resumed_at"] == 200

    def refused(
        match: str, *sets: Embeddings, metric: Metric | None = None, **more: object
    ) -> None:
        new = tmp_path / "new"
        with pytest.raises(Mismatch, match=f"checked of Milvus at .*{match}.*; drop it"):
            build_index(sets, "milvus", new, metric, {**options, **more})
        assert not new.exists()

    refused("of encoder aaaaaaaa, not cccccccc", embeddings(tmp_path / "b", vectors(200), OTHER))
    wide = np.ones((200, DIM + 1), np.float32)
    refused("has 6 dimensions, not 7", embeddings(tmp_path / "c", wide))
    refused("200 rows of other embeddings", embeddings(tmp_path / "d", vectors(200, 3)))
    refused("is for euclidean distances, not cosine", some, metric=Metric.COSINE)
    refused("options .HNSW M=16 efConstruction=200.", some, m=8)

    (shard,) = some.folder.glob("*.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])  # rows that are stored are not read again
    with pytest.raises(BadData, match=str(shard)):
        build_index([some], "milvus", again, options=options)
    shard.write_bytes(whole)
    database = milvus_database.Server("checked", server, named_by_us=True)
    with database.connected() as client:
        assert client.has_collection("checked")
        client.delete("checked", filter="row == 5")
        for call in (
            lambda: open_index(folder),
            lambda: build_index([some], "milvus", again, options=options),
        ):
            with pytest.raises(BadData, match="has 199 rows, not 200; drop it, and"):
                call()
        assert client.has_collection("checked"), "what was complete is never dropped"
        client.drop_collection("checked")
        with pytest.raises(BadInput, match="has no collection checked; index again"):
            open_index(folder)
        client.create_collection("checked", dimension=DIM)
        with pytest.raises(Mismatch, match="was not written by this version of retr"):
            open_index(folder)
    database.close()
    assert [problem for problem in verify(folder).problems if "not written by" in problem]


def test_failed_build_leaves_no_collection(server: str) -> None:
    bad = vectors(40)
    bad[30, 1] = np.nan
    before = collections(server)
    with pytest.raises(BadInput, match="row 30 is not finite"):
        Milvus(uri=server).build(bad)
    assert collections(server) == before


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"index_type": "hnsw"}, "unknown index_type .*HNSW"),
        ({"consistency": "strong"}, "unknown consistency .*Strong"),
        ({"collection": "no-name"}, "invalid collection name"),
        ({"m": 1}, "option m is 1"),
        ({"ef": 0}, "option ef is 0"),
        ({"n_lists": 0}, "option n_lists is 0"),
        ({"metric": Metric.MANHATTAN}, "has no manhattan distance; use the backend exact or ivf"),
    ],
)
def test_options(options: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        Milvus(**options)


def test_damaged_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    Milvus().build(vectors(50)).save(whole)
    names = [file.name for file in files_in(whole)]
    assert any(name.endswith(".idx") for name in names)
    for name in [*names, FACTS]:
        for cut in (True, False):
            folder = tmp_path / "damaged"
            shutil.copytree(whole, folder)
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[:40] if cut else b"x" * len(content))
            with pytest.raises(BadData) as no:
                Milvus().load(folder)
            assert "\n" not in str(no.value) and str(no.value).count("; ") == 1, str(no.value)
            shutil.rmtree(folder)
    facts = json.loads((whole / FACTS).read_text())
    facts["bytes"]["milvus.db+..+..+escaped"] = 1
    (whole / FACTS).write_text(json.dumps(facts))
    (whole / "milvus.db+..+..+escaped").write_text("x")
    with pytest.raises(BadData, match="is not a file of Milvus Lite"):
        Milvus().load(whole)


def test_a_plain_indexer_has_what_the_protocols_ask_for() -> None:
    plain = Milvus()
    assert isinstance(plain, Storing)
    assert replace(plain, ef=7) == Milvus(**{**asdict(plain), "ef": 7})
    assert plain.candidates(Metric.COSINE, 10**6, 8, 0) == []
    assert [len(ladder) for ladder in Milvus(index_type="FLAT").ladders()] == [1]


def test_the_libraries_log_nothing_unless_asked(capfd: pytest.CaptureFixture[str]) -> None:
    index = Milvus().build(vectors(5))
    with (
        pytest.raises(BadInput, match="Milvus Lite failed: "),
        index.database.connected() as client,
    ):
        client.search("nothing", data=[vectors(1)[0]], anns_field="vector")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("pymilvus").propagate


def test_an_index_of_another_version_is_refused(tmp_path: Path, some: Embeddings) -> None:
    folder = tmp_path / "index"
    facts = build_index([some], "milvus", folder)
    assert {*facts.files} == {*(file.name for file in files_in(folder)), FACTS, "rows.parquet"}
    assert IndexFacts.read(folder).versions["milvus-lite"]
    document = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps({**document, "version": 3}))
    with pytest.raises(BadData, match="version 3 of retr-milvus"):
        Milvus().load(folder)
