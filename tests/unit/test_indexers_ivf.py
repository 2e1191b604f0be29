"""What the contract leaves open about inverted lists: how many, which are probed, which device."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from indexers import ivf
from indexers.exact import Exact
from indexers.ivf import Ivf
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadInput


def clustered(rows: int, dim: int = 8) -> Vectors:
    return np.random.default_rng(2).standard_normal((rows, dim), dtype=np.float32)


@pytest.mark.parametrize(
    ("rows", "n_lists", "lists"),
    [
        (1, None, 1),
        (38, None, 1),
        (77, None, 1),
        (78, None, 2),
        (5000, None, 128),  # 39 rows each
        (40_000, None, 800),  # 4 √rows
        (100, 7, 7),
        (5, 7, 5),
    ],
)
def test_number_of_lists(
    rows: int, n_lists: int | None, lists: int, capfd: pytest.CaptureFixture[str]
) -> None:
    index = Ivf(Metric.EUCLIDEAN, n_lists=n_lists, device="cpu").build(clustered(rows, 2))
    assert index.details == {"lists": lists, "device": "cpu"}
    assert capfd.readouterr() == ("", "")


def test_probes_are_those_of_faiss() -> None:
    database, queries = clustered(3000), clustered(3040)[3000:]
    index = Ivf(Metric.EUCLIDEAN, n_probe=3, device="cpu").build(database)
    index.index.nprobe = 3
    squares, rows = index.index.search(queries, 10)
    assert (rows >= 0).all()
    hits = index.search(queries, 10)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_allclose(hits.distances, np.sqrt(squares))
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 10)
    assert (hits.rows != truth.rows).any(), "three of 76 lists cannot hold every neighbor"


def test_more_probes_than_lists_are_exact() -> None:
    database, queries = clustered(1000), clustered(1040)[1000:]
    for metric in Metric:
        hits = Ivf(metric, n_probe=10**6, device="cpu").build(database).search(queries, 10)
        truth = Exact(metric).build(database).search(queries, 10)
        np.testing.assert_array_equal(hits.rows, truth.rows)


def test_probes_widen_until_k_rows_are_found() -> None:
    database = clustered(2000)
    index = Ivf(Metric.EUCLIDEAN, n_lists=50, n_probe=1, device="cpu").build(database)
    for k in (60, 700, 2000):
        hits = index.search(database[:5], k)
        assert (hits.rows >= 0).all(), f"2000 rows hold {k}"


def test_a_mask_widens_the_probes() -> None:
    database, queries = clustered(4000), clustered(4100)[4000:]
    index = Ivf(Metric.EUCLIDEAN, n_lists=100, n_probe=10, device="cpu").build(database)
    mask = np.random.default_rng(0).random(4000) < 0.08
    hits = index.search(queries, 5, mask)
    truth = Exact(Metric.EUCLIDEAN).build(database).search(queries, 5, mask)
    assert (hits.rows == truth.rows).mean() > 0.99


def test_same_seed_same_file(tmp_path: Path) -> None:
    database = clustered(3000)
    files = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        folder = tmp_path / name
        folder.mkdir()
        Ivf(n_lists=10, seed=seed, device="cpu").build(database).save(folder)
        files.append((folder / "index.faiss").read_bytes())
    assert files[0] == files[1] != files[2]


def test_n_probe_is_the_loading_indexer_s(tmp_path: Path) -> None:
    Ivf(n_lists=50, n_probe=1, device="cpu").build(clustered(2000)).save(tmp_path)
    assert Ivf(n_probe=20, device="cpu").load(tmp_path).n_probe == 20
    assert Ivf(n_probe=80, device="cpu").load(tmp_path).n_probe == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_lists": 0}, "n_lists is 0; give it at least 1"),
        ({"n_probe": 0}, "n_probe is 0; give it at least 1"),
        ({"seed": -1}, "seed is -1; give it from 0 to 2147483647"),
        ({"device": "tpu"}, "device is 'tpu'; give it one of auto, cpu, cuda"),
        ({"device": "cuda", "metric": Metric.MANHATTAN}, "manhattan.*set device=cpu"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Ivf(**options)


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    Ivf().build(clustered(50)).save(tmp_path)
    with pytest.raises(BadInput, match="faiss sees no GPU; set device=cpu"):
        Ivf(device="cuda").build(clustered(50))
    with pytest.raises(BadInput, match="faiss sees no GPU; set device=cpu"):
        Ivf(device="cuda").load(tmp_path)


class FakeGpu(ivf.Gpu):
    """The CPU's index in the place of the GPU's, to see which searches go there."""

    def __init__(self, index: faiss.IndexIVFFlat) -> None:
        super().__init__(index)
        self.searches: list[tuple[int, int, int]] = []

    def search(self, queries: Vectors, count: int, n_probe: int) -> Any:
        self.searches.append((len(queries), count, n_probe))
        return super().search(queries, count, n_probe)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda resources, device, index: index)
    monkeypatch.setattr(ivf, "Gpu", FakeGpu)


@pytest.mark.usefixtures("one_gpu")
def test_what_the_gpu_cannot_do_runs_on_the_cpu() -> None:
    database = clustered(5000)
    index = Ivf(Metric.EUCLIDEAN, n_lists=60, n_probe=2, device="auto").build(database)
    gpu = index.gpu
    assert isinstance(gpu, FakeGpu)
    assert index.details == {"lists": 60, "device": "cuda"}
    assert (index.search(database[:3], 10).rows[:, 0] == [0, 1, 2]).all()
    assert gpu.searches == [(3, 10, 2)]
    index.search(database[:3], 2049)
    index.search(database[:3], 10, np.arange(5000) < 2500)
    assert len(gpu.searches) == 1, "k > 2048 and masks are the CPU's"
    hits = index.search(database[:3], 2048)
    assert gpu.searches[1:] == [(3, 2048, 2)]
    assert (hits.rows >= 0).all(), "the CPU goes on where the GPU's lists fall short"


@pytest.mark.usefixtures("one_gpu")
def test_n_probe_beyond_the_gpu_s_limit_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf, "GPU_LIMIT", 30)
    index = Ivf(n_lists=50, n_probe=31).build(clustered(2000))
    index.search(clustered(3), 5)
    assert isinstance(index.gpu, FakeGpu) and index.gpu.searches == []


@pytest.mark.usefixtures("one_gpu")
def test_device_cpu_and_manhattan_leave_the_gpu_alone() -> None:
    assert Ivf(device="cpu").build(clustered(50)).details["device"] == "cpu"
    assert Ivf(Metric.MANHATTAN).build(clustered(50)).details["device"] == "cpu"


def test_the_wheel_has_the_gpu_s_interface() -> None:
    # Where there is no GPU these names are all that can be checked.
    gpu = Ivf().build(clustered(50)).index.__class__
    assert gpu is faiss.IndexIVFFlat
    assert callable(faiss.index_cpu_to_gpu) and callable(faiss.index_gpu_to_cpu)
    if hasattr(faiss, "GpuIndexIVFFlat"):
        assert {"cp", "nprobe"} <= set(dir(faiss.GpuIndexIVFFlat))
        assert hasattr(faiss, "StandardGpuResources")
