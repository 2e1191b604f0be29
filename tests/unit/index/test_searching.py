"""Search from an image to its named neighbors, and the errors on the way."""

import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from encoders.toy import Toy
from retrieval import Searcher, open_embeddings
from retrieval.contracts import Metric, Streaming
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadData, BadImage, BadInput, Busy, Mismatch, UnknownName
from retrieval.images import open_source
from retrieval.index import build
from retrieval.index.build import build_index
from retrieval.index.folder import open_index
from retrieval.index.searching import label_of_own_hit
from retrieval.inspection import verify
from retrieval.registry import make_indexer
from retrieval.storage.files import locked, made_folder, sealed
from retrieval.storage.sets.manifest import ROW_FIELDS
from retrieval.storage.tables import with_nfc_labels
from retrieval.where.selection import select_rows
from tests.made import embeddings


@pytest.fixture
def index(photos: Path, tmp_path: Path) -> Path:
    encode_source(open_source(str(photos)), Toy(), tmp_path / "embeddings")
    build_index([open_embeddings(tmp_path / "embeddings")], "exact", tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def orange(tmp_path: Path) -> Path:
    """Return a picture whose neighbors are red, then green, then blue."""
    Image.new("RGB", (20, 10), (230, 90, 30)).save(tmp_path / "orange.jpg")
    return tmp_path / "orange.jpg"


class Other(Toy):
    """The toy encoder in another version."""

    fingerprint = "f" * 64


def test_neighbours_of_an_image(index: Path, orange: Path, tmp_path: Path) -> None:
    searcher = Searcher.open(index)
    [hits] = searcher.search_images([orange], k=30)
    assert [hit.rank for hit in hits] == list(range(1, 31))
    assert [hit.label for hit in hits] == ["red"] * 10 + ["green"] * 10 + ["blue"] * 10
    _, vectors = open_embeddings(tmp_path / "embeddings").read()
    query = np.array([230, 90, 30]) / 255
    expected = np.sort(np.linalg.norm(vectors - query, axis=1))
    np.testing.assert_allclose([hit.distance for hit in hits], expected, atol=0.02)
    for hit in hits:
        assert hit.path is not None
        assert Path(hit.path).is_file()
        assert hit.path.endswith(hit.id)


def test_many_images_at_once_are_each_image_alone(index: Path, photos: Path) -> None:
    images = sorted(photos.glob("*/[0-4].png"))
    searcher = Searcher.open(index)
    assert searcher.search_images(images, k=3) == [
        searcher.search_images([image], k=3)[0] for image in images
    ]


@pytest.mark.parametrize(
    ("where", "labels"),
    [
        ("label=blue", {"blue"}),
        ("label=red,blue", {"red"}),
        ("label=blue,green", {"green"}),
        ("id=red/3.png", {"red"}),
    ],
)
def test_filter_gives_the_nearest_of_those_that_match(
    index: Path, orange: Path, where: str, labels: set[str]
) -> None:
    searcher = Searcher.open(index)
    [everything] = searcher.search_images([orange], k=30)
    field, values = where.split("=")
    expected = [h for h in everything if getattr(h, field) in values.split(",")][:7]
    [hits] = searcher.search_images([orange], k=7, where=where)
    assert [(h.id, h.distance) for h in hits] == [(h.id, h.distance) for h in expected]
    assert {h.label for h in hits} == labels


def test_fewer_match_than_asked_for(index: Path, orange: Path) -> None:
    [hits] = Searcher.open(index).search_images([orange], k=30, where="label=red")
    assert len(hits) == 10


def few(folder: Path, rows: int) -> Searcher:
    vectors = np.eye(rows, 3, dtype=np.float32) + np.arange(rows, dtype=np.float32)[:, None]
    build_index([embeddings(folder / "set", vectors)], "exact", folder / "few")
    return Searcher.open(folder / "few")


@pytest.mark.parametrize(("rows", "found"), [(1, 1), (6, 6), (10, 10), (11, 10)])
def test_without_k_there_are_ten_hits_or_as_many_as_rows(
    tmp_path: Path, rows: int, found: int
) -> None:
    searcher, queries = few(tmp_path, rows), np.zeros((2, 3), np.float32)
    assert [len(hits) for hits in searcher.search(queries)] == [found, found]
    assert searcher.hits(queries).rows.shape == (2, found)
    assert (searcher.hits(queries).rows >= 0).all()
    [hits, _] = searcher.search(queries, where="label=even")
    assert [hit.label for hit in hits] == ["even"] * ((rows + 1) // 2)
    with pytest.raises(BadInput, match=f"k is {rows + 1}; give 1 to {rows}, the rows"):
        searcher.search(queries, rows + 1)


@pytest.mark.parametrize("k", [0, -1, 31, 1_000_000])
def test_k_out_of_range(index: Path, k: int) -> None:
    with pytest.raises(BadInput, match=f"k is {k:,}; give 1 to 30"):
        Searcher.open(index).search(np.zeros((1, 3), np.float32), k)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("label=blu", "unknown label in the index 'blu'; did you mean 'blue'?"),
        ("label=red,pink", "unknown label in the index 'pink'"),
        ("id=red/99.png", "no row of the index has the id 'red/99.png'"),
        ("colour=red", "unknown column to filter by 'colour'.*there are: bytes, camera"),
        ("red", "write for example label = cat"),
        ("label=", "write for example label = cat"),
    ],
)
def test_invalid_filters_are_refused(index: Path, where: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Searcher.open(index).search(np.zeros((1, 3), np.float32), 1, where)


def test_another_encoder_is_refused_with_both_names(index: Path) -> None:
    with pytest.raises(Mismatch, match=r"encoder toy \(ed25d95e\), not with toy \(ffffffff\)"):
        Searcher.open(index, encoder=Other())


def test_queries_of_another_dimension(index: Path) -> None:
    with pytest.raises(Mismatch, match=r"3.*4|4.*3"):
        Searcher.open(index).search(np.zeros((1, 4), np.float32), 1)


def test_unreadable_query(index: Path, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="no such file"):
        Searcher.open(index).search_images([tmp_path / "gone.png"])


def test_label_of_an_image_that_is_indexed(index: Path, photos: Path, orange: Path) -> None:
    indexed = photos / "green" / "4.png"
    found, others = Searcher.open(index).search_images([indexed, orange], k=5)
    assert label_of_own_hit(str(indexed), found) == "green"
    assert label_of_own_hit(str(orange), others) is None


def test_queries_in_a_batch_have_the_answers_of_single_ones(index: Path) -> None:
    searcher = Searcher.open(index)
    queries = np.random.default_rng(0).random((20, 3)).astype(np.float32)
    one_by_one = [searcher.search(query[None], 5)[0] for query in queries]
    assert searcher.search(queries, 5) == one_by_one


def test_an_index_needs_no_embeddings(index: Path, orange: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "embeddings")
    assert Searcher.open(index).search_images([orange], k=1)[0][0].label == "red"


def test_search_options_change_after_the_build_and_others_do_not(
    index: Path, tmp_path: Path
) -> None:
    build_index([open_embeddings(tmp_path / "embeddings")], "hnsw", tmp_path / "hnsw")
    opened = open_index(tmp_path / "hnsw", {"ef": "123"})
    assert opened.facts.options["ef"] == 123
    with pytest.raises(
        BadInput, match=r"option m cannot be changed after a build of hnsw.*one of: ef"
    ):
        open_index(tmp_path / "hnsw", {"m": "8"})
    with pytest.raises(UnknownName, match=r"unknown option of backend hnsw 'eff'.*mean 'ef'"):
        open_index(tmp_path / "hnsw", {"eff": "8"})


def test_an_index_is_replaced_whole(index: Path, tmp_path: Path) -> None:
    embeddings = open_embeddings(tmp_path / "embeddings")
    build_index([embeddings], "hnsw", index, Metric.COSINE)
    names = sorted(p.name for p in index.iterdir())
    assert names == [
        *(".lock", "columns.parquet", "contents.parquet"),
        *("index.hnsw", "index.json", "rows.parquet"),
    ]
    assert open_index(index).facts.metric is Metric.COSINE
    assert not list(tmp_path.glob("index.*"))


def test_a_first_build_that_was_killed_while_it_moved_its_files_is_made_anew(
    index: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    (killed / ".partial").mkdir(parents=True)
    shutil.copy(index / "index.faiss", killed)
    with pytest.raises(BadInput, match="is not an index"):
        open_index(killed)
    build_index([open_embeddings(tmp_path / "embeddings")], "exact", killed)
    assert verify(killed).problems == ()
    assert not (killed / ".partial").exists()


def test_a_build_that_fails_leaves_the_old_index(index: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in index.iterdir()}
    with pytest.raises(BadInput, match="manhattan"):
        build_index([open_embeddings(tmp_path / "embeddings")], "hnsw", index, Metric.MANHATTAN)
    assert {p.name: p.read_bytes() for p in index.iterdir()} == before
    assert verify(index).problems == ()


def test_a_refused_builder_leaves_the_lock_of_the_first(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is new for both, and the second would let in a third."""
    embeddings, new = open_embeddings(tmp_path / "embeddings"), tmp_path / "new"
    with ExitStack() as stack:

        def made_by_the_first(folder: Path) -> Path:
            made_folder(folder)
            stack.enter_context(locked(folder))
            return folder

        monkeypatch.setattr(build, "made_folder", made_by_the_first)
        with pytest.raises(Busy):
            build_index([embeddings], "exact", new)
        monkeypatch.undo()
        with pytest.raises(Busy):
            build_index([embeddings], "exact", new)
    build_index([embeddings], "exact", new)
    assert verify(new).problems == ()


def test_an_index_does_not_overwrite_something_else(index: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "letter.txt").write_text("dear")
    embeddings = open_embeddings(tmp_path / "embeddings")
    for folder in (tmp_path / "docs", tmp_path / "embeddings"):
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        with pytest.raises(BadInput, match="holds other files"):
            build_index([embeddings], "exact", folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["index.faiss", "rows.parquet"])
def test_damaged_and_missing_files(index: Path, name: str) -> None:
    path = index / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(BadData, match=f"{name} is damaged"):
        open_index(index)
    assert "is damaged" in verify(index).problems[0]
    path.unlink()
    with pytest.raises(BadData, match=f"{name} is missing"):
        open_index(index)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 9}, "version 9 of retr-index, this retr reads up to 3"),
        ({"backend": "hsnw"}, "unknown backend 'hsnw'; did you mean 'hnsw'"),
        ({"rows": 29}, "do not match: 30 vectors of 3 dimensions, 30 rows, and 29"),
        ({"dim": 4}, "do not match"),
        ({"metric": "far"}, "far"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_index_json_that_is_not_ours(index: Path, changes: dict[str, object], message: str) -> None:
    path = index / "index.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | changes)))
    with pytest.raises(BadInput, match=message):
        open_index(index)


def test_sets_of_different_encoders_are_not_indexed_together(
    index: Path, photos: Path, tmp_path: Path
) -> None:
    encode_source(open_source(str(photos)), Other(), tmp_path / "other")
    sets = [open_embeddings(tmp_path / "embeddings"), open_embeddings(tmp_path / "other")]
    with pytest.raises(Mismatch, match=r"toy \(ed25d95e\) and .* by toy \(ffffffff\)"):
        build_index(sets, "exact", tmp_path / "both")


def test_the_same_ids_twice_are_not_indexed(index: Path, tmp_path: Path) -> None:
    embeddings = open_embeddings(tmp_path / "embeddings")
    with pytest.raises(BadData, match=r"duplicate id 'blue/0.png'"):
        build_index([embeddings, embeddings], "exact", tmp_path / "both")


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("exact", {}),
        ("ivf", {"n_lists": 20}),
        ("ivfpq", {"n_lists": 20}),
        ("hnsw", {"build_threads": 1}),
        ("hnsw-pca", {"build_threads": 1}),
    ],
)
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
def test_shards_make_the_index_that_the_vectors_make(
    tmp_path: Path, backend: str, options: dict[str, object], metric: Metric
) -> None:
    vectors = np.random.default_rng(0).normal(size=(1600, 16)).astype(np.float32)
    sets = [
        embeddings(tmp_path / n, part)
        for n, part in zip("ab", np.split(vectors, [700]), strict=True)
    ]
    build_index(sets, backend, tmp_path / "shards", metric, options)
    indexer = make_indexer(backend, {**options, "metric": metric})
    assert isinstance(indexer, Streaming)
    opened = open_index(tmp_path / "shards")
    found, expected = (i.search(vectors, 10) for i in (opened.index, indexer.build(vectors)))
    # faiss links the vectors of one block from the highest level down, so that blocks show.
    least = 0.999 if backend == "hnsw-pca" else 1
    assert (found.rows == expected.rows).mean() >= least
    rows = opened.rows["id"].to_pylist()
    assert rows == [f"a{i}" for i in range(700)] + [f"b{i}" for i in range(900)]


def table_of(labels: list[str | None]) -> pa.Table:
    names = [f"{i}.png" for i in range(len(labels))]
    return pa.table([names, pa.array(labels, pa.string()), names], pa.schema(ROW_FIELDS))


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ('label="a, b",c', [0, 1]),
        ('label=c,"a, b"', [0, 1]),
        ('label=c, "a, b"', [0, 1]),
        ('label="a, b"', [0]),
        ("label=a, b", [0]),  # no quotes are needed for one value
        ('label="c"', [1]),
        ('label=5" disk,c', [1, 2]),
        ('label="5"" disk",c', [1, 2]),
        ('label="odd', [3]),  # as it stands
        ('label="odd,c', [1, 3]),
        ("label=caf\u00e9", [4]),
        ("label=cafe\u0301", [4]),
        ("id=0.png,4.png", [0, 4]),
    ],
)
def test_values_with_commas_are_quoted_and_match_in_nfc(where: str, found: list[int]) -> None:
    rows = table_of(["a, b", "c", '5" disk', '"odd', "caf\u00e9", None])
    assert np.flatnonzero(select_rows(rows, where).mask).tolist() == found


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ('label="a, b",d', "unknown label in the index 'd'"),
        ('label="a, b', "unknown label in the index '\"a'"),
    ],
)
def test_values_that_no_row_has_are_named(where: str, message: str) -> None:
    with pytest.raises(UnknownName, match=re.escape(message)):
        select_rows(table_of(["a, b", "c"]), where)


def test_labels_of_old_sets_are_read_in_nfc() -> None:
    rows = with_nfc_labels(table_of(["cafe\u0301", "caf\u00e9", None, "b"]))
    assert rows["label"].to_pylist() == ["caf\u00e9", "caf\u00e9", None, "b"]
    assert rows.schema.equals(pa.schema(ROW_FIELDS))
    plain = table_of(["caf\u00e9", None])
    assert with_nfc_labels(plain) is plain
