"""Stores for the tests: a real S3 server on loopback, and memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from retrieval.storage import places
from retrieval.storage.places import RemotePath
from tests.stores import lead_to, s3_server, shared_loader


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No contact of another test counts, nor a connection."""
    import botocore.session
    import s3fs

    monkeypatch.setattr(botocore.session, "create_loader", shared_loader)
    monkeypatch.setattr(places, "_reached", set())
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(server: str, forgetful: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The client of a server with an empty bucket `bucket`."""
    import s3fs

    lead_to(server, monkeypatch)
    client = s3fs.S3FileSystem(use_listings_cache=False)
    if client.exists("bucket"):
        client.rm("bucket", recursive=True)
    client.makedirs("bucket", exist_ok=True)
    return client


@pytest.fixture(params=["s3", "memory"])
def root(request: pytest.FixtureRequest) -> Iterator[RemotePath]:
    """A folder in an empty store."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        yield RemotePath("s3://bucket/base")
    else:
        yield RemotePath("memory://base")
        fsspec.filesystem("memory").rm("/", recursive=True)
