"""Embeddings and indices in a store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.toy import Toy
from retrieval import build_index, open_embeddings, open_index
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadData, BadInput
from retrieval.images import open_source
from retrieval.index.folder import IndexFacts
from retrieval.index.searching import Searcher
from retrieval.index.update import add_rows
from retrieval.inspection import verify
from retrieval.storage import cache
from retrieval.storage.places import RemotePath
from retrieval.workspace import Role, Workspace
from tests.stores import encoded


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
    # A shard of which only a part arrived is made again.
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

    def stopped(self: IndexFacts, folder: RemotePath) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(IndexFacts, "write", stopped)
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
    add_rows(root / "index", sets[1:])  # both are 0.png to 9.png
    ids = open_index(root / "index").rows["id"].to_pylist()
    assert ids == [f"{i}.png" for i in range(10)] + [f"red/{i}.png" for i in range(10)]


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
    assert sorted(fetched) == [
        *("columns.parquet", "contents.parquet", "index.faiss", "rows.parquet")
    ]
    (kept,) = (tmp_path / "cache" / "retr" / "indices").glob("*/index.faiss")
    kept.write_bytes(kept.read_bytes()[:-1])
    open_index(root / "index")
    assert len(fetched) == 5
    monkeypatch.setenv(cache.CACHE_BYTES_VARIABLE, "10")
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
