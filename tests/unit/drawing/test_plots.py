"""Plots whose words come from data."""

from pathlib import Path

import numpy as np

from retrieval.drawing.plots import draw_map, draw_matrix, draw_scatter_matrix

NAMES = ["_other", r"$\frac{$", "100$", "plain"]


def test_names_are_drawn_letter_by_letter(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    labels = [NAMES[i % 4] for i in range(40)]
    draw_map(tmp_path / "map.svg", vectors, labels, "by $HOME$")
    draw_scatter_matrix(tmp_path / "matrix.svg", vectors, labels, "by $HOME$")
    draw_matrix(tmp_path / "pairs.svg", NAMES, np.eye(4))
    for name in ("map", "matrix", "pairs"):
        drawn = (tmp_path / f"{name}.svg").read_text()  # names are comments beside their shapes
        assert all(f"{label} -->" in drawn for label in NAMES), name
