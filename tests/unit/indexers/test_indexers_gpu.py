"""Exact search and inverted lists on a GPU, with the CPU's in its place: what goes there."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from indexers.exact import Exact
from indexers.faiss import gpu
from indexers.ivf import Ivf
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadInput


def vectors(rows: int, dim: int = 8) -> Vectors:
    return np.random.default_rng(2).standard_normal((rows, dim), dtype=np.float32)


class FakeGpu(gpu.Gpu):
    """The CPU's index in the place of the GPU's, to see which searches go there."""

    def __init__(self, index: Any, rows: int) -> None:
        super().__init__(index, rows)
        self.searches: list[tuple[int, int, int | None]] = []

    def search(self, queries: Vectors, count: int, n_probe: int | None = None) -> Any:
        self.searches.append((len(queries), count, n_probe))
        return super().search(queries, count, n_probe)


class Resources:
    """A stand-in for faiss's GPU resources."""

    def setTempMemory(self, size: int) -> None:  # noqa: N802
        assert size == gpu.TEMPORARY_BYTES


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda resources, device, index: index)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", lambda index: index)
    monkeypatch.setattr(gpu, "free_bytes", lambda: 10**9)
    monkeypatch.setattr(gpu, "Gpu", FakeGpu)


@pytest.mark.parametrize("kind", [Exact, Ivf])
def test_cuda_without_a_gpu_is_refused(
    kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    kind().build(vectors(50)).save(tmp_path)
    with pytest.raises(BadInput, match="faiss sees no GPU; set device=cpu"):
        kind(device="cuda").build(vectors(50))
    with pytest.raises(BadInput, match="faiss sees no GPU; set device=cpu"):
        kind(device="cuda").load(tmp_path)


@pytest.mark.parametrize("kind", [Exact, Ivf])
def test_invalid_devices_are_refused(kind: Any) -> None:
    with pytest.raises(BadInput, match="option device is 'tpu'; give it one of auto, cpu, cuda"):
        kind(device="tpu")
    with pytest.raises(BadInput, match="faiss has no manhattan distance on a GPU"):
        kind(Metric.MANHATTAN, device="cuda")


@pytest.mark.usefixtures("one_gpu")
def test_cpu_searches_lists_that_the_gpu_cannot() -> None:
    database = vectors(5000)
    index = Ivf(Metric.EUCLIDEAN, n_lists=60, n_probe=2, device="auto").build(database)
    there = index.gpu
    assert isinstance(there, FakeGpu)
    planned = 5000 * (8 * 4 + 8) + 60 * 17 * 8 * 4 + gpu.TEMPORARY_BYTES
    assert index.details == {"lists": 60, "device": "cuda", "gpu_bytes": planned}
    assert (index.search(database[:3], 10).rows[:, 0] == [0, 1, 2]).all()
    assert there.searches == [(3, 10, 2)]
    index.search(database[:3], 2049)
    index.search(database[:3], 10, np.arange(5000) < 2500)
    assert len(there.searches) == 1, "k > 2048 and masks are the CPU's"
    hits = index.search(database[:3], 2048)
    assert there.searches[1:] == [(3, 2048, 2)]
    assert (hits.rows >= 0).all(), "the CPU goes on where the GPU's lists fall short"


@pytest.mark.usefixtures("one_gpu")
def test_cpu_does_exact_searches_that_the_gpu_cannot() -> None:
    database = vectors(5000)
    index = Exact(Metric.EUCLIDEAN).build(database)
    there = index.gpu
    assert isinstance(there, FakeGpu)
    assert index.details == {"device": "cuda", "gpu_bytes": 5000 * 8 * 4 + gpu.TEMPORARY_BYTES}
    on_cpu = Exact(Metric.EUCLIDEAN, device="cpu").build(database)
    for count in (10, 2047):
        hits, expected = (each.search(database[:3], count) for each in (index, on_cpu))
        np.testing.assert_array_equal(hits.rows, expected.rows)
    assert there.searches == [(3, 11, None), (3, 2048, None)], "one more shows where rows tie"
    index.search(database[:3], 2048)
    index.search(database[:3], 10, np.arange(5000) < 2500)
    assert len(there.searches) == 2


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("kind", [Exact, Ivf])
def test_gpu_copy_follows_additions_and_deletions(kind: Any) -> None:
    index = kind(Metric.EUCLIDEAN).build(vectors(500))
    before = index.gpu
    index.add(vectors(600)[500:])
    assert index.gpu is not before
    assert index.details["gpu_bytes"] > before.planned_bytes
    index.delete(np.arange(400))
    assert index.details["gpu_bytes"] < before.planned_bytes


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("kind", [Exact, Ivf])
def test_index_too_large_for_the_gpu_names_its_size(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise RuntimeError("Error in f at file.cpp:3: Error: 'err == cudaSuccess' failed: no room")

    monkeypatch.setattr(faiss, "index_cpu_to_gpu", full)
    with pytest.raises(BadInput, match=r"needs 26\d MB of the GPU \(.*no room\); set device=cpu"):
        kind(Metric.EUCLIDEAN).build(vectors(5000))


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("kind", [Exact, Ivf])
def test_memory_is_planned_before_anything_goes_to_the_gpu(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "free_bytes", lambda: 200 * 10**6)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda *given: pytest.fail("went there"))
    with pytest.raises(BadInput, match=r"needs 26\d MB of the GPU \(200 MB are free\)"):
        kind(Metric.EUCLIDEAN).build(vectors(5000))


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("kind", [Exact, Ivf])
def test_rows_that_do_not_fit_are_refused_before_they_are_added(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = kind(Metric.EUCLIDEAN).build(vectors(500))
    monkeypatch.setattr(gpu, "free_bytes", lambda: 1000)
    with pytest.raises(BadInput, match="100 additional rows need 0 MB of the GPU"):
        index.add(vectors(100))
    assert len(index) == 500 and index.details["device"] == "cuda"


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="here the GPU's memory is known")
def test_memory_without_a_gpu_is_unknown() -> None:
    assert gpu.free_bytes() is None


@pytest.mark.usefixtures("one_gpu")
def test_n_probe_beyond_the_gpu_s_limit_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MAX_K_OR_PROBES", 30)
    index = Ivf(n_lists=50, n_probe=31).build(vectors(2000))
    index.search(vectors(3), 5)
    assert isinstance(index.gpu, FakeGpu) and index.gpu.searches == []


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("kind", [Exact, Ivf])
def test_device_cpu_and_manhattan_leave_the_gpu_alone(kind: Any) -> None:
    assert kind(device="cpu").build(vectors(50)).details["device"] == "cpu"
    assert kind(Metric.MANHATTAN).build(vectors(50)).details["device"] == "cpu"


def test_the_wheel_has_the_gpu_s_interface() -> None:
    # Without a GPU, only these names can be checked.
    assert Ivf().build(vectors(50)).index.__class__ is faiss.IndexIVFFlat
    assert callable(faiss.index_cpu_to_gpu) and callable(faiss.index_gpu_to_cpu)
    if hasattr(faiss, "GpuIndexIVFFlat"):
        assert {"cp", "nprobe"} <= set(dir(faiss.GpuIndexIVFFlat))
        assert hasattr(faiss, "GpuIndexFlat")
        assert "setTempMemory" in dir(faiss.StandardGpuResources)


@pytest.mark.usefixtures("one_gpu")
def test_the_table_of_both_devices() -> None:
    from benchmarks.speed.gpu import indices

    rows = indices(vectors(600), vectors(20), 5, repeats=1)
    assert [row[0] for row in rows] == [
        "exact, build, s", "exact, queries/s", "exact, one query, ms",
        "ivf, build, s", "ivf, queries/s", "ivf, one query, ms",
    ]  # fmt: skip
    assert rows[1][3] == rows[4][3] == "recall@5 1.0000 and 1.0000"
    assert rows[0][3] == "268 MB planned, 0 taken"


def test_gpu_benchmark_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.speed import gpu as script

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    monkeypatch.setattr("sys.argv", ["gpu", "--rows", "10", "--queries", "10"])
    with pytest.raises(SystemExit) as refused:
        script.main()
    assert refused.value.code == 2
    assert "faiss sees no GPU" in capsys.readouterr().err
