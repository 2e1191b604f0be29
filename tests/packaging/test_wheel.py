"""The wheel, installed into an empty environment with the packages that it names."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FREE_BYTES = 20 << 30  # disk space for the environment and the downloaded packages
EXTRAS = "vamana,milvus,pgvector,offline"

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without the settings of this process's Python; return its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Yield a folder with the wheel and an environment with it, removed after the tests."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        if shutil.disk_usage(home).free < FREE_BYTES:
            pytest.skip(f"needs {FREE_BYTES >> 30} GB of disk space in {home.parent}")
        run(sys.executable, "-m", "venv", home / "env", cwd=home)
        pip = [home / "env" / "bin" / "python", "-m", "pip"]
        download = [*pip, "download", "--quiet", "--no-deps", "--dest", home / "probe", "hatchling"]
        if subprocess.run(download, capture_output=True, check=False).returncode:
            pytest.skip("needs a package index that pip can reach")
        run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", home, ROOT, cwd=home)
        (wheel,) = home.glob("retr-*.whl")
        run(*pip, "install", "--quiet", "--no-compile", wheel, cwd=home)
        yield home


def test_the_demo_runs(home: Path) -> None:
    retr = home / "env" / "bin" / "retr"
    document = json.loads(run(retr, "demo", "--limit", "200", "--json", cwd=home))
    assert document["data"]["database"].startswith(("cifar10", "digits"))
    assert {row["backend"] for row in document["bench"]["rows"]} == {"exact", "ivf", "hnsw"}
    assert (home / "retr-demo" / "neighbors.png").exists()


def test_the_wheel_depends_on_no_development_package(home: Path) -> None:
    listed = run(home / "env" / "bin" / "python", "-m", "pip", "list", "--format=json", cwd=home)
    installed = {package["name"].lower() for package in json.loads(listed)}
    assert not installed & {"ray", "moto", "selenium", "pytest", "nbclient", "ipykernel", "mypy"}
    assert "torch" in installed


@pytest.mark.usefixtures("database")
def test_all_plugins_keep_their_contracts(home: Path) -> None:
    python = home / "env" / "bin" / "python"
    (wheel,) = home.glob("retr-*.whl")
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    run(*install, f"retr[{EXTRAS}] @ {wheel.as_uri()}", cwd=home)
    run(*install, "--no-deps", "milvus-lite", cwd=home)
    script = shutil.copy(Path(__file__).parent / "check_plugins.py", home)
    checked = json.loads(run(python, script, cwd=home).splitlines()[-1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert checked["indexers"] == sorted(project["retr.indexers"])
    assert checked["encoders"] == sorted({*project["retr.encoders"]} - {"exported", "clip"})
