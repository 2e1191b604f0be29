"""What every test may use: images made by the test, the toy encoder, and marks that skip."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# The tests run side by side, a process on each core: threads of each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # which umap would set for torch, too

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine lacks the data for."""
    root = os.environ.get("RETR_DATA_DIR")
    for item in items:
        for mark in item.iter_markers("data"):
            name = mark.args[0]
            if not root or not (Path(root) / name).is_dir():
                why = f"needs the data set {name} in RETR_DATA_DIR"
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(autouse=True)
def own_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test writes into the folder that pytest was started from, nor the user's cache."""
    monkeypatch.setenv("RETR_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 30 small pictures: photos/{red,green,blue}/0.png to 9.png, nearly plain."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for label, colour in COLOURS.items():
        (root / label).mkdir(parents=True)
        for number in range(10):
            noise = rng.integers(-20, 21, (12, 16, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root
