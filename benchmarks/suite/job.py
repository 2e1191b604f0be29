"""Job and result of a worker of the suite: JSON and .npy files in one folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrieval.contracts import Json

JOB = "job.json"
RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Job:
    """One index to build, and the settings to search it with.

    build: options of the index. settings: search options, measured in turn.
    queries, database: .npy files of vectors. k: neighbors in timed searches.
    hits: neighbors in the search whose rows are kept to measure the quality; ≥ k.
    singles: number of queries that are timed one at a time. repeats: repetitions of the single
    queries, and of all queries in one call.
    """

    backend: str
    metric: str
    build: dict[str, Any]
    settings: list[dict[str, Any]]
    queries: str
    database: str
    threads: int
    k: int
    hits: int
    singles: int
    repeats: int

    def write(self, folder: Path) -> None:
        """Write the job into the worker's folder."""
        (folder / JOB).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Return the job in the folder."""
        return cls(**json.loads((folder / JOB).read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Timing:
    """Search times of an index with one setting.

    batch_qps: queries per second in each repetition of all queries in one call.
    latencies_ms: (repeats, singles), milliseconds of each single query.
    """

    options: dict[str, Json]
    batch_qps: list[float]
    latencies_ms: list[list[float]]


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """Measurements of a worker; `timings` are in the order of the job's settings.

    memory_bytes: growth of resident memory in the build; None if unknown.
    """

    build_seconds: float
    size_bytes: int
    memory_bytes: int | None
    details: dict[str, Json]
    timings: list[Timing]

    def write(self, folder: Path) -> None:
        """Write the result into the job's folder."""
        (folder / RESULT).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "WorkerResult":
        """Return the result in the folder."""
        fields = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        timings = [Timing(**timing) for timing in fields.pop("timings")]
        return cls(timings=timings, **fields)


def hits_file(folder: Path, setting: int) -> Path:
    """Return the file for the rows (q, hits) that the worker finds with a setting."""
    return folder / f"hits-{setting}.npy"
