"""An index in parts: built side by side, stopped and taken up again, searched as one."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest

from encoders.toy import Toy
from retrieval import build_index, open_embeddings, open_index
from retrieval.contracts import Metric, Vectors
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadData, BadInput, Mismatch
from retrieval.images import open_source
from retrieval.index.build_segments import SegmentTask, build_segments, even_groups
from retrieval.index.folder import IndexFacts, check_indexed
from retrieval.index.searching import Searcher
from retrieval.index.segments import SegmentedIndex
from retrieval.index.update import add_rows, delete_rows, merge_parts
from retrieval.inspection import verify
from retrieval.registry import make_indexer
from retrieval.storage.files import sealed
from retrieval.storage.places import RemotePath
from tests.made import OTHER, embeddings

DIM = 8


def drawn(rows: int, seed: int = 0) -> Vectors:
    """Vectors of which some are equal."""
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)
    vectors[rows // 2 : rows // 2 + 5] = vectors[:5]
    return vectors


def in_turn(
    build: Callable[[SegmentTask], IndexFacts], tasks: Sequence[SegmentTask]
) -> Iterator[tuple[int, IndexFacts]]:
    """An engine that needs no processes, and begins with the last."""
    for number in reversed(range(len(tasks))):
        yield number, build(tasks[number])


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN, Metric.MANHATTAN])
@pytest.mark.parametrize("parts", [1, 3, 5])
def test_exact_search_in_parts_is_exact_search(tmp_path: Path, metric: Metric, parts: int) -> None:
    sets = [
        embeddings(tmp_path / "a", drawn(90), shard_rows=20),
        embeddings(tmp_path / "b", drawn(35, 1), shard_rows=10),
    ]
    build_index(sets, "exact", tmp_path / "one", metric)
    facts = build_segments(sets, "exact", tmp_path / "parts", parts, metric, engine=in_turn)
    assert len(facts.parts) == parts
    assert facts.rows == 125
    one, several = (open_index(tmp_path / name) for name in ("one", "parts"))
    assert one.rows.equals(several.rows)
    queries = np.concatenate([drawn(90)[:20], drawn(30, 2)])
    odd = np.arange(125) % 2 == 1
    few = np.arange(125) == 7
    for among in (None, odd, few):
        for k in (1, 10, 125, 130):
            a, b = (each.index.search(queries, k, among) for each in (one, several))
            np.testing.assert_allclose(a.distances, b.distances, atol=1e-6)
            assert np.array_equal(a.rows, b.rows)
    for among in (None, odd, few):  # few queries: the cores share the segments
        a, b = (each.index.search(queries[:3], 10, among) for each in (one, several))
        assert np.array_equal(a.rows, b.rows)
    assert not verify(tmp_path / "parts").problems


@pytest.mark.parametrize("backend", ["hnsw", "ivf", "hnsw-pca", "ivfpq"])
def test_other_backends_in_parts(tmp_path: Path, backend: str) -> None:
    sets = [embeddings(tmp_path / "a", drawn(900), shard_rows=200)]
    build_segments(sets, backend, tmp_path / "parts", 2, engine=in_turn)
    hits = Searcher.open(tmp_path / "parts").search(drawn(900)[100:120], 1)
    assert [hit[0].id for hit in hits] == [f"a{row}" for row in range(100, 120)]


def test_processes_build_what_one_does(tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "a", drawn(60), shard_rows=10)]
    done: list[tuple[int, int]] = []
    facts = build_segments(sets, "exact", tmp_path / "x", 3, progress=lambda *of: done.append(of))
    again = build_segments(sets, "exact", tmp_path / "y", 3, engine=in_turn)
    assert facts == again
    assert done == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_what_goes_wrong_in_a_process_is_said(tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "a", drawn(60), shard_rows=10)]
    (tmp_path / "a" / "part-00003.parquet").write_bytes(b"damaged")
    with pytest.raises(BadData, match=r"part-00003.parquet is damaged"):
        build_segments(sets, "exact", tmp_path / "x", 3)
    assert not (tmp_path / "x" / "index.json").exists()


def test_a_build_that_was_stopped_keeps_its_parts(tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "a", drawn(60), shard_rows=10)]

    def stopped(
        build: Callable[[SegmentTask], IndexFacts], tasks: Sequence[SegmentTask]
    ) -> Iterator[tuple[int, IndexFacts]]:
        yield 1, build(tasks[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_segments(sets, "exact", tmp_path / "x", 3, engine=stopped)
    with pytest.raises(BadInput, match="is not an index"):
        open_index(tmp_path / "x")
    built: list[int] = []

    def counted(
        build: Callable[[SegmentTask], IndexFacts], tasks: Sequence[SegmentTask]
    ) -> Iterator[tuple[int, IndexFacts]]:
        built.append(len(tasks))
        return in_turn(build, tasks)

    facts = build_segments(sets, "exact", tmp_path / "x", 3, engine=counted)
    assert built == [2]
    assert facts == build_segments(sets, "exact", tmp_path / "y", 3, engine=in_turn)
    # Another build leaves nothing of this one, nor of one that was stopped.
    with pytest.raises(KeyboardInterrupt):
        build_segments(sets, "hnsw", tmp_path / "x", 3, engine=stopped)
    assert open_index(tmp_path / "x").facts == facts
    after = build_segments(sets, "exact", tmp_path / "x", 2, engine=in_turn)
    kept = {path.name for path in (tmp_path / "x").iterdir()}
    assert kept == {".lock", "index.json", *(part.folder for part in after.parts)}
    build_index(sets, "exact", tmp_path / "x")
    names = {path.name for path in (tmp_path / "x").iterdir()}
    assert names == {".lock", "index.json", "index.faiss", "rows.parquet"}


def test_rows_are_added_as_a_part(tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "a", drawn(60), shard_rows=10)]
    build_segments(sets, "hnsw", tmp_path / "x", 2, engine=in_turn)
    more = embeddings(tmp_path / "b", drawn(20, 3), shard_rows=20)
    facts = add_rows(tmp_path / "x", [more])
    assert (facts.rows, len(facts.parts), len(facts.embeddings)) == (80, 3, 2)
    hits = Searcher.open(tmp_path / "x").search(drawn(20, 3)[5:10], 1)
    assert [hit[0].id for hit in hits] == [f"b{row}" for row in range(5, 10)]
    assert add_rows(tmp_path / "x", [more]) == facts  # it is there already
    (tmp_path / "again").mkdir()
    with pytest.raises(BadData, match="duplicate id"):
        add_rows(
            tmp_path / "x", [embeddings(tmp_path / "again" / "b", drawn(20, 5), shard_rows=20)]
        )
    other = embeddings(tmp_path / "c", drawn(20, 4), OTHER, shard_rows=20)
    with pytest.raises(Mismatch):
        add_rows(tmp_path / "x", [other])
    with pytest.raises(BadInput, match="in parts cannot delete rows"):
        delete_rows(tmp_path / "x", "id=a1")
    assert not verify(tmp_path / "x").problems


def test_search_options_are_those_of_all_parts(tmp_path: Path) -> None:
    build_segments(
        [embeddings(tmp_path / "a", drawn(60), shard_rows=10)],
        "hnsw",
        tmp_path / "x",
        2,
        engine=in_turn,
    )
    opened = open_index(tmp_path / "x", {"ef": "77"})
    assert opened.facts.options["ef"] == 77
    assert isinstance(opened.index, SegmentedIndex)
    assert {part.graph.ef for part in opened.index.parts} == {77}  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="option m cannot be changed after a build of hnsw"):
        open_index(tmp_path / "x", {"m": "4"})


def test_a_part_is_no_index_of_the_whole(tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "a", drawn(60), shard_rows=10)]
    facts = build_segments(sets, "exact", tmp_path / "x", 2, engine=in_turn)
    check_indexed(open_index(tmp_path / "x"), sets[0])
    with pytest.raises(Mismatch, match="was not built from"):
        check_indexed(open_index(tmp_path / "x" / facts.parts[0].folder), sets[0])


def test_damage_is_found(tmp_path: Path) -> None:
    sets = [embeddings(tmp_path / "a", drawn(60), shard_rows=10)]
    facts = build_segments(sets, "exact", tmp_path / "x", 2, engine=in_turn)
    first, second = (tmp_path / "x" / part.folder for part in facts.parts)
    content = (first / "index.faiss").read_bytes()
    (first / "index.faiss").write_bytes(content[:-1])
    assert "index.faiss is damaged" in verify(tmp_path / "x").problems[0]
    (first / "index.faiss").write_bytes(content)
    build_index(sets, "exact", second)
    with pytest.raises(BadData, match="checksum mismatch"):
        open_index(tmp_path / "x")
    (second / "index.json").unlink()
    with pytest.raises(BadData, match="is missing"):
        open_index(tmp_path / "x")


@pytest.mark.parametrize(
    "part",
    [
        {"folder": "../y", "rows": 60, "sha256": "0"},
        {"folder": "/y", "rows": 60, "sha256": "0"},
        {"folder": "part", "rows": 59, "sha256": "0"},
        {"folder": "part"},
    ],
)
def test_an_index_json_that_lies_about_parts(tmp_path: Path, part: dict[str, object]) -> None:
    build_segments(
        [embeddings(tmp_path / "a", drawn(60), shard_rows=10)],
        "exact",
        tmp_path / "x",
        2,
        engine=in_turn,
    )
    path = tmp_path / "x" / "index.json"
    document = json.loads(path.read_text())
    assert document["version"] == 3
    path.write_text(json.dumps(sealed(document | {"parts": [part]})))
    with pytest.raises(BadData):
        open_index(tmp_path / "x")


def test_parts_in_a_store(photos: Path) -> None:
    root = RemotePath("memory://sharded")
    encode_source(open_source(str(photos)), Toy(), root / "out", shard_images=7)
    sets = [open_embeddings(root / "out")]
    facts = build_segments(sets, "exact", root / "x", 2, engine=in_turn)
    assert [part.rows for part in facts.parts] == [21, 9]
    hits = Searcher.open(root / "x").search(sets[0].vectors()[3:4], 1)
    assert hits[0][0].id == "blue/3.png"
    assert not verify(root / "x").problems
    after = build_segments(sets, "hnsw", root / "x", 2, engine=in_turn)
    names = {name.split("/")[0] for name in (root / "x").find()}
    assert names == {"index.json", *(part.folder for part in after.parts)}
    fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.mark.parametrize(
    ("rows", "parts", "sizes"),
    [
        ([10] * 6, 3, [20, 20, 20]),
        ([10] * 5, 3, [20, 20, 10]),
        ([10, 1], 5, [10, 1]),
        ([0, 10, 0, 10, 0], 2, [10, 10]),
        ([10], 4, [10]),
        ([1, 1, 1, 97], 2, [100]),
    ],
)
def test_parts_are_of_about_as_many_rows(rows: list[int], parts: int, sizes: list[int]) -> None:
    assert [sum(rows[group]) for group in even_groups(rows, parts)] == sizes


def test_an_id_may_not_stand_in_two_parts(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    sets = [
        embeddings(tmp_path / "a", drawn(40), shard_rows=20),
        embeddings(tmp_path / "again" / "a", drawn(40, 1), shard_rows=20),
    ]
    with pytest.raises(BadData, match=r"duplicate id 'a0' in .*a and .*again/a"):
        build_segments(sets, "exact", tmp_path / "x", 2, engine=in_turn)
    assert not (tmp_path / "x" / "index.json").exists()


def test_no_parts(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="number of parts is 0"):
        build_segments(
            [embeddings(tmp_path / "a", drawn(60), shard_rows=10)], "exact", tmp_path / "x", 0
        )


def test_parts_satisfy_the_contract_of_an_index(tmp_path: Path) -> None:
    vectors = drawn(60)
    indexer = make_indexer("exact", {"metric": "euclidean"})
    parts = SegmentedIndex([indexer.build(vectors[:20]), indexer.build(vectors[20:])])
    assert (len(parts), parts.dim, parts.details["parts"]) == (60, DIM, 2)
    parts.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    for bad, error in ((vectors[:, :3], Mismatch), (vectors[0], BadInput)):
        with pytest.raises(error):
            parts.search(bad, 3)
    with pytest.raises(BadInput):
        parts.search(vectors, 0)
    with pytest.raises(Mismatch):
        parts.search(vectors, 1, np.ones(59, np.bool_))


@pytest.mark.parametrize("backend", ["exact", "hnsw", "hnsw-pca", "ivf"])
def test_parts_are_merged_into_the_index_that_one_build_makes(tmp_path: Path, backend: str) -> None:
    sets = [
        embeddings(tmp_path / "a", drawn(90), shard_rows=20),
        embeddings(tmp_path / "b", drawn(35, 1), shard_rows=10),
    ]
    index = tmp_path / "parts"
    build_segments([sets[0]], backend, index, 3, engine=in_turn)
    add_rows(index, [sets[1]])
    before = open_index(index)
    assert len(before.facts.parts) == 4
    facts = merge_parts(index)
    merged = open_index(index)
    assert merged.facts == facts and not facts.parts and facts.rows == 125
    assert merged.facts.embeddings == before.facts.embeddings
    assert merged.rows.equals(before.rows)
    assert merged.columns.table().equals(before.columns.table())
    queries = drawn(30, 2)
    build_index(sets, backend, tmp_path / "one")
    one = open_index(tmp_path / "one")
    assert merged.facts.options == one.facts.options, "efforts are chosen for all rows"
    wanted = one.index.search(queries, 10)
    np.testing.assert_allclose(
        merged.index.search(queries, 10).distances, wanted.distances, atol=1e-6
    )
    assert not verify(index).problems
    assert not [*index.glob("part-*")], "the parts are gone"
    assert merge_parts(index) == facts, "nothing is left to do"


def test_a_merge_keeps_at_least_the_effort_that_was_given(tmp_path: Path) -> None:
    database = embeddings(tmp_path / "a", drawn(400), shard_rows=100)
    for backend, options in (("hnsw", {"ef": 300}), ("ivf", {"n_probe": 7, "n_lists": 9})):
        index = tmp_path / backend
        build_segments([database], backend, index, 2, None, options, engine=in_turn)
        facts = merge_parts(index)
        assert all(facts.options[name] >= value for name, value in options.items())  # type: ignore


def test_codes_are_not_merged(tmp_path: Path) -> None:
    database = embeddings(tmp_path / "a", drawn(300), shard_rows=100)
    options = {"factory": "PQ4x4"}
    build_segments([database], "faiss", tmp_path / "parts", 2, None, options, engine=in_turn)
    before = IndexFacts.read(tmp_path / "parts")
    with pytest.raises(BadInput, match="do not keep their vectors; index the embeddings again"):
        merge_parts(tmp_path / "parts")
    assert IndexFacts.read(tmp_path / "parts") == before


def test_a_merge_that_fails_leaves_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = embeddings(tmp_path / "a", drawn(90), shard_rows=20)
    build_segments([database], "exact", tmp_path / "parts", 3, engine=in_turn)
    before = IndexFacts.read(tmp_path / "parts")
    monkeypatch.setattr("retrieval.index.update.write_index", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge_parts(tmp_path / "parts")
    assert IndexFacts.read(tmp_path / "parts") == before
    assert not verify(tmp_path / "parts").problems
