"""The process that builds and times one index."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import sleep
from types import MappingProxyType

import numpy as np
import pytest

from benchmarks.suite import machine
from benchmarks.suite.job import Job, Timing, WorkerResult, hits_file
from benchmarks.suite.worker import WARM_UP_QUERIES, measure, time_searches
from retrieval.contracts import Hits, Json, Mask, Vectors
from retrieval.errors import BadInput


@dataclass
class Slow:
    """An index that takes 2 ms for a call and notes how many queries it was asked."""

    dim: int = 3
    details: MappingProxyType[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    asked: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return 1

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        self.asked.append((len(queries), k))
        sleep(0.002)
        shape = (len(queries), k)
        return Hits(np.zeros(shape, np.int64), np.zeros(shape, np.float32))

    def save(self, folder: Path) -> None:
        raise NotImplementedError


@pytest.fixture
def job(tmp_path: Path) -> Job:
    rng = np.random.default_rng(0)
    for name, n in (("queries", 20), ("database", 2000)):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((n, 16)).astype(np.float32))
    return Job(
        backend="ivf",
        metric="euclidean",
        build={"n_lists": 40},
        settings=[{"n_probe": 1}, {"n_probe": 40}],
        queries=str(tmp_path / "queries.npy"),
        database=str(tmp_path / "database.npy"),
        threads=1,
        k=10,
        hits=11,
        singles=7,
        repeats=2,
    )


def test_each_query_is_timed_alone_and_all_together_after_a_warm_up(job: Job) -> None:
    index, queries = Slow(), np.zeros((200, 3), np.float32)
    timing = time_searches(index, queries, replace(job, singles=60, repeats=4), {})
    alone, together = (1, 10), (200, 10)
    assert index.asked == [alone] * (WARM_UP_QUERIES + 4 * 60) + [together] * (1 + 4)
    assert np.shape(timing.latencies_ms) == (4, 60)
    assert len(timing.batch_qps) == 4
    assert np.min(timing.latencies_ms) >= 2
    assert max(timing.batch_qps) <= 200 / 0.002


def test_a_worker_returns_hits_for_each_setting(job: Job, tmp_path: Path) -> None:
    result = measure_in(tmp_path, job)
    queries, database = np.load(job.queries), np.load(job.database)
    distances = np.linalg.norm(queries[:, None] - database[None], axis=2)
    true = np.argsort(distances, axis=1)[:, :11]
    few, all_lists = (np.load(hits_file(tmp_path, i)) for i in range(2))
    assert np.array_equal(all_lists, true)
    assert few.shape == (20, 11)
    assert not np.array_equal(few, true)
    assert [timing.options["n_probe"] for timing in result.timings] == [1, 40]
    assert {timing.options["n_lists"] for timing in result.timings} == {40}
    assert [np.shape(timing.latencies_ms) for timing in result.timings] == [(2, 7), (2, 7)]
    assert result.details["lists"] == 40
    assert result.build_seconds > 0
    # The vectors themselves are in the file.
    assert result.size_bytes > database.nbytes


def test_memory_of_the_index_counts_for_the_build(job: Job, tmp_path: Path) -> None:
    if machine.resident_bytes() is None:
        pytest.skip("this system has no /proc to read the memory from")
    large = np.random.default_rng(0).standard_normal((40_000, 256)).astype(np.float32)
    np.save(tmp_path / "database.npy", large)
    np.save(tmp_path / "queries.npy", large[:5])
    replace(job, backend="exact", build={}, settings=[{}]).write(tmp_path)
    # In a process of its own: this one may hold freed memory that the index would be built in.
    subprocess.run([sys.executable, "-m", "benchmarks.suite.worker", str(tmp_path)], check=True)
    result = WorkerResult.read(tmp_path)
    assert result.memory_bytes is not None
    assert 0.9 * large.nbytes < result.memory_bytes < 3 * large.nbytes


def test_errors_of_the_backend_are_raised(job: Job, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="n_probe"):
        measure_in(tmp_path, replace(job, build={"n_probe": 0}))


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    result = WorkerResult(1.5, 10, None, {"lists": 3}, [Timing({"ef": 5}, [1.0, 2.0], [[0.1]])])
    result.write(tmp_path)
    assert WorkerResult.read(tmp_path) == result


def measure_in(folder: Path, job: Job) -> WorkerResult:
    job.write(folder)
    return measure(folder)
