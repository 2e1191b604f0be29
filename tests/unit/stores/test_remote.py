"""Stores that cannot be reached or used, and shards of a cluster in a store."""

import json
import os
import socket
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from encoders.toy import Toy
from retrieval import open_embeddings
from retrieval.embedding.early_shards import EarlyShard, Queue
from retrieval.embedding.encode import EARLY_FOLDER, facts_of, finished
from retrieval.embedding.plan import plan_of
from retrieval.embedding.ray_worker import Names, ShardMaker, ShardTask
from retrieval.errors import BadInput, BadSource, Unreachable
from retrieval.images import open_source
from retrieval.inspection import verify
from retrieval.storage import places
from retrieval.storage.places import RemotePath, place_of
from retrieval.storage.sets.manifest import Dtype
from retrieval.storage.sets.shard_writer import ShardWriter
from tests.stores import encoded, lead_to, put


def test_a_place_is_a_path_unless_it_is_a_url() -> None:
    assert place_of("photos/a") == Path("photos/a")
    assert place_of("file:///photos/a") == Path("/photos/a")
    there = place_of("s3://bucket/photos/")
    assert str(there) == "s3://bucket/photos"
    assert str(there / "a b.png") == "s3://bucket/photos/a b.png"
    assert ((there / "a.tar.gz").name, (there / "a.png").suffix) == ("a.tar.gz", ".png")
    assert str(RemotePath("s3://bucket").parent) == "s3://"
    chained = place_of("zip://photos::s3://bucket/all.zip")
    assert str(chained / "a.png") == "zip://photos/a.png::s3://bucket/all.zip"


def test_files_of_a_store(root: RemotePath, tmp_path: Path) -> None:
    file = root / "folder" / "a.txt"
    assert not file.exists()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    (tmp_path / "here").write_text("content")
    file.upload(tmp_path / "here")
    assert file.read_text() == "content"
    assert file.is_file()
    assert not file.is_dir()
    assert (root / "folder").is_dir()
    assert file.stat().st_size == 7
    assert [*root.iterdir()] == [root / "folder"]
    assert [*root.find()] == ["folder/a.txt"]
    (read,), (missing,) = ((root / "folder").read_all([name]) for name in ("a.txt", "b.txt"))
    assert read == b"content"
    assert isinstance(missing, FileNotFoundError)
    before = file.stat().version
    (tmp_path / "here").write_text("CONTENT")
    file.upload(tmp_path / "here")
    assert file.stat().version != before
    file.unlink()
    file.unlink(missing_ok=True)
    assert not file.exists()


SOON_SECONDS = 30  # on a machine busy with other tests; clients of stores try for minutes


def refused(call: Callable[[], object]) -> tuple[str, float]:
    """Return the error, and the seconds until it was raised."""
    began = time.perf_counter()
    with pytest.raises(Unreachable) as caught:
        call()
    return str(caught.value), time.perf_counter() - began


def test_a_bucket_that_is_not_there(s3: Any, photos: Path) -> None:
    for call in (
        lambda: open_source("s3://other/photos"),
        lambda: open_embeddings("s3://other/out"),
        lambda: encoded(photos, RemotePath("s3://other/out")),
    ):
        message, seconds = refused(call)
        assert "does not exist; create it, or correct the URL" in message
        assert seconds < SOON_SECONDS


def test_a_store_that_refuses_connections(forgetful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    lead_to(address, monkeypatch)
    message, seconds = refused(lambda: open_embeddings("s3://bucket/out"))
    assert "cannot reach s3://bucket/out" in message
    assert seconds < SOON_SECONDS


def test_a_store_that_does_not_answer(forgetful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(places, "FIRST_CONTACT_SECONDS", 2.0)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        lead_to(address, monkeypatch)
        message, seconds = refused(lambda: open_embeddings("s3://bucket/out"))
    assert "did not answer within 2 s" in message
    assert seconds < SOON_SECONDS


def test_no_credentials(server: str, forgetful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    message, seconds = refused(lambda: open_embeddings("s3://bucket/out"))
    assert "no access to s3://bucket/out" in message
    assert "set credentials" in message
    assert seconds < SOON_SECONDS


def test_what_fails_for_a_moment_is_tried_again(
    s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").write_text("content")
    file = RemotePath("s3://bucket/a.txt")
    file.upload(tmp_path / "here")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    client, _ = places._opened(str(file))
    original = client.cat_file
    left = [3]

    def failing(path: str) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError("reset by peer")
        return original(path)

    monkeypatch.setattr(client, "cat_file", failing)
    assert file.read_bytes() == b"content"
    assert pauses == list(places.RETRY_PAUSES_SECONDS[:3])
    left[0] = 99
    message, _ = refused(file.read_bytes)
    assert "reset by peer" in message


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/a", "Protocol not known: nosuch"),
        ("abfs://container/a", "abfs:// needs a library"),
        ("memory://nothing", "nothing found at memory://nothing"),
    ],
)
def test_urls_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_source(url)


def test_files_that_are_no_images(root: RemotePath, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"archive")
    put(tmp_path, root / "data")
    with pytest.raises(BadSource, match="neither an image nor Parquet"):
        open_source(f"{root}/data/a.tar.gz")
    with pytest.raises(BadSource, match="no images in"):
        open_source(f"{root}/data")


def test_shards_of_a_cluster_are_made_in_a_store(
    root: RemotePath, photos: Path, tmp_path: Path
) -> None:
    """Do in the folder what workers and driver do, without workers."""
    source, encoder = open_source(str(photos)), Toy()
    facts = facts_of(source, encoder, Dtype.FLOAT32, 7)
    whole = encoded(photos, tmp_path / "out")
    writer = ShardWriter(root / "out", facts)
    plan = plan_of(source, writer)
    queue = Queue(writer, plan, lambda done, total: None)
    run = queue.folder / "run"
    run.touch()
    names = Names(str(photos), "toy")
    first = next(source.items()).path
    task = ShardTask(names, plan, first, queue.folder, run, 1, 5, version("retr"))
    maker = ShardMaker(task)
    for number in (4, 2):
        outcome = json.loads(maker(number))
        queue.add(EarlyShard.of_json(outcome))
    # The driver is killed, and another goes on with what lies there.
    half = RemotePath(f"{queue.folder}/part-00003.parquet/attempt/begun")
    half.touch()
    writer = ShardWriter(root / "out", facts)
    plan = plan_of(source, writer)
    queue = Queue(writer, plan, lambda done, total: None)
    assert queue.missing() == [0, 1, 3]
    assert not half.exists()
    run.touch()
    for number in queue.missing():
        queue.add(EarlyShard.of_json(json.loads(maker(number))))
    assert finished(writer) == whole
    assert not (root / "out" / EARLY_FOLDER).exists()
    assert not verify(root / "out").problems
