"""Grids of settings, read from TOML."""

from pathlib import Path
from typing import cast

import pytest

from benchmarks.suite.grid import FULL, QUICK, read_grid
from benchmarks.suite.judge import K
from retrieval.contracts import Metric
from retrieval.errors import BadInput
from retrieval.registry import indexer_names, make_indexer


def grid_file(folder: Path, text: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_lists_are_combined_and_other_values_held(tmp_path: Path) -> None:
    path = grid_file(tmp_path, "[exact]\n[hnsw]\nm = [8, 16]\nef = [50, 100]\nseed = 7\n")
    assert read_grid(path) == {
        "exact": [{}],
        "hnsw": [
            {"m": 8, "ef": 50, "seed": 7},
            {"m": 8, "ef": 100, "seed": 7},
            {"m": 16, "ef": 50, "seed": 7},
            {"m": 16, "ef": 100, "seed": 7},
        ],
    }


@pytest.mark.parametrize(("path", "probes"), [(QUICK, 4), (FULL, 8)])
def test_shipped_grids_are_valid(path: Path, probes: int) -> None:
    grid = read_grid(path)
    assert set(grid) <= set(indexer_names())
    assert len({setting["n_probe"] for setting in grid["ivf"]}) == probes
    # Two settings below k would measure the same search twice.
    assert sorted({cast(int, setting["ef"]) for setting in grid["hnsw"]})[:2] >= [K, K + 1]
    for backend, settings in grid.items():
        for setting in settings:
            make_indexer(backend, {**setting, "metric": Metric.COSINE})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ivf = 3", "ivf is not a table"),
        ("[ivf", "is not TOML"),
        ("[[ivf]]\nn_probe = 1", "is not a table"),
        ("[ivf]\nn_probe = []", "ivf has no value for n_probe"),
        ("[ivf]\nmetric = 'cosine'", "ivf has a metric; use --metric"),
        ("[hsnw]", r"unknown backend in grid .*grid.toml 'hsnw'; did you mean 'hnsw'"),
    ],
)
def test_invalid_grids_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        read_grid(grid_file(tmp_path, text))


def test_missing_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere.toml \(No such file"):
        read_grid(tmp_path / "nowhere.toml")
