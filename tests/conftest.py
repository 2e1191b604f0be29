"""Fixtures and marks of all tests."""

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.postgres import database, its_database, postgres

__all__ = ["database", "its_database", "postgres"]

# Tests run in one process for each core: more threads would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # umap would set it for torch, too

gc.disable()  # until all modules are imported: there is no garbage to collect
STARTED = time.monotonic()
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --seconds, for `make test-fast`."""
    parser.addoption("--seconds", type=float, help="skip tests that would start later than this")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the test if the seconds of --seconds are over."""
    seconds = item.config.getoption("seconds")
    if seconds is not None and time.monotonic() - STARTED > seconds:
        pytest.skip(f"not run within {seconds:g} s; run make test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests whose data set is not in RETR_DATA_DIR, with that reason."""
    root = os.environ.get("RETR_DATA_DIR")
    for item in items:
        for mark in item.iter_markers("data"):
            name = mark.args[0]
            if not root or not (Path(root) / name).is_dir():
                why = f"needs the data set {name} in RETR_DATA_DIR"
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Collect garbage from now on."""
    gc.enable()


@pytest.fixture(autouse=True)
def own_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test its own workspace and cache folder."""
    monkeypatch.setenv("RETR_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("RETR_ROOT", "")  # --root sets it for the whole process
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Make a folder of 30 small images, nearly plain: photos/{red,green,blue}/0.png to 9.png."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for label, color in COLORS.items():
        (root / label).mkdir(parents=True)
        for number in range(10):
            noise = rng.integers(-20, 21, (12, 16, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root
