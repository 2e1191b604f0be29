"""Reports: their files, and what changed between two."""

import copy
import csv
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import report
from retrieval.errors import BadData, BadInput

TABLE = [["backend", "setting"], ["hnsw *", "ef=100|m=8"]]
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
        "latency_ms": {"p50": 1000 / qps, "p95": 2000 / qps},
        "latency_runs_ms": [1000 / qps, 1001 / qps],
        "build_seconds": 1.0,
        "size_bytes": 1000,
        "memory_bytes": None,
        "pareto": True,
    }


@pytest.fixture
def document() -> dict[str, Any]:
    return {
        "machine": {"cpu": "one <b>& only"},
        "data": {"queries": "asked", "database": "searched", "dim": 8, "metric": "cosine"},
        "rows": [row("exact", 1.0, 50), row("hnsw", 0.8, 900, ef=10), row("hnsw", 0.9, 400, ef=20)],
    }


def test_the_files_of_a_report(document: dict[str, Any], tmp_path: Path) -> None:
    written = report.write(tmp_path / "new", document, BY_QUERY, TABLE)
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
    assert (folder / "bench.md").read_text().splitlines() == [
        "| backend | setting |",
        "| --- | --- |",
        r"| hnsw * | ef=100\|m=8 |",
    ]
    with Image.open(folder / "bench.png") as picture:
        assert min(picture.size) > 400
    page = (folder / "bench.html").read_text()
    assert "ef=10" in page and "asked against searched" in page
    assert "<script src=" not in page  # all of it is inside


def test_without_plotly_there_is_no_page(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.colors", None)
    written = report.write(tmp_path, document, BY_QUERY, TABLE)
    assert "bench.html" not in {path.name for path in [*written, *tmp_path.iterdir()]}


def verdicts(old: dict[str, Any], new: dict[str, Any]) -> dict[str, bool | None]:
    return {c.measure: c.better for c in report.compare(old, new) if c.setting == "ef=10"}


def test_what_changed_is_beyond_noise(document: dict[str, Any]) -> None:
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
        "recall_at": {"10": 0.7}, "size_bytes": 900, "map_loss": 0.0, "memory_bytes": 5,
    }  # fmt: skip
    found = verdicts(document, new)
    assert (found["recall@10"], found["file bytes"], found["mAP lost"]) == (False, True, True)


def test_settings_that_both_have_are_compared(document: dict[str, Any]) -> None:
    new = copy.deepcopy(document)
    new["rows"] = [row("hnsw", 0.8, 450, ef=10), row("hnsw", 0.9, 800, threads=2, ef=20)]
    changes = report.compare(document, new)
    assert {(c.backend, c.setting, c.threads) for c in changes} == {("hnsw", "ef=10", 1)}
    assert report.together(changes) == 0.5
    assert changes[0].to_json()["verdict"] == "worse"
    with pytest.raises(BadInput, match="no backend with the same setting"):
        report.compare(document, document | {"rows": [row("ivf", 1, 1)]})


def test_what_is_no_report(document: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"bench\.json is not there"):
        report.read(tmp_path)
    file = tmp_path / "bench.json"
    for text in ("{}", '{"rows": [{}], "machine": {"cpu": ""}}', '{"rows": []}'):
        file.write_text(text)
        with pytest.raises(BadData, match="is no report of 'retr bench'"):
            report.read(tmp_path)
