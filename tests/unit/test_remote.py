"""Sources, embeddings and indices in a store: a real S3 server on loopback, and memory."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import KEYS, s3_server

from encoders.toy import Toy
from retrieval import build_index, open_embeddings, open_index
from retrieval.embedding.early_shards import EarlyShard, Queue
from retrieval.embedding.encode import EARLY, encode_source, facts_of, finished
from retrieval.embedding.ray_worker import Names, ShardMaker, ShardTask
from retrieval.errors import BadData, BadImage, BadInput, BadSource, Unreachable
from retrieval.images import Columns, open_source, read_image
from retrieval.images.folders import remote as remote_images
from retrieval.images.folders.listing import Changes, listed
from retrieval.index.searching import Searcher
from retrieval.index.update import add_rows
from retrieval.inspection import verify
from retrieval.storage import cache, places
from retrieval.storage.manifest import Dtype, Manifest
from retrieval.storage.places import Place, RemotePath, place_of
from retrieval.storage.shard_writer import ShardWriter
from retrieval.workspace import Role, Workspace


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


def lead_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients of S3 ask there."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No contact of another test counts, nor a connection."""
    import s3fs

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
    client.mkdir("bucket")
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


def put(folder: Path, there: RemotePath) -> RemotePath:
    """A copy of all files of the folder in the store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (there / path.relative_to(folder).as_posix()).upload(path)
    return there


def encoded(source: str | Place, folder: Place, shard_images: int = 7) -> Manifest:
    return encode_source(open_source(str(source)), Toy(), folder, shard_images=shard_images)


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


def test_images_of_a_store_are_those_of_a_folder(root: RemotePath, photos: Path) -> None:
    (photos / "red" / "0.png").write_bytes(b"")
    (photos / "notes.txt").write_text("no image")
    (photos / ".hidden").mkdir()
    (photos / ".hidden" / "a.png").write_bytes(b"")
    there = open_source(str(put(photos, root / "photos")))
    here = open_source(str(photos))
    assert len(there) == len(here) == 30
    for start in (0, 7, 30):
        a, b = ([*source.items(start)] for source in (there, here))
        assert [(x.id, x.label) for x in a] == [(x.id, x.label) for x in b]
    item = [*there.items()][3]
    assert item.path == f"{root}/photos/blue/3.png"
    assert read_image(item.path).size == (16, 12)
    assert open_source(f"{root}/photos").fingerprint == there.fingerprint
    (root / "photos/blue/3.png").upload(photos / "blue" / "4.png")
    assert open_source(f"{root}/photos").fingerprint != there.fingerprint
    assert len(open_source(f"{root}/photos/*/1.png")) == 3
    assert [x.id for x in open_source(f"{root}/photos/red/1.png").items()] == ["1.png"]
    assert len(open_source(f"{root}/photos", limit=4)) == 4


def test_images_are_fetched_in_stretches_of_bounded_size(
    root: RemotePath, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_images, "STRETCH_BYTES", 1500)
    asked: list[int] = []
    original = RemotePath.read_all

    def counted(self: RemotePath, names: list[str]) -> list[bytes | Exception]:
        asked.append(len(names))
        return original(self, names)

    monkeypatch.setattr(RemotePath, "read_all", counted)
    source = open_source(str(put(photos, root / "photos")))
    assert len([*source.items()]) == 30
    assert len(asked) > 5
    assert sum(asked) == 30


def test_what_is_gone_or_damaged_is_skipped(root: RemotePath, photos: Path) -> None:
    (photos / "red" / "0.png").write_bytes(b"")
    source = open_source(str(put(photos, root / "photos")))
    (root / "photos/green/5.png").unlink()
    manifest = encode_source(source, Toy(), root / "out")
    assert (manifest.rows, manifest.skipped) == (28, 2)
    skipped = pq.read_table(pa.BufferReader((root / "out/skipped.parquet").read_bytes()))
    assert skipped["reason"].to_pylist() == ["no such file", "empty file"]


def test_a_store_is_listed_once_and_what_arrives_is_known(root: RemotePath, photos: Path) -> None:
    (photos / "red" / "a.heic").write_bytes(b"x")
    there = put(photos, root / "photos")
    source = open_source(str(there))
    found = listed(source)
    assert found is not None
    assert found.left_out.passed_over == {".heic": 1}
    assert found.changes() == Changes(0, 0)
    assert found.differing(0, 30) == []
    (there / "blue/0.png").unlink()
    (there / "blue/0a.png").upload(photos / "blue" / "1.png")
    (there / "green/3.png").upload(photos / "red" / "4.png")
    assert len([*source.items()]) == len(source) == 30
    assert found.changes() == Changes(arrived=1, changed=1)
    assert found.differing(0, 30) == [0]
    assert found.differing(1, 30) == []
    one = listed(open_source(f"{there}/red/1.png"))
    assert one is not None
    assert one.changes() == Changes(0, 0)


def test_a_folder_of_a_store_that_is_gone_is_no_set_of_skipped_images(
    root: RemotePath, photos: Path
) -> None:
    there = put(photos, root / "photos")
    source = open_source(str(there))
    there.remove()
    with pytest.raises(BadSource, match="is gone since the run began; bring it back"):
        encode_source(source, Toy(), root / "out")


def test_folders_of_splits_in_a_store_are_no_labels(root: RemotePath, photos: Path) -> None:
    there = root / "set"
    for name in ("train/cat/1.png", "val/cat/2.png", "cover.png"):
        (there / name).upload(photos / "red" / "1.png")
    said: list[str] = []
    source = open_source(str(there), note=said.append)
    assert [(item.id, item.label) for item in source.items()] == [("cat/1.png", "cat")]
    assert source.name == f"{there}/train"
    assert said == [
        f"the folders of {there} are splits: took train, not val; choose with --split",
        f"left out 1 image beside the splits of {there}",
    ]
    assert open_source(str(there), "validation").name == f"{there}/val"


def parquet(folder: Path, photos: Path, rows: int = 20) -> Path:
    """train-00000-of-00001.parquet and test-…, in the schema of Hugging Face."""
    folder.mkdir()
    images = sorted(photos.rglob("*.png"))
    for split, some in (("train", images[:rows]), ("test", images[rows:])):
        table = pa.table(
            {
                "image": [{"bytes": path.read_bytes(), "path": path.name} for path in some],
                "label": [path.parent.name for path in some],
            }
        )
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=6)
    return folder


def test_parquet_of_a_store(root: RemotePath, photos: Path, tmp_path: Path) -> None:
    data = parquet(tmp_path / "data", photos)
    there = put(data, root / "data")
    train, test = (open_source(str(there), split) for split in (None, "test"))
    assert (len(train), len(test)) == (20, 10)
    assert [x.id for x in train.items(7)] == [x.id for x in open_source(str(data)).items(7)]
    item = [*test.items()][4]
    assert (item.id, item.label) == ("test/00004", "red")
    assert read_image(item.path).size == (16, 12)
    with pytest.raises(BadImage, match="no such row"):
        read_image(item.path.replace("#4", "#99"))
    one = open_source(f"{there}/test-*.parquet")
    assert next(one.items()).id == "test-00000-of-00001.parquet#0"
    with pytest.raises(BadInput, match="unknown split"):
        open_source(str(there), "validation")
    with pytest.raises(BadSource, match="no split 'test'"):
        open_source(f"{there}/test-*.parquet", "test")


def test_columns_of_parquet_in_a_store(root: RemotePath, photos: Path, tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in sorted(photos.rglob("*.png"))[:3]]
    paths = ["below/a.png", "../a.png", "x::memory://a.png", "/a.png", "https://a/a.png"]
    none = [None] * len(paths)
    structs = [{"bytes": content, "path": None} for content in contents]
    structs += [{"bytes": None, "path": path} for path in paths]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, kind), "thumb": [*contents[::-1], *none]})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "1.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "data" / "0.parquet")
    there = put(tmp_path / "data", root / "data")
    (there / "below" / "a.png").upload(next(photos.rglob("*.png")))
    said: list[str] = []
    assert len(open_source(str(there), note=said.append)) == 1
    assert "holds image and .parquet files: the image files are taken" in said[0]
    plain = [*open_source(f"{there}/*.parquet").items()]
    assert [item.content for item in plain[:4]] == [*contents, there / "below/a.png"]
    assert read_image(plain[3].path).size == (16, 12)
    for item in plain[4:]:
        with pytest.raises(BadImage, match=r"leads out of the folder|a URL; download"):
            read_image(item.path)
    chosen = open_source(f"{there}/*.parquet", columns=Columns("thumb"))
    items = [*chosen.items()]
    assert [item.content for item in items[:3]] == contents[::-1]
    assert items[0].path == f"{there}/1.parquet#thumb#0"
    assert np.array_equal(read_image(items[0].path), read_image(plain[2].path))


@pytest.mark.parametrize("name", ["state.arrow", "a.tar"])
def test_what_is_not_read_in_a_store_is_refused_by_name(
    root: RemotePath, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"content")
    (root / "data" / name).upload(tmp_path / name)
    with pytest.raises(BadSource, match=r"Arrow files or tar archives, .* make a copy here"):
        open_source(f"{root}/data")


def test_an_archive_in_a_store(s3: Any, photos: Path, tmp_path: Path) -> None:
    import shutil

    archive = shutil.make_archive(str(tmp_path / "all"), "zip", photos)
    RemotePath("s3://bucket/all.zip").upload(Path(archive))
    source = open_source("zip://::s3://bucket/all.zip")
    items = [*source.items()]
    assert [item.id for item in items] == [x.id for x in open_source(str(photos)).items()]
    assert items[0].path == "zip://blue/0.png::s3://bucket/all.zip"
    assert read_image(items[0].path).size == (16, 12)


def test_embeddings_in_a_store_are_those_of_a_folder(
    root: RemotePath, photos: Path, tmp_path: Path
) -> None:
    here, there = encoded(photos, tmp_path / "out"), encoded(photos, root / "out")
    assert here == there
    files = {path.name for path in (root / "out").iterdir()}
    assert files == {p.name for p in (tmp_path / "out").iterdir()} - {".lock"}
    for name in files:
        assert (root / "out" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    opened = open_embeddings(f"{root}/out")
    assert np.array_equal(opened.vectors(), open_embeddings(tmp_path / "out").vectors())
    assert not verify(root / "out").problems


def test_a_run_into_a_store_goes_on_where_it_was(
    root: RemotePath, photos: Path, tmp_path: Path
) -> None:
    class Stopping(Toy):
        batches = 2

        def encode(self, images: Any) -> Any:
            self.batches -= 1
            if self.batches < 0:
                raise KeyboardInterrupt
            return super().encode(images)

    with pytest.raises(KeyboardInterrupt):
        encode_source(open_source(str(photos)), Stopping(), root / "out", shard_images=7)
    with pytest.raises(BadInput, match="14 of 30 images are encoded"):
        open_embeddings(root / "out")
    # A shard of which only a part arrived is made anew.
    (tmp_path / "half").write_bytes((root / "out/part-00001.parquet").read_bytes()[:99])
    (root / "out/part-00001.parquet").upload(tmp_path / "half")
    done: list[int] = []
    source = open_source(str(photos))
    manifest = encode_source(
        source, Toy(), root / "out", shard_images=7, progress=lambda n, _: done.append(n)
    )
    assert done[0] == 7
    assert manifest == encoded(photos, tmp_path / "out")
    assert not verify(root / "out").problems


def test_damage_in_a_store_is_found(root: RemotePath, photos: Path, tmp_path: Path) -> None:
    encoded(photos, root / "out")
    shard = root / "out/part-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bad").write_bytes(content)
    shard.upload(tmp_path / "bad")
    with pytest.raises(BadData, match=r"part-00001.parquet is damaged"):
        open_embeddings(root / "out").vectors()
    assert len(verify(root / "out").problems) == 1
    shard.unlink()
    with pytest.raises(BadData, match=r"part-00001.parquet is missing"):
        open_embeddings(root / "out").vectors()


@pytest.mark.parametrize("backend", ["exact", "hnsw", "ivf"])
def test_an_index_in_a_store(root: RemotePath, photos: Path, tmp_path: Path, backend: str) -> None:
    encoded(photos, root / "out")
    facts = build_index([open_embeddings(root / "out")], backend, root / "index")
    assert facts.at
    opened = open_index(f"{root}/index")
    assert opened.facts == facts
    build_index([open_embeddings(root / "out")], backend, tmp_path / "index")
    queries = open_embeddings(root / "out").vectors()
    here, there = (
        open_index(each).index.search(queries, 5) for each in (tmp_path / "index", root / "index")
    )
    assert np.array_equal(here.rows, there.rows)
    assert np.array_equal(here.distances, there.distances)
    hits = Searcher.open(root / "index").search(queries[:1], 1)
    assert hits[0][0].id == "blue/0.png"
    assert not verify(root / "index").problems
    # A copy of it is an index as well.
    for name in (root / "index").find():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "index" / name).download(tmp_path / "copy" / name)
    assert len(open_index(tmp_path / "copy").index) == 30


def test_an_index_is_whole_until_the_next_one_is(
    root: RemotePath, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded(photos, root / "out")
    sets = [open_embeddings(root / "out")]
    before = build_index(sets, "exact", root / "index")
    original = RemotePath.upload

    def stopped(self: RemotePath, file: Path) -> None:
        if self.name == "index.json":
            raise KeyboardInterrupt
        original(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "upload", stopped)
        with pytest.raises(KeyboardInterrupt):
            build_index(sets, "hnsw", root / "index")
    assert open_index(root / "index").facts == before
    after = build_index(sets, "hnsw", root / "index")
    assert open_index(root / "index").facts.backend == "hnsw"
    assert {name.split("/")[0] for name in (root / "index").find()} == {after.at, "index.json"}


def test_rows_are_added_to_an_index_in_a_store(
    root: RemotePath, photos: Path, tmp_path: Path
) -> None:
    encoded(photos / "blue", root / "blue")
    encoded(photos / "red", root / "red")
    sets = [open_embeddings(root / name) for name in ("blue", "red")]
    build_index(sets[:1], "hnsw", root / "index")
    with pytest.raises(BadData, match="stands twice"):  # both are 0.png to 9.png
        add_rows(root / "index", sets[1:])
    assert len(open_index(root / "index").index) == 10


def test_index_files_are_fetched_once_and_again_if_they_are_damaged(
    root: RemotePath, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoded(photos, root / "out")
    build_index([open_embeddings(root / "out")], "exact", root / "index")
    fetched: list[str] = []
    original = RemotePath.download

    def counted(self: RemotePath, file: Path) -> None:
        fetched.append(self.name)
        original(self, file)

    monkeypatch.setattr(RemotePath, "download", counted)
    for _ in range(3):
        open_index(root / "index")
    assert sorted(fetched) == ["index.faiss", "rows.parquet"]
    (kept,) = (tmp_path / "cache" / "retr" / "indices").glob("*/index.faiss")
    kept.write_bytes(kept.read_bytes()[:-1])
    open_index(root / "index")
    assert len(fetched) == 3
    monkeypatch.setenv(cache.VARIABLE, "10")
    build_index([open_embeddings(root / "out")], "hnsw", root / "other")
    open_index(root / "other")
    assert len([*(tmp_path / "cache" / "retr" / "indices").iterdir()]) == 1


def test_a_damaged_index_file_in_a_store_is_refused(
    root: RemotePath, photos: Path, tmp_path: Path
) -> None:
    encoded(photos, root / "out")
    facts = build_index([open_embeddings(root / "out")], "exact", root / "index")
    (tmp_path / "bad").write_bytes(b"bad")
    (root / "index" / facts.at / "index.faiss").upload(tmp_path / "bad")
    with pytest.raises(BadData, match=r"index.faiss is damaged"):
        open_index(root / "index")
    (root / "index" / facts.at / "index.faiss").unlink()
    with pytest.raises(BadData, match=r"index.faiss is missing"):
        open_index(root / "index")


def test_the_workspace_remembers_urls(root: RemotePath, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "w")
    place.remember(Role.INDEX, root / "index")
    assert place.latest(Role.INDEX) == root / "index"


SOON_SECONDS = 30  # on a machine busy with other tests; clients of stores try for minutes


def refused(call: Callable[[], object]) -> tuple[str, float]:
    """What is said, and after how many seconds."""
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
        assert "in no bucket that there is; make it, or mend the URL" in message
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
        monkeypatch.setattr(places, "FIRST", 2.0)
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
    assert "give credentials" in message
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
    assert pauses == list(places.PAUSES[:3])
    left[0] = 99
    message, _ = refused(file.read_bytes)
    assert "reset by peer" in message


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/a", "Protocol not known: nosuch"),
        ("abfs://container/a", "abfs:// needs a library"),
        ("memory://nothing", "there is nothing at memory://nothing"),
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
    """What workers and driver do with their folder, without the workers."""
    source, encoder = open_source(str(photos)), Toy()
    facts = facts_of(source, encoder, Dtype.FLOAT32, 7)
    whole = encoded(photos, tmp_path / "out")
    writer = ShardWriter(root / "out", facts)
    queue = Queue(writer, lambda done, total: None)
    run = queue.folder / "run"
    run.touch()
    names = Names(str(photos), "toy")
    first = next(source.items()).path
    task = ShardTask(names, facts, first, queue.folder, run, 1, 5, version("retr"))
    maker = ShardMaker(task)
    for number in (4, 2):
        outcome = json.loads(maker(number))
        queue.add(EarlyShard.of_json(outcome))
    # The driver is killed, and another goes on with what lies there.
    half = RemotePath(f"{queue.folder}/part-00003.parquet/attempt/begun")
    half.touch()
    writer = ShardWriter(root / "out", facts)
    queue = Queue(writer, lambda done, total: None)
    assert queue.missing() == [0, 1, 3]
    assert not half.exists()
    run.touch()
    for number in queue.missing():
        queue.add(EarlyShard.of_json(json.loads(maker(number))))
    assert finished(writer) == whole
    assert not (root / "out" / EARLY).exists()
    assert not verify(root / "out").problems
