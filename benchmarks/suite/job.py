"""What the suite asks of a worker, and what the worker answers: JSON and .npy in one folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrieval.contracts import Json

JOB = "job.json"
ANSWER = "answer.json"


@dataclass(frozen=True, slots=True)
class Job:
    """One index to build, and the settings to search it with.

    build: the options of the index; settings: search options, each to be measured in turn.
    queries, database: .npy files of vectors. k: the neighbors that timed searches ask for.
    hits: how many the search asks for whose rows are kept for the quality; ≥ k.
    singles: how many queries are timed one at a time. repeats: how often these are, and all at
    once.
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
        """Into the folder that the worker is given."""
        (folder / JOB).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """The job in the folder."""
        return cls(**json.loads((folder / JOB).read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast an index answered with one setting.

    batch_qps: queries per second, of each repetition of all queries in one call.
    latencies_ms: (repeats, singles), of each query that was asked alone.
    """

    options: dict[str, Json]
    batch_qps: list[float]
    latencies_ms: list[list[float]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the worker measured; `timings` in the order of the job's settings.

    memory_bytes: by how much resident memory grew in the build; None where it is not known.
    """

    build_seconds: float
    size_bytes: int
    memory_bytes: int | None
    details: dict[str, Json]
    timings: list[Timing]

    def write(self, folder: Path) -> None:
        """Beside the job."""
        (folder / ANSWER).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Answer":
        """The answer in the folder."""
        fields = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
        timings = [Timing(**timing) for timing in fields.pop("timings")]
        return cls(timings=timings, **fields)


def hits_file(folder: Path, setting: int) -> Path:
    """Where the worker leaves the rows (q, hits) that it found with a setting."""
    return folder / f"hits-{setting}.npy"
