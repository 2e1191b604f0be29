"""Milvus on a server: addresses, tokens, errors and limits."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import asdict
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexers.exact import Exact
from indexers.milvus import collection, holding
from indexers.milvus import database as milvus_database
from indexers.milvus import index as milvus_index
from indexers.milvus.backend import Milvus
from indexers.milvus.database import checked_uri
from indexers.milvus.holding import FACTS, CollectionFacts
from retrieval.contracts import Metric
from retrieval.errors import BadInput
from retrieval.index.build import build_index
from retrieval.index.folder import open_index
from retrieval.storage.sets.embeddings import Embeddings
from tests.milvus_rows import DIM, collections, vectors

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs Milvus Lite: see the Makefile")

pytestmark = pytest.mark.usefixtures("no_server")


def test_a_server_has_bare_vectors_until_the_process_ends(server: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np;"
        "from indexers.milvus import Milvus; there = Path(sys.argv[1]);"
        "indexer = Milvus(); index = indexer.build(np.eye(4, dtype=np.float32)); index.save(there);"
        "print(indexer.load(there).search(np.eye(4, dtype=np.float32), 1).rows.ravel().tolist())"
    )
    before = collections(server)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        env={**os.environ, "MILVUS_URI": server},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("[0, 1, 2, 3]\n", "")
    assert collections(server) == before


class Silent:
    """Accepts connections and says nothing."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def _take(self) -> None:
        try:
            while True:
                self.taken.append(self.listening.accept()[0])
        except OSError:
            return

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for each in self.taken:
            each.close()


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("which", ["closed", "silent"])
def test_a_server_that_does_not_answer(
    which: str, some: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_database, "CONNECT_TIMEOUT_SECONDS", 1.0)
    silent = Silent()
    monkeypatch.setenv("MILVUS_URI", silent.uri if which == "silent" else closed_port())
    began = time.monotonic()
    with pytest.raises(BadInput, match="does not answer; start it, or correct the address"):
        build_index([some], "milvus", tmp_path / "index")
    assert time.monotonic() - began < 30  # also on a busy machine
    assert not (tmp_path / "index").exists()
    silent.close()


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[str | None]]]:
    """The address of a server that refuses every token, and the tokens that it was sent."""
    import grpc
    from pymilvus.grpc_gen import milvus_pb2_grpc

    seen: list[str | None] = []

    class Refusing(milvus_pb2_grpc.MilvusServiceServicer):  # type: ignore[misc]
        def Connect(self, request: Any, context: Any) -> None:  # noqa: N802
            seen.append(dict(context.invocation_metadata()).get("authorization"))
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure of me:secret")

    running = grpc.server(futures.ThreadPoolExecutor(1))
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(Refusing(), running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield f"http://127.0.0.1:{port}", seen
    running.stop(grace=0).wait()


def test_a_server_that_refuses_the_token(
    refusing: tuple[str, list[str | None]],
    some: Embeddings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, seen = refusing
    for words, token in (("rejects the token in", "me:secret"), ("requires a token in", "")):
        monkeypatch.setenv("MILVUS_TOKEN", token)
        with pytest.raises(BadInput, match=f"{words} MILVUS_TOKEN; set it to USER:PASSWORD") as no:
            build_index([some], "milvus", tmp_path / "i", options={"uri": uri})
        assert "secret" not in str(no.value)
    assert seen[0] and not seen[-1]
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("option", [True, False])
def test_token_is_not_sent_to_a_server_named_in_an_index_folder(
    refusing: tuple[str, list[str | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: bool,
) -> None:
    """Be it named in milvus.json, or among the options in index.json."""
    uri, seen = refusing
    named = uri if not option else closed_port()
    holds = asdict(CollectionFacts("", [], 3, DIM, "cosine", "HNSW", {}))
    document = {"collection": "theirs", "uri": named, "bytes": {}, "holds": holds}
    document |= {"format": holding.FORMAT, "version": holding.VERSION}
    (tmp_path / FACTS).write_text(json.dumps(document))
    settings = Milvus(uri=uri if option else None)
    monkeypatch.setenv("MILVUS_TOKEN", "me:secret")
    with pytest.raises(
        BadInput, match="which the index folder names, requires a token; set MILVUS_U"
    ):
        settings.load(tmp_path)
    assert seen and not any(seen)
    monkeypatch.setenv("MILVUS_URI", uri + "/")
    with pytest.raises(BadInput, match="rejects the token in MILVUS_TOKEN"):
        settings.load(tmp_path)
    assert seen[-1]


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("milvus.db", "invalid address"),
        ("ftp://host", "invalid address"),
        ("http://", "invalid address"),
        ("http://host:port", "invalid address"),
        ("http://me:secret@host:1", "set MILVUS_TOKEN to USER:PASSWORD"),
        ("ftp://me:secret@host", "invalid address"),
        ("http://host?token=secret", "set MILVUS_TOKEN to USER:PASSWORD"),
    ],
)
def test_addresses(uri: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILVUS_URI", uri)
    for make in (lambda: Milvus(uri=uri), lambda: Milvus().build(vectors(3))):
        with pytest.raises(BadInput, match=why) as no:
            make()
        assert "secret" not in str(no.value)
    assert checked_uri("https://host:19530/db/") == "https://host:19530/db"


def test_what_only_a_server_has(tmp_path: Path, server: str, some: Embeddings) -> None:
    with pytest.raises(BadInput, match="Milvus Lite has no DISKANN; name a server in MILVUS_URI"):
        build_index([some], "milvus", tmp_path / "i", options={"index_type": "DISKANN"})
    folder = tmp_path / "index"
    build_index([some], "milvus", folder)
    with pytest.raises(BadInput, match="is in the folder, not at"):
        open_index(folder, {"uri": server})


def test_the_limits_of_a_server(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    """More hits than it gives are compared here, as long as the vectors fit."""
    data = vectors(60)
    index = Milvus(Metric.EUCLIDEAN, uri=server).build(data)
    index.database.lite = False
    monkeypatch.setattr(milvus_index, "MAX_SERVER_HITS", 20)
    monkeypatch.setattr(milvus_index, "ROWS_PER_FETCH", 7)
    true = Exact(Metric.EUCLIDEAN, "cpu").build(data)
    mask = np.arange(60) % 2 == 0
    for k, among in ((60, None), (30, mask), (5, mask)):
        found = index.search(vectors(3, 2), k, among)
        assert np.array_equal(found.rows, true.search(vectors(3, 2), k, among).rows)
    monkeypatch.setattr(milvus_index, "MAX_FETCHED_BYTES", 0)
    with pytest.raises(BadInput, match="k is 30, and Milvus returns at most 20; ask for fewer"):
        index.search(vectors(3, 2), 30)
    collection.drop(index.database)
    index.database.close()


def test_absent_libraries_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Milvus().build(vectors(5)).save(tmp_path)
    there = util.find_spec

    def without(name: str) -> None:
        lacks = lambda asked, *more: None if asked == name else there(asked, *more)  # noqa: E731
        monkeypatch.setattr(milvus_database, "find_spec", lacks)

    without("pymilvus")
    for call in (lambda: Milvus().build(vectors(5)), lambda: Milvus().load(tmp_path)):
        with pytest.raises(BadInput, match=r"requires pymilvus; pip install .retr.milvus"):
            call()
    without("milvus_lite")
    for call in (lambda: Milvus().build(vectors(5)), lambda: Milvus().load(tmp_path)):
        with pytest.raises(BadInput, match="pip install --no-deps milvus-lite, or name a server"):
            call()
