"""Services over 30 images of three colors, and a browser."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from encoders.toy import Toy
from retrieval import build_index, open_embeddings
from retrieval.contracts import Encoder, Metric
from retrieval.embedding import embed
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.serving.app import make_app
from retrieval.serving.collection import Collection
from tests.unit.embedding.test_embed import ImagesOnly
from tests.web.browsing import COLORS, Page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 30 images of three colors, a query of a fourth, and two indices."""
    root = tmp_path_factory.mktemp("web")
    rng = np.random.default_rng(0)
    for label, color in COLORS.items():
        (root / "photos" / label).mkdir(parents=True)
        for number in range(10):
            pixels = np.clip(np.array(color) + rng.integers(-20, 21, (48, 64, 3)), 0, 255)
            name = root / "photos" / label / f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(name)
    Image.new("RGB", (90, 90), (200, 60, 60)).save(root / "query.png")
    (root / "bad.png").write_bytes(b"not an image")
    encode_source(open_source(str(root / "photos")), Toy(), root / "embeddings")
    sets = [open_embeddings(root / "embeddings")]
    build_index(sets, "ivf", root / "ivf", Metric.COSINE, {"n_lists": 4, "n_probe": 4})
    build_index(sets, "exact", root / "exact", Metric.EUCLIDEAN)
    return root


@pytest.fixture(scope="session")
def address(folder: Path) -> Iterator[str]:
    """Run the service and yield its address. Its encoder takes words."""
    arguments = ["--index", "ivf", "--index", "exact", "--embeddings", "embeddings"]
    command = [str(Path(sys.executable).parent / "retr"), "serve", *arguments, "--port", "0"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, cwd=folder) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


@pytest.fixture(scope="session")
def plain_address(folder: Path) -> Iterator[str]:
    """Serve one index with an encoder without words, and without embeddings; yield the address."""
    with serving([folder / "exact"], ImagesOnly()) as url:
        yield url


@contextmanager
def serving(indices: list[Path], encoder: Encoder) -> Iterator[str]:
    """Serve without embeddings, in a thread of this process, and yield the address."""
    collection = Collection(indices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "open_export", lambda *given, **named: None)
        patch.setattr(embed, "open_encoder", lambda name, device: encoder)
        collection.open_encoders()
    config = uvicorn.Config(make_app(collection), port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "window-size=1280,900", f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser: Any, address: str) -> Page:
    return Page(browser, address)
