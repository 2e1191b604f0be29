"""Reports: their files, and what changed between two."""

import copy
import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.suite import report
from retrieval.errors import BadData, BadInput, Mismatch

BY_QUERY = pa.table({"row": [0], "query": [0]})


def row(
    backend: str, recall: float, qps: float, threads: int = 1, **setting: int
) -> dict[str, Any]:
    return {
        "backend": backend,
        "setting": setting,
        "options": {"seed": 0},
        "details": {},
        "threads": threads,
        "recall_at": {"1": recall, "10": recall, "100": recall},
        "map_at": {"100": 0.5},
        "map_loss": 0.01,
        "qps": qps,
        "qps_runs": [0.99 * qps, 1.0 * qps, 1.01 * qps],
        "qps_single": qps / 2,
        "latency_ms": {
            "p50": 1000 / qps,
            "p95": 2000 / qps,
            "p99": 3000 / qps,
            "p99.9": 4000 / qps,
        },
        "latency_runs_ms": [1000 / qps, 1001 / qps],
        "build_seconds": 1.0,
        "size_bytes": 1000,
        "memory_bytes": None,
        "pareto": True,
    }


@pytest.fixture
def document() -> dict[str, Any]:
    return {
        "format": "retr-bench",
        "version": 1,
        "machine": {"cpu": "one <b>& only"},
        "data": {
            "queries": "asked",
            "database": "searched",
            "counts": {"queries": 5, "database": 10},
            "encoder": None,
            "dim": 8,
            "metric": "cosine",
        },
        "rows": [row("exact", 1.0, 50), row("hnsw", 0.8, 900, ef=10), row("hnsw", 0.9, 400, ef=20)],
    }


def test_the_files_of_a_report(document: dict[str, Any], tmp_path: Path) -> None:
    written = report.write(tmp_path / "new", document, BY_QUERY)
    assert {path.name for path in written} == {
        "bench.json", "bench.csv", "bench.md", "bench.png", "bench.html", "queries.parquet",
    }  # fmt: skip
    folder = tmp_path / "new"
    assert report.read(folder) == report.read(folder / "bench.json") == document
    assert pq.read_table(folder / "queries.parquet").equals(BY_QUERY)
    with (folder / "bench.csv").open(newline="") as file:
        lines = [*csv.DictReader(file)]
    assert [line["backend"] for line in lines] == ["exact", "hnsw", "hnsw"]
    assert lines[1]["setting"] == "ef=10"
    assert (
        float(lines[1]["recall_at_10"]) == 0.8 and float(lines[1]["latency_ms_p50"]) == 1000 / 900
    )
    header, dashes, *lines = (folder / "bench.md").read_text().splitlines()
    assert header.startswith("| backend | setting | threads | recall@1 | @10 | @100 | mAP@100 |")
    assert dashes.count("| ---") == header.count("| ")
    assert lines[1] == (
        "| hnsw * | ef=10 | 1 | 0.8000 | 0.8000 | 0.8000 | 0.5000 | +0.0100 | 900 | 450 | 1.111 "
        "| 2.222 | 3.333 | 4.444 | 1 s | 1 kB | – |"
    )
    with Image.open(folder / "bench.png") as picture:
        assert min(picture.size) > 400
    page = (folder / "bench.html").read_text()
    assert "ef=10" in page and "asked against searched" in page
    assert not re.search(r"<script[^>]*\ssrc=", page)  # all of it is inside
    assert len(page) > 1_000_000
    assert "one &lt;b&gt;&amp; only" in page or "one \\u0026lt;b" in page


def test_the_table_escapes_bars_and_names_damage(document: dict[str, Any], tmp_path: Path) -> None:
    document["rows"] = [row("faiss", 1.0, 50) | {"setting": {"factory": "PQ8|Flat"}}]
    report.write(tmp_path, document, BY_QUERY)
    assert r"| faiss * | factory=PQ8\|Flat | 1 |" in (tmp_path / "bench.md").read_text()
    assert report.table_of(document, tmp_path)[1][1] == "factory=PQ8|Flat"
    del document["rows"][0]["pareto"]
    with pytest.raises(BadData, match="'pareto' is missing or wrong; measure again"):
        report.table_of(document, tmp_path)


def test_without_plotly_there_is_no_page(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.write(tmp_path, document, BY_QUERY)
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    written = report.write(tmp_path, document, BY_QUERY)
    # Nor one of other numbers.
    assert "bench.html" not in {path.name for path in [*written, *tmp_path.iterdir()]}


def test_missed_axis_is_logarithmic() -> None:
    axis = report.MissedAxis.of([0.7, 0.97, 0.9985, 1.0])
    assert [*axis.ticks] == ["0.8", "0.9", "0.95", "0.99", "0.999", "1"]
    assert axis.place(0.97) == pytest.approx(0.03)
    assert axis.place(1.0) == axis.ticks["1"] < 0.001
    assert [*report.MissedAxis.of([1.0, 1.0]).ticks] == ["0.99", "1"]


def test_line_joins_the_front_of_its_backend() -> None:
    rows = [row("hnsw", 0.8, 900), row("hnsw", 0.9, 1000), row("hnsw", 0.95, 300)]
    assert [each["qps"] for each in report._front([*rows, row("hnsw", 0.95, 200)], "qps")] == [
        1000,
        300,
    ]
    names = [*report._lines([row("ivf", 1, 1, 16), row("ivf", 1, 1, 2), row("exact", 1, 1, 2)])]
    assert names == ["exact, threads: 2", "ivf, threads: 2", "ivf, threads: 16"]


def verdicts(old: dict[str, Any], new: dict[str, Any]) -> dict[str, bool | None]:
    return {c.measure: c.better for c in report.compare(old, new) if c.setting == "ef=10"}


def test_changes_beyond_noise_are_reported(document: dict[str, Any]) -> None:
    assert set(verdicts(document, document).values()) == {None}
    for factor, better in ((1.3, True), (0.7, False), (1.08, None), (0.95, None)):
        new = copy.deepcopy(document)
        new["rows"][1] = row("hnsw", 0.8, 900 * factor, ef=10)
        found = verdicts(document, new)
        assert (found["queries/s"], found["p50 ms"]) == (better, better)
        assert (found["recall@10"], found["file bytes"], found["mAP lost"]) == (None,) * 3
    new = copy.deepcopy(document)
    new["rows"][1]["qps_runs"] = [880, 2000, 2000]  # one run was as slow as before
    assert verdicts(document, new)["queries/s"] is None
    new["rows"][1] |= {
        "recall_at": {"1": 0.7, "10": 0.7, "100": 0.8}, "size_bytes": 900, "map_loss": 0.0,
        "memory_bytes": 5, "build_seconds": 1.4,
    }  # fmt: skip
    found = verdicts(document, new)
    assert (found["recall@10"], found["file bytes"], found["mAP lost"]) == (False, True, True)
    assert (found["recall@1"], found["recall@100"], found["build s"]) == (False, None, None)
    assert "memory bytes" not in found  # it was not known before
    old = copy.deepcopy(new)
    new["rows"][1] |= {"memory_bytes": 50, "build_seconds": 0.5}
    found = verdicts(old, new)
    assert (found["memory bytes"], found["build s"]) == (False, True)


def test_common_settings_are_compared(document: dict[str, Any]) -> None:
    new = copy.deepcopy(document)
    new["rows"] = [row("hnsw", 0.8, 450, ef=10), row("hnsw", 0.9, 800, threads=2, ef=20)]
    changes = report.compare(document, new)
    assert {(c.backend, c.setting, c.threads) for c in changes} == {("hnsw", "ef=10", 1)}
    assert report.median_speedup(changes) == 0.5
    assert changes[0].to_json()["verdict"] == "worse"
    with pytest.raises(BadInput, match="no common backend and setting"):
        report.compare(document, document | {"rows": [row("ivf", 1, 1)]})


def test_other_files_are_not_reports(document: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"bench\.json not found"):
        report.read(tmp_path)
    file = tmp_path / "bench.json"
    file.write_text("{}")
    with pytest.raises(BadData, match="is not of the format retr-bench"):
        report.read(tmp_path)
    for key, value in (("rows", None), ("machine", {}), ("data", {"counts": 3}), ("rows", [{}])):
        file.write_text(json.dumps(document | {key: value}))
        with pytest.raises(BadData, match="is missing or wrong"):
            report.read(tmp_path)
    for key in ("qps", "latency_ms", "latency_runs_ms", "recall_at", "setting", "build_seconds"):
        for value in (None, [], {}):
            file.write_text(json.dumps(document | {"rows": [document["rows"][0] | {key: value}]}))
            if (key, value) != ("setting", {}):
                with pytest.raises(BadData, match="is missing or wrong"):
                    report.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("counts", {"queries": 6, "database": 10}), ("metric", "euclidean"), ("encoder", "toy")],
)
def test_other_data_cannot_be_compared(document: dict[str, Any], name: str, value: Any) -> None:
    new = document | {"data": document["data"] | {name: value}}
    with pytest.raises(Mismatch, match=f"different data: {name} .* measure both on the same"):
        report.compare(document, new)
