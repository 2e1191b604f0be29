"""Rows added to an index, and deleted from it: the rows' names, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from retrieval.contracts import Vectors
from retrieval.errors import BadData, BadInput, Busy, Mismatch, UnknownName
from retrieval.index.build import build_index
from retrieval.index.folder import IndexFacts, check_indexed, open_index
from retrieval.index.searching import Searcher
from retrieval.index.update import add_rows, delete_rows
from retrieval.inspection import verify
from retrieval.storage.files import locked
from retrieval.storage.sets.embeddings import Embeddings
from tests.made import OTHER, embeddings

DIM = 4


def vectors(rows: int, seed: int) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def names(folder: Path, queries: Vectors) -> list[str]:
    """The ids of the nearest rows."""
    return [hits[0].id for hits in Searcher.open(folder).search(queries, 1)]


@pytest.fixture
def first(tmp_path: Path) -> Embeddings:
    return embeddings(tmp_path / "a", vectors(60, 1))


@pytest.mark.parametrize("backend", ["exact", "ivf", "hnsw", "hnsw-pca", "ivfpq", "faiss"])
def test_added_rows_are_found_by_their_names(
    first: Embeddings, tmp_path: Path, backend: str
) -> None:
    folder = tmp_path / "index"
    before = build_index([first], backend, folder)
    sets = [embeddings(tmp_path / name, vectors(20, seed)) for name, seed in (("b", 2), ("c", 3))]
    facts = add_rows(folder, sets)
    assert (facts.rows, facts.deleted) == (100, 0)
    assert facts.embeddings[:1] == before.embeddings
    assert len(facts.embeddings) == 3
    assert facts == IndexFacts.read(folder)
    assert names(folder, vectors(60, 1)[::7]) == [f"a{i}" for i in range(0, 60, 7)]
    assert names(folder, vectors(20, 3)) == [f"c{i}" for i in range(20)]
    assert not verify(folder).problems
    with pytest.raises(Mismatch, match="was not built from"):
        check_indexed(open_index(folder), first)


@pytest.mark.parametrize("backend", ["exact", "ivf"])
def test_deleted_rows_are_gone_and_the_others_keep_their_names(
    first: Embeddings, tmp_path: Path, backend: str
) -> None:
    folder = tmp_path / "index"
    build_index([first], backend, folder)
    facts = delete_rows(folder, "id=a0,a7,a59")
    assert (facts.rows, facts.deleted) == (57, 3)
    kept = [i for i in range(60) if i not in (0, 7, 59)]
    assert names(folder, vectors(60, 1)[kept]) == [f"a{i}" for i in kept]
    facts = delete_rows(folder, "label=odd")
    assert (facts.rows, facts.deleted) == (29, 31)
    assert names(folder, vectors(60, 1)[[2, 58]]) == ["a2", "a58"]
    assert not verify(folder).problems
    with pytest.raises(Mismatch, match="31 rows were deleted from"):
        check_indexed(open_index(folder), first)
    add_rows(folder, [embeddings(tmp_path / "b", vectors(5, 2))])
    assert names(folder, vectors(5, 2)) == [f"b{i}" for i in range(5)]


def test_what_cannot_be_added_changes_nothing(first: Embeddings, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    before = build_index([first], "exact", folder)
    (tmp_path / "again").mkdir()
    twice = embeddings(tmp_path / "again" / "a", vectors(5, 4))
    other = embeddings(tmp_path / "b", vectors(5, 2), OTHER)
    wide = embeddings(tmp_path / "c", np.ones((5, DIM + 1), np.float32))
    for sets, error, message in (
        ([twice], BadData, "a0"),
        ([other], Mismatch, "their distances have no meaning"),
        ([wide], Mismatch, "5 dimensions, and .* has 4"),
    ):
        with pytest.raises(error, match=message):
            add_rows(folder, sets)
    for where, wrong, message in (
        ("label=purple", UnknownName, "purple"),
        ("label=odd,even", BadInput, "all 60 rows"),
        ("odd", BadInput, "cannot read the filter"),
    ):
        with pytest.raises(wrong, match=message):
            delete_rows(folder, where)
    with locked(folder), pytest.raises(Busy):
        delete_rows(folder, "label=odd")
    assert add_rows(folder, [first]) == before  # it is there already
    assert open_index(folder).facts == before
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "index.faiss", "index.json", "rows.parquet",
    ]  # fmt: skip


def test_a_folder_that_is_no_index_is_left_alone(first: Embeddings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="is not an index"):
        add_rows(tmp_path / "empty", [first])
    with pytest.raises(BadInput, match="is not an index"):
        delete_rows(tmp_path / "empty", "label=odd")
    assert not [*(tmp_path / "empty").iterdir()]


def test_an_index_from_before_rows_could_be_deleted(first: Embeddings, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index([first], "exact", folder)
    path = folder / "index.json"
    document = json.loads(path.read_text()) | {"version": 1}
    for newer in ("deleted", "at", "parts", "checksum"):
        del document[newer]
    path.write_text(json.dumps(document))
    assert IndexFacts.read(folder).deleted == 0
