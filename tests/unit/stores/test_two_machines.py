"""Two machines that write into one folder of a store."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from retrieval import build_index, open_embeddings, open_index
from retrieval.errors import Busy
from retrieval.index import build
from retrieval.inspection import verify
from retrieval.storage import leases
from retrieval.storage.conditional import Answer, version_of, write_if
from retrieval.storage.files import LOCK, locked
from retrieval.storage.places import RemotePath
from tests.stores import encoded

MACHINE = """
import sys, time
from pathlib import Path
from encoders.toy import Toy
from retrieval import build_index, open_embeddings
from retrieval.embedding.encode import encode_source
from retrieval.errors import Busy
from retrieval.images import open_source
from retrieval.storage.places import RemotePath

task, source, out, ready, start = sys.argv[1:]
images = open_source(source) if task == "encode" else open_embeddings(source)

class Slow(Toy):
    def encode(self, images):
        time.sleep(0.2)
        return super().encode(images)

def work():
    if task == "encode":
        encode_source(images, Slow(), RemotePath(out), shard_images=7)
    else:
        build_index([images], "exact", RemotePath(out))

Path(ready).touch()
while not Path(start).exists():
    time.sleep(0.005)
try:
    work()
except Busy as error:
    print(error)
"""


def at_once(task: str, source: object, out: RemotePath, tmp_path: Path) -> list[str]:
    """Run the task on two machines, which start at the same moment; return what each says."""
    ready = [tmp_path / f"{task}-ready-{each}" for each in "ab"]
    start = tmp_path / f"{task}-start"
    machines = [
        subprocess.Popen(
            [sys.executable, "-c", MACHINE, task, str(source), str(out), str(path), str(start)],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / path.name[-1])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for path in ready
    ]
    while not all(path.exists() for path in ready):
        assert all(each.poll() is None for each in machines)
        time.sleep(0.01)
    start.touch()
    said = [each.communicate(timeout=60)[0].strip() for each in machines]
    assert [each.returncode for each in machines] == [0, 0]
    return said


def test_machines_that_start_at_once(s3: Any, photos: Path, tmp_path: Path) -> None:
    out, index = RemotePath("s3://bucket/out"), RemotePath("s3://bucket/index")
    for change in (False, True):  # a new set, then an update of it
        if change:
            (photos / "blue" / "0.png").unlink()
        folder = tmp_path / str(change)
        folder.mkdir()
        said = at_once("encode", photos, out, folder)
        busy = f"another machine is writing into {out}; wait for it or name another folder"
        assert sorted(said) == ["", busy] or (change and said == ["", ""])  # one after the other
        assert not verify(out).problems
        assert len(open_embeddings(out)) == 30 - change
        assert not (out / LOCK).exists()
    said = at_once("index", out, index, tmp_path)
    assert {*said} <= {
        "",
        f"another machine is writing into {index}; wait for it or name another folder",
    }
    assert "" in said
    assert not verify(index).problems
    facts = open_index(index).facts
    assert {name.split("/")[0] for name in index.find()} == {facts.at, "index.json"}


def stranger(file: RemotePath) -> None:
    """Let another machine write the file."""
    answer = write_if(file, json.dumps({"machine": "other"}).encode(), version_of(file))
    assert isinstance(answer, str)


def test_a_machine_that_is_gone_is_followed(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RemotePath("s3://bucket/out")
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.1)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.02)
    stranger(folder / LOCK)
    with locked(folder):
        assert json.loads((folder / LOCK).read_bytes())["machine"] != "other"
    assert not (folder / LOCK).exists()


def test_a_machine_that_lost_its_lease_writes_nothing(s3: Any, photos: Path) -> None:
    folder = RemotePath("s3://bucket/out")
    manifest = encoded(photos, folder)
    before = sorted(folder.find())
    with locked(folder):
        stranger(folder / LOCK)
        with pytest.raises(Busy, match="another machine is writing into"):
            manifest.write(folder)
    assert sorted(folder.find()) == sorted([*before, LOCK])  # the other machine's


def test_what_another_machine_has_published_stays(
    s3: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, index = RemotePath("s3://bucket/out"), RemotePath("s3://bucket/index")
    manifest = encoded(photos, folder)
    monkeypatch.setattr(leases.Lease, "renew", lambda _: None)  # suspended just after it
    with locked(folder):
        stranger(folder / "manifest.json")
        with pytest.raises(Busy):
            manifest.write(folder)
    assert b"other" in (folder / "manifest.json").read_bytes()
    encoded(photos, RemotePath("s3://bucket/more"))
    publish = build.publish_index

    def late(*arguments: Any) -> Any:
        stranger(index / "index.json")
        return publish(*arguments)

    monkeypatch.setattr(build, "publish_index", late)
    with pytest.raises(Busy):
        build_index([open_embeddings("s3://bucket/more")], "exact", index)
    assert [*index.find()] == ["index.json"]


@pytest.mark.parametrize("conditions", [{"IfMatch", "IfNoneMatch"}, {"IfMatch"}])
@pytest.mark.parametrize("error", [NotImplementedError(), "501"])
def test_a_store_without_conditions_works(
    s3: Any, photos: Path, monkeypatch: pytest.MonkeyPatch, error: Any, conditions: set[str]
) -> None:
    import s3fs

    original = s3fs.S3FileSystem._call_s3

    async def refusing(self: Any, method: str, *given: Any, **kwargs: Any) -> Any:
        if conditions & {*kwargs}:
            if isinstance(error, Exception):
                raise error
            raise OSError(5, "not implemented") from Refusal()
        return await original(self, method, *given, **kwargs)

    class Refusal(Exception):
        response: ClassVar = {"Error": {"Code": "NotImplemented"}}

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refusing)
    file = RemotePath("s3://bucket/file")
    assert write_if(file, b"content", None if len(conditions) > 1 else "etag") is Answer.UNSUPPORTED
    encoded(photos, RemotePath("s3://bucket/out"))
    assert not verify(RemotePath("s3://bucket/out")).problems
    assert not RemotePath(f"s3://bucket/out/{LOCK}").exists()


class Google:
    """A stub of gcsfs with one file, that keeps the generation of each request."""

    _location = "https://storage.googleapis.com"

    def __init__(self) -> None:
        self.generation = 0
        self.asked: list[str] = []

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def info(self, path: str) -> dict[str, Any]:
        if not self.generation:
            raise FileNotFoundError(path)
        return {"type": "file", "size": 1, "generation": str(self.generation)}

    def cat_file(self, path: str) -> bytes:
        return b"first"

    def call(self, method: str, url: str, **parameters: Any) -> dict[str, str]:
        assert (method, url) == ("POST", f"{self._location}/upload/storage/v1/b/bucket/o")
        assert (parameters["uploadType"], parameters["name"]) == ("media", "a/b")
        self.asked.append(parameters["ifGenerationMatch"])
        if parameters["ifGenerationMatch"] != str(self.generation):
            error = OSError("conditionNotMet")
            error.code = 412  # type: ignore[attr-defined]
            raise error
        self.generation += 7
        return {"generation": str(self.generation)}


def test_google_is_asked_for_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    google = Google()
    monkeypatch.setattr("retrieval.storage.places._opened", lambda _: (google, "bucket/a/b"))
    file = RemotePath("gs://bucket/a/b")
    assert version_of(file) is None
    assert write_if(file, b"first", None) == "7"
    assert write_if(file, b"first", None) == "7"  # sent again after a lost answer
    assert write_if(file, b"second", None) is Answer.REFUSED
    assert write_if(file, b"second", version_of(file)) == "14"
    assert google.asked == ["0", "0", "0", "7"]
