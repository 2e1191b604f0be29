"""A server of Milvus Lite, and embeddings to index."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.storage.sets.embeddings import Embeddings
from tests.made import embeddings
from tests.milvus_rows import vectors


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILVUS_URI", raising=False)
    monkeypatch.delenv("MILVUS_TOKEN", raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that is Milvus Lite."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    running, database, port = start_server_in_thread(str(tmp_path_factory.mktemp("server")))
    yield f"http://127.0.0.1:{port}"
    running.stop(grace=0).wait()
    database.close()


@pytest.fixture
def some(tmp_path: Path) -> Embeddings:
    return embeddings(tmp_path / "a", vectors(200))
