"""Stores for tests: an S3 server on this machine, its clients' environment, and files."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from encoders.toy import Toy
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.storage.places import Place, RemotePath
from retrieval.storage.sets.manifest import Manifest

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server and yield its address."""
    from moto import backends  # slow to import
    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from moto.server import ThreadedMotoServer

    services = frozenset(backends.list_of_moto_modules())
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        # Each request would look for 200 folders, log a line and open a connection.
        patch.setattr(backends, "list_of_moto_modules", lambda: services)
        patch.setattr(MotoRequestHandler, "log_request", lambda *_: None)
        patch.setattr(MotoRequestHandler, "protocol_version", "HTTP/1.1")
        server.start()
        host, port = server.get_host_and_port()
        try:
            yield f"http://{host}:{port}"
        finally:
            server.stop()


@cache
def shared_loader(folders: str | None = None) -> Any:
    """Return the reader of botocore's service descriptions, the same one for all clients.

    Each client reads megabytes of JSON otherwise, which takes most of the time to make it.
    """
    from botocore.loaders import create_loader  # slow to import

    return create_loader(folders)


def lead_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients of S3 ask there."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)


def put(folder: Path, there: RemotePath) -> RemotePath:
    """A copy of all files of the folder in the store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (there / path.relative_to(folder).as_posix()).upload(path)
    return there


def encoded(source: str | Place, folder: Place, shard_images: int = 7) -> Manifest:
    return encode_source(open_source(str(source)), Toy(), folder, shard_images=shard_images)
