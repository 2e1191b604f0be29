"""The scripts that measure speed: what they count as slower, as growth, and as a photograph."""

import json
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.speed import decode, encode, guard, memory, runtimes, scale
from retrieval.contracts import Framing
from retrieval.errors import RetrError
from retrieval.images import load, open_source

STEADY = [1.0, 1.01, 0.99, 1.0, 1.02]


def test_slower_means_beyond_a_tenth_and_the_scatter() -> None:
    assert not guard.slower([1.08] * 5, STEADY)
    assert guard.slower([1.2, 1.21, 1.19, 1.2, 1.2], STEADY)
    assert not guard.slower([0.5] * 5, STEADY)
    noisy = [1.0, 1.4, 0.8, 1.2, 1.6]
    assert not guard.slower(noisy, STEADY)
    assert not guard.slower([1.4] * 5, noisy)


def test_guard_repeats_measures_that_seem_slower(capsys: pytest.CaptureFixture[str]) -> None:
    runs: Iterator[float] = iter([3.0, 1.0])
    taken: list[str] = []

    def for_a_while() -> guard.Ratios:
        taken.append("for a while")
        return {"passing": [next(runs)] * 5, "steady": STEADY}

    def for_good() -> guard.Ratios:
        taken.append("for good")
        return {"lasting": [2.0] * 5, "new": STEADY}

    before = {"passing": STEADY, "steady": STEADY, "lasting": STEADY}
    assert guard.compare(before, [for_a_while, for_good]) == ["lasting"]
    assert taken == ["for a while"] * 2 + ["for good"] * guard.MAX_TRIES
    lines = {line[:24].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert [*lines] == ["passing", "steady", "lasting", "new"]
    assert lines["lasting"].endswith("slower")
    assert all(lines[name].endswith("as fast") for name in ("passing", "steady"))
    assert lines["new"].endswith("not compared; --save keeps it")


def test_the_baseline_has_every_measure() -> None:
    ratios = json.loads(guard.BASELINE.read_text(encoding="utf-8"))["ratios"]
    backends = {f"search, {backend}" for backend in ("exact", "ivf", "hnsw", "hnsw-pca to hnswlib")}
    assert {*ratios} == {*backends, "encode, siamese-quick", "retr --help", "evaluation"}


@pytest.mark.slow
def test_growth_is_measured_once_per_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scale"
    given = ["scale", "--backend", "exact", "--backend", "hnsw", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*given, "--size", "500"])
    scale.main()
    first = scale.read(out / "scale.csv")
    monkeypatch.setattr(sys, "argv", [*given, "--size", "2000", "--size", "500"])
    scale.main()
    rows = scale.read(out / "scale.csv")
    assert rows[:2] == first
    sizes = [(int(row["n"]), row["backend"]) for row in rows]
    assert sizes == [(500, "exact"), (500, "hnsw"), (2000, "exact"), (2000, "hnsw")]
    assert all(float(row["recall"]) > 0.95 for row in rows)
    assert (out / "scale.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    exponents = json.loads(printed[printed.rindex('{\n  "exponents"') :])["exponents"]
    assert exponents["exact"]["size_bytes"] == pytest.approx(1, abs=0.01)
    (out / "scale.csv").write_text("n,backend\n1,exact\n")
    with pytest.raises(RetrError, match="is not a table of this command"):
        scale.read(out / "scale.csv")


def test_exponents_are_those_of_powers() -> None:
    def row(n: int, latency: float | None) -> scale.Row:
        powers = {"build_seconds": n**1.2, "memory_bytes": 7 * n, "size_bytes": 3, "batch_ms": n}
        return {"n": n, "backend": "b", "latency_ms": latency, "recall": 1.0, **powers}

    found = scale.exponents([row(10, None), row(1000, 2.0), row(100, 1.0)])
    expected = {"build_seconds": 1.2, "memory_bytes": 1, "size_bytes": 0, "batch_ms": 1}
    assert found == {"b": pytest.approx(expected, abs=1e-9)}
    assert scale.exponents([row(10, 1.0)]) == {}


def test_queries_are_drawn_like_the_database_but_differ() -> None:
    database, queries = scale.draw(20_000, seed=2), scale.draw(50, seed=1)
    np.testing.assert_allclose(np.linalg.norm(database, axis=1), 1, rtol=1e-5)
    nearest = (queries @ database.T).max(axis=1)
    assert 0.5 < nearest.min() <= nearest.max() < 0.999


def test_photographs_are_decoded_equally_in_the_loop_and_in_encode(tmp_path: Path) -> None:
    encode.write_photographs(tmp_path, 12)
    paths = sorted(tmp_path.iterdir())
    assert len({path.read_bytes() for path in paths}) == 12
    with Image.open(paths[0]) as image:
        assert (image.format, image.size) == ("JPEG", (640, 480))
    framing = Framing(side=224, crop=0.875)
    item = next(iter(open_source(str(tmp_path)).items()))
    with Image.open(paths[0]) as image:
        seen = encode.as_torchvision(framing)(image).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(seen * 255, load(item, framing), atol=0.01)


def test_each_runtime_is_compared_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    every_way = runtimes.ways

    def some(encoder: Any, folder: Path) -> Iterator[tuple[str, Any]]:
        def missing() -> runtimes.Run:
            raise ModuleNotFoundError("No module named 'anything'")

        yield from (way for way in every_way(encoder, folder) if way[0] in kept)
        yield "missing", missing

    kept = {"float32", "bfloat16", "ONNX Runtime float32"}
    monkeypatch.setattr(runtimes, "ways", some)
    digits = open_source("digits", limit=6)
    found: Any = runtimes.measure("siamese-quick", digits, batch=4, repeats=2)["ways"]
    assert {*found} == kept | {"missing"}
    assert found["missing"] == {"failed": "ModuleNotFoundError: No module named 'anything'"}
    assert found["float32"]["least_cosine"] == pytest.approx(1, abs=1e-6)
    assert all(found[name]["least_cosine"] > 0.999 for name in kept)
    assert all(len(found[name]["repeats"]) == 2 for name in kept)


def test_memory_growth_starts_with_the_work(tmp_path: Path) -> None:
    size = 64 * 2**20
    with mmap.mmap(-1, size) as fresh:  # numpy may be given memory that is resident already
        grown, after = memory.grown(lambda: fresh.write(bytes(2**20) * 64))
        assert size <= after <= grown
    assert size <= grown < 3 * size
    assert memory.grown(lambda: None)[0] < 2**20
    memory.write_embeddings(tmp_path / "embeddings", 12_000, 8)
    assert len(memory.open_embeddings(tmp_path / "embeddings")) == 12_000
    memory.write_images(tmp_path / "images.parquet", 1500)
    source = open_source(str(tmp_path / "images.parquet"))
    assert len(source) == 1500
    assert load(next(iter(source.items())), Framing(32)).shape == (32, 32, 3)


def test_memory_of_indexing_and_encoding_is_measured_separately() -> None:
    found: Any = memory.measure_indices(20_000, 32, ["exact"], {})
    assert found["vectors_bytes"] == 20_000 * 32 * 4
    met = found["exact"]
    assert 0.8 < met["opened"]["ratio"] < met["building"]["ratio"] < 20
    assert 1 < met["files"]["ratio"] < 1.5
    encoded: Any = memory.measure_encoding([100])
    assert 0 < encoded["100"]["bytes"] < 2**30


def test_all_ways_to_decode_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "ARRAYS", 10)
    found: Any = decode.measure((600, 500), count=3, threads=2, repeats=2)
    assert found["images"] == 3
    assert 10_000 < found["bytes"] < 200_000
    for name in decode.WAYS:
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
    arrays: Any = decode.measure_arrays(threads=2, repeats=1)
    assert arrays["images"] == 10
    assert arrays["decoder"]["median"] > 0
