"""faiss's compressed indices beyond the contract: axes, effort, refusals."""

from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from benchmarks.speed.scale import draw
from indexers.exact import Exact
from indexers.factory import Faiss
from indexers.faiss import bridge
from indexers.faiss import index as faiss_index
from indexers.faiss.index import FaissIndex
from indexers.hnsw_pca import HnswPca
from indexers.ivfpq import IvfPq
from indexers.projection import projection
from retrieval import hits
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData, BadInput


def vectors(rows: int, dim: int = 32, axes: int = 6) -> Vectors:
    """Vectors that vary along few axes, and a little along all, off the origin."""
    generator = np.random.default_rng(2)
    along = generator.standard_normal((axes, dim))
    noise = 0.05 * generator.standard_normal((rows, dim))
    return (generator.standard_normal((rows, axes)) @ along + noise + 3).astype(np.float32)


def turned(values: Vectors, metric: Metric, **options: Any) -> Vectors:
    transform = projection(values, metric, **options)
    assert transform is not None
    return np.asarray(transform.apply(values))


def test_the_axes_keep_distances() -> None:
    values = vectors(500)
    for axes, most in ((8, 0.1), (31, 0.01)):
        short = turned(values, Metric.EUCLIDEAN, axes=axes, multiple=1)
        assert short.shape == (500, axes)
        before = np.linalg.norm(values[:250] - values[250:], axis=1)
        after = np.linalg.norm(short[:250] - short[250:], axis=1)
        assert (np.abs(after / before - 1) < most).all()


@pytest.mark.parametrize("metric", [Metric.INNER_PRODUCT, Metric.COSINE])
def test_the_axes_keep_products_of_vectors_off_the_origin(metric: Metric) -> None:
    values = vectors(500)
    short = turned(values, metric, axes=8, multiple=1)
    before, after = values[:250] @ values[250:].T, short[:250] @ short[250:].T
    assert (np.abs(after - before) < 0.01 * np.abs(before).max()).all()


def test_mixed_axes_keep_distances_and_share_the_variance() -> None:
    values = vectors(500)
    short = turned(values, Metric.EUCLIDEAN, axes=16, mixed=True)
    before = np.linalg.norm(values[:250] - values[250:], axis=1)
    np.testing.assert_allclose(np.linalg.norm(short[:250] - short[250:], axis=1), before, rtol=0.05)
    assert short.var(axis=0).max() < 6 * short.var(axis=0).mean()
    plain = turned(values, Metric.EUCLIDEAN, axes=16)
    assert plain.var(axis=0).max() > 6 * plain.var(axis=0).mean() or (
        plain.var(axis=0).min() < 1e-3 * plain.var(axis=0).max()
    )
    again = turned(values, Metric.EUCLIDEAN, axes=16, mixed=True)
    np.testing.assert_array_equal(short, again)
    assert (turned(values, Metric.EUCLIDEAN, axes=16, mixed=True, seed=1) != short).any()


def test_number_of_axes() -> None:
    values = vectors(500)
    assert turned(values, Metric.EUCLIDEAN, axes=None).shape[1] == 16
    assert turned(values, Metric.EUCLIDEAN, axes=3).shape[1] == 16
    assert projection(values, Metric.EUCLIDEAN, axes=17) is None, "32 axes are all there are"
    assert projection(values, Metric.EUCLIDEAN, axes=1000) is None
    assert projection(np.zeros((5, 4), np.float32), Metric.COSINE, None) is None


@pytest.mark.parametrize("scale", [1, 1e17])
def test_axes_separate_neighbors_within_clusters(scale: float) -> None:
    """Two clusters, between which nearly all variance lies: one axis would keep 99% of it."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((600, 24)) * np.linspace(1, 0.1, 24)
    values[::2, 3] += 40
    short = turned((values * scale).astype(np.float32), Metric.EUCLIDEAN, axes=None, multiple=1)
    short = short.astype(np.float64) / scale
    near = nearest(values, 11)
    kept = [
        np.mean([np.isin(a, b).mean() for a, b in zip(near, nearest(part, 40), strict=True)])
        for part in (short, short[:, :-1])
    ]
    assert kept[0] > 0.98 and kept[1] < kept[0]
    assert 1 < short.shape[1] < 24


def nearest(values: Any, k: int) -> Any:
    """(n, k): the rows nearest to each, itself among them."""
    return np.argsort(np.square(values[:, None] - values).sum(2), axis=1)[:, :k]


@pytest.mark.parametrize(("kind", "least"), [(partial(IvfPq, n_probe=256), 0.9), (HnswPca, 0.95)])
def test_clusters_with_the_same_directions_stay_separate(kind: Any, least: float) -> None:
    # Most of the distance between neighbors lies along 16 axes, where all clusters look alike.
    database, queries = draw(10_000, seed=2), draw(100, seed=1)
    index = kind(Metric.EUCLIDEAN).build(database)
    assert index.details["axes"] > 64
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 10).rows
    found = index.search(queries, 10).rows
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)])
    assert recall > least


def test_axes_of_vectors_far_from_the_origin() -> None:
    values = vectors(500)
    plain = turned(values, Metric.EUCLIDEAN, axes=16).var(axis=0).sum()
    far = turned(values + np.float32(10_000), Metric.EUCLIDEAN, axes=16)
    assert abs(far.astype(np.float64).var(axis=0).sum() / plain - 1) < 0.05


def test_axes_of_vectors_whose_squares_overflow_float32() -> None:
    values = vectors(300)
    for scale in (1e30, 1e-30):
        short = turned((values * scale).astype(np.float32), Metric.EUCLIDEAN, axes=16)
        plain = turned(values, Metric.EUCLIDEAN, axes=16)
        # Axes without variance are arbitrary.
        np.testing.assert_allclose(np.abs(short / scale)[:, :6], np.abs(plain)[:, :6], atol=1e-2)


def test_details_name_axes_and_copies() -> None:
    pq = IvfPq(Metric.EUCLIDEAN, n_lists=7, axes=16, per_code=4).build(vectors(500))
    assert pq.details == {"lists": 7, "axes": 16, "bits": 16}
    odd = IvfPq(Metric.EUCLIDEAN, n_lists=7, per_code=2).build(vectors(500, dim=15))
    assert odd.details["bits"] == 60, "15 numbers are not made of pairs"
    assert Faiss().build(vectors(500)).details == {"kind": "IndexHNSWFlat"}


def test_distances_are_those_of_the_vectors() -> None:
    database, queries = vectors(3000), vectors(3020)[3000:]
    hits = IvfPq(Metric.EUCLIDEAN).build(database).search(queries, 10)
    true = np.linalg.norm(database[hits.rows] - queries[:, None], axis=2)
    np.testing.assert_allclose(hits.distances, true, rtol=1e-4)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.95])
def test_masks_of_every_size(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "MAX_COMPARED_ROWS", 100)
    database, queries = vectors(4000), vectors(4030)[4000:]
    mask = np.random.default_rng(0).random(4000) < share
    hits = IvfPq(Metric.EUCLIDEAN).build(database).search(queries, 4, mask)
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 4, mask)
    assert (hits.rows == truth.rows).mean() > 0.95
    assert mask[hits.rows[hits.rows >= 0]].all()


def test_queries_that_find_too_few_rows_are_compared_with_all() -> None:
    database = vectors(3000)
    index = IvfPq(Metric.EUCLIDEAN, n_lists=100, n_probe=1).build(database)
    hits = index.search(database[:5], 2000)
    truth = Exact(Metric.EUCLIDEAN).build(database).search(database[:5], 2000)
    np.testing.assert_allclose(hits.distances, truth.distances, atol=2e-2)


@pytest.mark.parametrize(
    ("made", "option", "values"),
    [
        (IvfPq(Metric.EUCLIDEAN, axes=16, n_probe=100), "refine", (1, 40)),
        (IvfPq(Metric.EUCLIDEAN, refine=40), "n_probe", (1, 100)),
    ],
)
def test_effort_of_the_loading_indexer_applies(
    made: Any, option: str, values: tuple[int, int], tmp_path: Path
) -> None:
    database, queries = vectors(3000, axes=20), vectors(3100, axes=20)[3000:]
    made.build(database).save(tmp_path)
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 10)
    found = []
    for value in values:
        index = type(made)(**{**vars(made), option: value}).load(tmp_path)
        found.append((index.search(queries, 10).rows == truth.rows).mean())
    assert found[0] + 0.03 < found[1], "more effort must find more"


def test_the_seed_decides_the_lists(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        folder = tmp_path / name
        folder.mkdir()
        IvfPq(Metric.EUCLIDEAN, n_lists=8, seed=seed).build(vectors(2000)).save(folder)
        files.append((folder / "index.faiss").read_bytes())
    assert files[0] == files[1] != files[2]


def test_saved_for_faiss(tmp_path: Path) -> None:
    database, queries = vectors(2000), vectors(2020)[2000:]
    index = IvfPq(Metric.EUCLIDEAN).build(database)
    index.save(tmp_path)
    read: Any = faiss.read_index(str(tmp_path / "index.faiss"))
    read.k_factor = 40
    bridge.set_parameters(read, "nprobe=40")
    assert (read.search(queries, 1)[1] == index.search(queries, 1).rows).mean() > 0.9


def test_load_refuses_another_kind(tmp_path: Path) -> None:
    HnswPca(Metric.EUCLIDEAN).build(vectors(300)).save(tmp_path)
    with pytest.raises(BadData, match="IndexHNSWFlat, not IndexIVFPQFastScan"):
        IvfPq(Metric.EUCLIDEAN).load(tmp_path)
    Exact(Metric.EUCLIDEAN).build(vectors(300)).save(tmp_path)
    with pytest.raises(BadData, match="wanted IndexRefineFlat"):
        IvfPq(Metric.EUCLIDEAN).load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (IvfPq, {"metric": Metric.MANHATTAN}, "no product codes for manhattan"),
        (IvfPq, {"n_lists": 0}, "n_lists is 0"),
        (IvfPq, {"n_probe": 0}, "n_probe is 0"),
        (IvfPq, {"per_code": 0}, "per_code is 0"),
        (Faiss, {"seed": -1}, "seed is -1"),
    ],
)
def test_options_out_of_range(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "HNSV32"}, "could not parse index string HNSV32.*change factory"),
        ({"factory": "PQ7"}, "'PQ7' of 200 vectors of 32 dimensions"),
        (
            {"factory": "HNSW32_SQ8", "metric": Metric.MANHATTAN},
            "cannot build the manhattan index 'HNSW32_SQ8'",
        ),
        (
            {"search": "nprobe=3"},
            r"does not search 'HNSW32,Flat' with 'nprobe=3' \(could not set parameter nprobe\)",
        ),
        ({"search": "efSearch=many"}, "change factory or search"),
        ({"factory": "HNSW1,Flat"}, "faiss cannot build the cosine index 'HNSW1,Flat'"),
        ({"factory": "HNSW0,Flat"}, "faiss cannot build the cosine index 'HNSW0,Flat'"),
        ({"factory": "IVF8,Flat", "search": "nprobe=0"}, "with 'nprobe=0'"),
        (
            {"factory": "Flat,Refine(SQ8)", "metric": Metric.MANHATTAN},
            "IndexScalarQuantizer does not support the distance",
        ),
    ],
)
def test_factory_strings_that_faiss_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Faiss(**options).build(vectors(200))


def test_search_parameters_of_the_loading_indexer_apply(tmp_path: Path) -> None:
    database = vectors(2000)
    Faiss(factory="IVF50,Flat", search="nprobe=2").build(database).save(tmp_path)
    index = Faiss(factory="IVF50,Flat", search="nprobe=50").load(tmp_path)
    truth = Exact().build(database).search(database[:50], 5)
    assert (index.search(database[:50], 5).rows == truth.rows).mean() > 0.98
    assert isinstance(index, FaissIndex)
    assert index.vectors is None, "inverted lists keep no vectors that could be compared at once"


def test_index_without_masks_refuses_them() -> None:
    index = Faiss(factory="NSG16").build(vectors(500))
    mask = np.arange(500) % 2 == 0
    with pytest.raises(BadInput, match="IndexNSGFlat cannot search with a filter"):
        index.search(vectors(5), 3, mask)


def test_graph_that_cannot_grow_is_built_in_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hits, "BLOCK_ROWS", 200)
    index = Faiss(factory="NSG16").build(vectors(500))
    assert len(index) == 500
    with pytest.raises(BadInput, match=r"faiss's IndexNSGFlat cannot add rows"):
        index.add(vectors(5))


def test_faiss_does_not_warn_about_few_rows(capfd: pytest.CaptureFixture[str]) -> None:
    for indexer in (HnswPca(), IvfPq(), Faiss(factory="IVF16,PQ4np"), Faiss(factory="PQ8np")):
        for rows in (1, 10, 100):
            assert len(indexer.build(vectors(rows))) == rows
    assert capfd.readouterr() == ("", "")
