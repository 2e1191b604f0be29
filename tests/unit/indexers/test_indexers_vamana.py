"""SVS's graph beyond the contract: masks, copies, halves, files, its absence."""

from pathlib import Path

import numpy as np
import pytest

from indexers import vamana
from indexers.exact import Exact
from indexers.vamana import FACTS, Vamana, VamanaIndex
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData, BadInput


def vectors(rows: int, seed: int, dim: int = 16) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_walk_continues_until_enough_rows_match_the_mask(
    halves: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vamana, "COMPARED_PER_CANDIDATE", 0)
    database, queries = vectors(3000, 1), vectors(50, 2)
    mask = np.random.default_rng(3).random(3000) < share
    index = Vamana(Metric.EUCLIDEAN, ef=100, halves=halves).build(database)
    assert isinstance(index, VamanaIndex)
    true = Exact(Metric.EUCLIDEAN).build(database).search(queries, 5, mask)
    found = index.search(queries, 5, mask)
    assert mask[found.rows].all()
    assert (found.rows == true.rows).mean() > 0.97
    # Lines that a walk leaves short are compared. Here almost no row of the walk matches.
    few = np.zeros(3000, np.bool_)
    few[:40] = True
    true = Exact(Metric.EUCLIDEAN).build(database).search(queries, 5, few)
    assert np.array_equal(index.search(queries, 5, few).rows, true.rows)


@pytest.mark.parametrize("halves", [True, False])
def test_more_copies_than_links_are_all_found(halves: bool) -> None:
    database = np.repeat(vectors(3, 1), 200, axis=0)
    index = Vamana(Metric.EUCLIDEAN, degree=8, halves=halves).build(database)
    hits = index.search(database[[0, 250, 599]], 200)
    assert [set(line.tolist()) for line in hits.rows] == [
        {*range(200)},
        {*range(200, 400)},
        {*range(400, 600)},
    ]
    assert not hits.distances.any()


def test_halves_hold_vectors_of_any_length() -> None:
    for size in (1e-9, 1e9):
        database = vectors(800, 4) * np.float32(size)
        for metric in (Metric.EUCLIDEAN, Metric.INNER_PRODUCT):
            true = Exact(metric).build(database).search(database[:30], 5)
            found = Vamana(metric, ef=60).build(database).search(database[:30], 5)
            assert (found.rows == true.rows).mean() > 0.95, (size, metric)


def test_more_candidates_recover_recall_lost_by_halves() -> None:
    far = np.float32(30)  # neighbors differ by less than half precision
    database, queries = vectors(2000, 5) / 100 + far, vectors(100, 6) / 100 + far
    true = Exact(Metric.EUCLIDEAN).build(database).search(queries, 5)
    index = Vamana(Metric.EUCLIDEAN, ef=100).build(database)
    few = (index.search(queries, 5).rows == true.rows).mean()
    index.refine = 20
    assert (index.search(queries, 5).rows == true.rows).mean() > few + 0.2


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    index = Vamana().build(vectors(500, 7))
    index.save(tmp_path)
    Vamana().load(tmp_path)
    names = {path.name for path in tmp_path.iterdir()} - {"index.faiss"}
    assert len(names) == 6
    for name in sorted(names):
        file = tmp_path / name
        whole = file.read_bytes()
        for damaged in (whole[: len(whole) // 2], None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            with pytest.raises(BadData, match=r"build the index again|write it again"):
                Vamana().load(tmp_path)
            file.write_bytes(whole)
    # Same size, but another kind of file.
    settings = next(tmp_path.glob("parameters.toml"))
    settings.write_bytes(b"x" * settings.stat().st_size)
    with pytest.raises(BadData, match="is damaged"):
        Vamana().load(tmp_path)
    assert FACTS in names


def test_missing_library_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vamana, "_installed", lambda: False)
    with pytest.raises(BadInput, match=r"pip install 'retr\[vamana\]'"):
        Vamana().build(vectors(10, 1))
    assert not Vamana.candidates(Metric.COSINE, 1000, 16, 0)


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN, Metric.INNER_PRODUCT])
@pytest.mark.parametrize("zeros", [0, 3])
def test_distances_in_half_precision_are_nearly_right(
    metric: Metric, zeros: int, tmp_path: Path
) -> None:
    database, queries = vectors(1500, 8) * 50, vectors(40, 9) * 50
    database[:zeros] = queries[:zeros] = 0
    Vamana(metric, ef=200).build(database).save(tmp_path)
    exact = Exact(metric).build(database).search(queries, 10)
    told = Vamana(metric, ef=200, refine=0).load(tmp_path).search(queries, 10)
    assert (told.rows[zeros:] == exact.rows[zeros:]).mean() > 0.9
    np.testing.assert_allclose(told.distances, exact.distances, rtol=5e-3, atol=1e-3)
