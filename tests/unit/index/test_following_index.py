"""An index follows embeddings of files that change."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.toy import Toy
from retrieval.contracts import Metric
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.index.build import build_index
from retrieval.index.folder import check_indexed, open_index
from retrieval.index.follow import follow_embeddings
from retrieval.index.renumbering import Renumbered
from retrieval.index.update import delete_rows
from retrieval.inspection import verify
from retrieval.registry import indexer_names, make_indexer
from retrieval.storage.embeddings import Embeddings, open_embeddings

BACKENDS = sorted({*indexer_names()} - {"faiss"})
CANNOT_ADD = {"vamana", "milvus"}


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    color = np.random.default_rng(seed).integers(256, size=3, dtype=np.uint8)
    Image.fromarray(np.broadcast_to(color, (12, 12, 3)).copy()).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(80):
        save(tmp_path / "p" / f"{i:02}.png", i)
    return tmp_path / "p"


@pytest.fixture
def encode(folder: Path, tmp_path: Path) -> Callable[[], Embeddings]:
    def run() -> Embeddings:
        encode_source(open_source(str(folder)), Toy(), tmp_path / "e", shard_images=16)
        return open_embeddings(tmp_path / "e")

    return run


def check_same(index: Path, embeddings: Embeddings) -> None:
    """Check that the index has the rows of the embeddings, and finds what exact search finds."""
    rows, vectors = embeddings.read()
    opened = open_index(index)
    assert opened.rows.equals(rows)
    check_indexed(opened, embeddings)
    metric = opened.facts.metric
    exact = make_indexer("exact", {"metric": metric}).build(vectors)
    queries = np.random.default_rng(0).random((20, vectors.shape[1]), np.float32)
    for among in (None, np.arange(len(vectors)) % 3 == 0):
        wanted = exact.search(queries, 7, among)
        found = opened.index.search(queries, 7, among)
        np.testing.assert_allclose(found.distances, wanted.distances, atol=1e-5)
        assert (found.rows == wanted.rows).mean() > 0.95  # but for equal distances
    assert verify(index).problems == ()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_gone_are_never_returned(
    folder: Path, tmp_path: Path, encode: Callable[[], Embeddings], backend: str
) -> None:
    index = tmp_path / "i"
    build_index([encode()], backend, index)
    for name in ("03", "40", "77"):
        (folder / f"{name}.png").unlink()
    (folder / "10.png").rename(folder / "zz.png")
    embeddings = encode()
    followed = follow_embeddings([embeddings], backend, index, embeddings.facts.metric)
    if backend in CANNOT_ADD:
        assert followed is None  # the renamed file is a new row
        (folder / "zz.png").unlink()
        embeddings = encode()
        followed = follow_embeddings([embeddings], backend, index, embeddings.facts.metric)
    assert followed is not None
    assert followed.deleted == 4
    check_same(index, embeddings)


@pytest.mark.parametrize("backend", sorted({*BACKENDS} - CANNOT_ADD))
def test_rows_are_added_and_changed_rows_replaced(
    folder: Path, tmp_path: Path, encode: Callable[[], Embeddings], backend: str
) -> None:
    index = tmp_path / "i"
    build_index([encode()], backend, index)
    for step in range(3):
        save(folder / f"{step:02}.png", 500 + step)
        save(folder / "new" / f"{step}.png", 600 + step)
        (folder / f"5{step}.png").unlink()
        embeddings = encode()
        followed = follow_embeddings([embeddings], backend, index, embeddings.facts.metric)
        assert followed is not None
        assert (followed.added, followed.deleted) == (2, 2)
        check_same(index, embeddings)
    again = follow_embeddings([embeddings], backend, index, embeddings.facts.metric)
    assert again is not None
    assert not again.is_change


def test_an_index_is_built_again_when_a_fifth_is_deleted_or_half_is_new(
    folder: Path, tmp_path: Path, encode: Callable[[], Embeddings]
) -> None:
    index = tmp_path / "i"
    build_index([encode()], "hnsw", index)
    for i in range(16):
        (folder / f"{i:02}.png").unlink()
    embeddings = encode()
    metric = embeddings.facts.metric
    assert follow_embeddings([embeddings], "hnsw", index, metric) is not None
    (folder / "16.png").unlink()
    assert follow_embeddings([encode()], "hnsw", index, metric) is None
    build_index([encode()], "hnsw", index)
    for i in range(64):
        save(folder / "new" / f"{i}.png", 700 + i)
    assert follow_embeddings([encode()], "hnsw", index, metric) is None


def test_other_indices_are_built_again(
    folder: Path, tmp_path: Path, encode: Callable[[], Embeddings]
) -> None:
    index = tmp_path / "i"
    embeddings = encode()
    metric = embeddings.facts.metric
    assert follow_embeddings([embeddings], "hnsw", index, metric) is None
    build_index([embeddings], "hnsw", index, options={"m": 8})
    assert follow_embeddings([embeddings], "hnsw", index, metric, {"m": "8"}) is not None
    assert follow_embeddings([embeddings], "hnsw", index, metric, {"m": "9"}) is None
    assert follow_embeddings([embeddings], "exact", index, metric) is None
    assert follow_embeddings([embeddings], "hnsw", index, Metric.INNER_PRODUCT) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_deleted_by_filter_in_every_backend(
    tmp_path: Path, encode: Callable[[], Embeddings], backend: str
) -> None:
    index = tmp_path / "i"
    build_index([encode()], backend, index)
    delete_rows(index, "id=03.png,04.png")
    opened = open_index(index)
    assert len(opened.index) == len(opened.rows) == 78
    hits = opened.index.search(np.ones((1, opened.index.dim), np.float32), 100)
    assert sorted(hits.rows[0, :78].tolist()) == list(range(78))
    assert (hits.rows[0, 78:] == -1).all()
    assert verify(index).problems == ()


def test_a_search_that_lacks_hits_looks_again(tmp_path: Path) -> None:
    vectors = np.zeros((100, 2), np.float32)
    vectors[:, 0] = np.arange(100)
    inner = make_indexer("exact", {"metric": "euclidean"}).build(vectors)
    index = Renumbered(inner, np.arange(99, 49, -1))
    hits = index.search(np.zeros((2, 2), np.float32), 3)
    assert hits.rows.tolist() == [[49, 48, 47]] * 2
    assert hits.distances.tolist() == [[50, 51, 52]] * 2
