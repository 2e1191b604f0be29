"""An index follows embeddings of files that change."""

import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.toy import Toy
from retrieval.contracts import Metric, Vectors
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.index.build import build_index
from retrieval.index.folder import check_indexed, open_index
from retrieval.index.follow import follow_embeddings
from retrieval.index.renumbering import Renumbered
from retrieval.index.update import delete_rows
from retrieval.inspection import verify
from retrieval.quality.metrics import index_recall_at
from retrieval.registry import indexer_names, make_indexer
from retrieval.storage.sets.embeddings import Embeddings, open_embeddings
from retrieval.storage.sets.manifest import Dtype, EncoderFacts, Facts, SourceFacts
from retrieval.storage.sets.shard_writer import ShardWriter
from retrieval.storage.sets.shards import FileFacts, shard_name, write_shard

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


CHURN_ROWS = 2000
CHURN_STEPS = 5


def vectors_as_files(folder: Path, vectors: Vectors, seed: int) -> Embeddings:
    """Return embeddings of files whose names and hashes follow from their vectors."""
    shutil.rmtree(folder, ignore_errors=True)
    facts = Facts(
        encoder=EncoderFacts("none", "0" * 64),
        dim=vectors.shape[1],
        dtype=Dtype.FLOAT32,
        metric=Metric.EUCLIDEAN,
        source=SourceFacts("photos", f"{seed:064}", len(vectors), root="/photos"),
        shard_images=len(vectors),
    )
    writer = ShardWriter(folder, facts)
    hashes = [blake2b(vector.tobytes(), digest_size=16).digest() for vector in vectors]
    names = [f"{each.hex()}.png" for each in hashes]
    files = [FileFacts(1, each) for each in hashes]
    nothing: list[str | None] = [None] * len(names)
    shard = write_shard(folder / shard_name(0), facts, names, nothing, nothing, vectors, (), files)
    writer.record(shard)
    writer.finish()
    return open_embeddings(folder)


@pytest.mark.parametrize("backend", sorted({*BACKENDS} - CANNOT_ADD - {"exact"}))
def test_recall_after_half_of_the_rows_were_replaced(tmp_path: Path, backend: str) -> None:
    draw = np.random.default_rng(0)
    centers = draw.standard_normal((40, 24))

    def new(count: int) -> Vectors:
        near = centers[draw.integers(40, size=count)]
        return np.asarray(near + 0.5 * draw.standard_normal(near.shape), np.float32)

    vectors, queries = new(CHURN_ROWS), new(200)
    embeddings = vectors_as_files(tmp_path / "e", vectors, 0)
    build_index([embeddings], backend, tmp_path / "i")
    count = CHURN_ROWS // 2 // CHURN_STEPS
    updates = 0
    for step in range(1, CHURN_STEPS + 1):
        vectors = np.concatenate([vectors[count:], new(count)])
        embeddings = vectors_as_files(tmp_path / "e", vectors, step)
        if follow_embeddings([embeddings], backend, tmp_path / "i", Metric.EUCLIDEAN) is None:
            build_index([embeddings], backend, tmp_path / "i")
        else:
            updates += 1
    assert updates >= 2
    build_index([embeddings], backend, tmp_path / "fresh")
    exact = make_indexer("exact", {"metric": "euclidean"}).build(vectors)
    true = exact.search(queries, 10).distances

    def recall(folder: Path) -> float:
        found = open_index(folder).index.search(queries, 10).distances
        return float(index_recall_at(found, true, 10, Metric.EUCLIDEAN).mean())

    assert recall(tmp_path / "i") >= recall(tmp_path / "fresh") - 0.01
