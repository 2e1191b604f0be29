"""The rows of a report of the suite as a table for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.suite.grid import named
from retrieval.units import duration, size

HEADER = (
    "backend", "setting", "threads", "recall@1", "@10", "@100", "mAP@100", "mAP lost",
    "batch q/s", "single q/s", "p50 ms", "p95", "p99", "p99.9", "build", "file", "memory",
)  # fmt: skip

Table = list[list[str]]
"""A header and a line for each row."""


def report_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of the rows of a `bench.json`.

    A row of another form raises LookupError, TypeError, ValueError or AttributeError.
    """
    return [[*HEADER], *map(_line, rows)]


def _line(row: Mapping[str, Any]) -> list[str]:
    return [
        row["backend"] + (" *" if row["pareto"] else ""),
        named(row["setting"]),
        str(row["threads"]),
        *(f"{row['recall_at'][k]:.4f}" for k in ("1", "10", "100")),
        "–" if row["map_at"] is None else f"{row['map_at']['100']:.4f}",
        "–" if row["map_loss"] is None else f"{row['map_loss']:+.4f}",
        f"{row['qps']:,.0f}",
        f"{row['qps_single']:,.0f}",
        *(f"{value:.3f}" for value in row["latency_ms"].values()),
        duration(row["build_seconds"]),
        size(row["size_bytes"]),
        "–" if row["memory_bytes"] is None else size(row["memory_bytes"]),
    ]


def measured_on(queries: Any, database: Any, data: Mapping[str, Any], cpu: object) -> str:
    """Return the line of the data and the machine that the numbers were measured on."""
    return (
        f"{queries:,} queries against {database:,} vectors of {data['dim']} dimensions, "
        f"{data['metric']}; {cpu}"
    )
