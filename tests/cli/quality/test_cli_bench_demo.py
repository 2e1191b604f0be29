"""`retr bench` and `retr demo`, on small data."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.running import Retr

# Downloads go to a port where nothing listens.
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
NO_NETWORK = {
    **dict.fromkeys(PROXIES, "http://127.0.0.1:9"),
    "no_proxy": "",
    "NO_PROXY": "",
    "RETR_DATA_DIR": "",
}
ROW = {
    "backend", "options", "recall_at", "qps", "latency_ms", "build_seconds", "size_bytes",
    "memory_bytes", "map_at", "map_loss",
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Retr:
    retr = Retr(tmp_path_factory.mktemp("bench"), {"RETR_WORKSPACE": ""})
    retr("encode", "digits", "--encoder", "toy")
    return retr


@pytest.mark.slow
def test_bench_without_a_test_split_holds_queries_out(digits: Retr) -> None:
    document = digits.json("bench", "--backend", "exact", "--backend", "hnsw", "--out", "report")
    assert document["data"]["counts"] == {"queries": 287, "database": 1150}
    assert document["data"]["queries"].startswith("287 rows held out of ")
    rows = document["rows"]
    assert [row["backend"] for row in rows] == ["exact", "hnsw", "hnsw", "hnsw"]
    for row in rows:
        assert row.keys() >= ROW
        assert list(row["recall_at"]) == ["1", "10", "100"]
        assert list(row["latency_ms"]) == ["p50", "p95", "p99", "p99.9"]
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
        assert row["threads"] == 1
    exact = rows[0]
    assert exact["recall_at"] == {"1": 1, "10": 1, "100": 1}
    assert exact["map_loss"] == pytest.approx(0, abs=1e-9)
    assert exact["size_bytes"] > 1150 * 3 * 4
    assert [row["options"]["ef"] for row in rows[1:]] == [100, 200, 400]
    folder = digits.cwd / "report"
    assert json.loads((folder / "bench.json").read_text()) == document
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *(f"bench.{kind}" for kind in ("json", "csv", "md", "png", "html")),
        "queries.parquet",
    }
    compared = digits.json("bench", "--compare", "report", "report")
    assert compared["ratio"] == 1
    assert {change["verdict"] for change in compared["changes"]} == {"same"}
    assert (
        "0 of 36 measures changed beyond noise"
        in digits("bench", "--compare", "report", "report/bench.json").out
    )


def test_bench_takes_the_test_split_and_prints_a_table(digits: Retr, tmp_path: Path) -> None:
    digits("encode", "digits", "--encoder", "toy", "--split", "test")
    (tmp_path / "grid.toml").write_text("[ivf]\nn_lists = 20\nn_probe = [1, 20]\n")
    shown = digits("bench", "--backend", "ivf", "--grid", tmp_path / "grid.toml").out
    assert "360 queries against 1,437 vectors of 3 dimensions, euclidean; " in shown
    lines = [line for line in shown.splitlines() if line.startswith("ivf ")]
    assert [line.replace(" * ", " ").split()[1:4] for line in lines] == [
        ["n_lists=20", "n_probe=1", "1"],
        ["n_lists=20", "n_probe=20", "1"],
    ]
    one, all_lists = (float(line.replace(" * ", " ").split()[5]) for line in lines)
    assert one < 1
    assert all_lists == 1
    assert "recall@k of an index" in shown


def test_bench_writes_and_reads_ann_benchmarks_files(digits: Retr) -> None:
    digits("encode", "digits", "--encoder", "toy", "--split", "test")
    written = digits.json("bench", "--export-hdf5", "data.hdf5")
    assert written == {"out": "data.hdf5", "metric": "euclidean"}
    document = digits.json("bench", "--hdf5", "data.hdf5", "--backend", "exact")
    assert document["data"]["counts"] == {"queries": 360, "database": 1437}
    assert document["data"]["queries"] == "data.hdf5: test"
    assert document["data"]["encoder"] is None
    (row,) = document["rows"]
    assert row["recall_at"] == {"1": 1, "10": 1, "100": 1}
    assert row["map_loss"] is None  # it has no labels
    by_cosine = digits.json(
        "bench", "--hdf5", "data.hdf5", "--metric", "cosine", "--backend", "exact"
    )
    assert by_cosine["data"]["metric"] == "cosine"


def test_bench_compare_lists_changes(digits: Retr, tmp_path: Path) -> None:
    digits("bench", "--backend", "exact", "--out", tmp_path / "old")
    report = json.loads((tmp_path / "old" / "bench.json").read_text())
    row = report["rows"][0]
    row |= {"recall_at": {**row["recall_at"], "10": 0.9}, "size_bytes": row["size_bytes"] // 2}
    report["machine"]["cpu"] = "another"
    (tmp_path / "bench.json").write_text(json.dumps(report))
    told = digits("bench", "--compare", tmp_path / "old", tmp_path / "bench.json")
    assert "the reports are of two machines (cpu: " in told.err
    assert "2 of 9 measures changed beyond noise" in told.out
    lines = [line.split() for line in told.out.splitlines() if line.startswith("exact")]
    assert [line[-2:] for line in lines] == [["-0.1000", "worse"], ["0.50", "better"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "a", "b", "--backend", "exact"], "--compare takes no other options; leave"),
        (["--hdf5", "gone.hdf5"], "gone.hdf5 not found"),
        (["--hdf5", "gone.hdf5", "--database", "gone"], "--hdf5 has queries and database"),
        (["--metric", "manhattan", "--export-hdf5", "x"], "ann-benchmarks has no metric manhattan"),
        (["--backend", "hsnw"], "unknown backend 'hsnw'; did you mean 'hnsw'"),
        (["--threads", "0"], "0 threads on"),
        (["--threads", "some"], "--threads 'some' is not a number"),
        (["--full", "--grid", "x.toml"], "--full and --grid exclude each other"),
        (["--compare", "gone", "gone"], "gone not found"),
        (["--grid", "gone.toml"], "gone.toml"),
        (["--metric", "near"], "unknown metric 'near'"),
        (["--database", "gone"], "gone"),
    ],
)
def test_bench_refuses_bad_options(digits: Retr, arguments: list[str], message: str) -> None:
    assert message in digits.refused("bench", *arguments)


def test_demo_runs_on_digits_without_network(tmp_path: Path) -> None:
    retr = Retr(tmp_path, NO_NETWORK)
    outcome = retr("demo", "--encoder", "toy", "--limit", "300", "--out", "demo")
    warning = outcome.err.splitlines()
    assert len(warning) == 1
    assert warning[0].startswith("warning: no data set 'cifar10'")
    assert warning[0].endswith("using scikit-learn's digits instead")
    for part in ("P@k", "mAP ", "exact", "ivf", "hnsw", "What the numbers mean", "pictures: "):
        assert part in outcome.out
    document = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert document["data"] == {"queries": "digits/test", "database": "digits/train"}
    assert next(row["backend"] for row in document["bench"]["rows"]) == "exact"
    with Image.open(tmp_path / "demo" / "neighbors.png") as sheet:
        assert sheet.width > 1000
        assert sheet.height > 800

    again = retr("demo", "--encoder", "toy", "--limit", "300", "--out", "demo", "--json")
    assert again.document["official"]["map"] == document["official"]["map"]


@pytest.mark.slow
@pytest.mark.data("cifar10")
def test_demo_finds_cifar10(tmp_path: Path) -> None:
    document = Retr(tmp_path).json("demo", "--encoder", "toy", "--limit", "400", "--out", "demo")
    assert document["data"] == {"queries": "cifar10/test", "database": "cifar10/train"}
    assert document["official"]["map"] > 0.1  # ten classes: 0.1 by chance


def test_demo_does_not_overwrite_a_folder_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "demo" / "embeddings" / "digits-train").mkdir(parents=True)
    (tmp_path / "demo" / "embeddings" / "digits-train" / "letter.txt").write_text("dear")
    outcome = Retr(tmp_path, NO_NETWORK).run(
        "demo", "--encoder", "toy", "--limit", "300", "--out", "demo"
    )
    assert outcome.code == 2
    assert "holds other files (letter.txt)" in outcome.err
