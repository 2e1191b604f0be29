"""The Python that the documentation shows runs, and says what it says there."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import retrieval
from retrieval import build_index, open_embeddings, open_encoder
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source

ROOT = Path(__file__).parents[3]
NOTEBOOK = ROOT / "docs" / "digits.ipynb"
BLOCKS = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+")


def readme() -> list[str]:
    return BLOCKS.findall((ROOT / "README.md").read_text())


def docstring() -> list[str]:
    """Return the text below the first line."""
    return [(retrieval.__doc__ or "").partition("\n\n")[2]]


@pytest.mark.parametrize("source", [*readme(), *docstring()], ids=["readme", "docstring"])
def test_examples(
    source: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    encode_source(open_source(str(photos)), open_encoder("toy"), Path("train-embeddings"))
    encode_source(open_source(str(photos), limit=25), open_encoder("toy"), Path("test-embeddings"))
    build_index([open_embeddings(Path("train-embeddings"))], "exact", Path("photos-index"))
    Image.new("RGB", (30, 20), (210, 40, 40)).save("query.jpg")
    exec(source, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and all("photos/red" in line for line in lines[:10])
    assert float(lines[10].split()[0]) > 0.99, "the colours are far from each other"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(home, str(tmp_path / home))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shown = nbformat.read(NOTEBOOK, as_version=4)
    run = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(run, timeout=300, kernel_name="python3", resources=resources).execute()
    for before, after in zip(printed(shown), printed(run), strict=True):
        assert NUMBER.sub("…", before) == NUMBER.sub("…", after) or "train/" in before
        numbers = [np.array([float(each) for each in NUMBER.findall(of)]) for of in (before, after)]
        np.testing.assert_allclose(numbers[0], numbers[1], atol=0.02)


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the output of each cell."""
    return [
        "".join(output["text"] for output in cell.get("outputs", ()) if "text" in output)
        for cell in notebook.cells
    ]
