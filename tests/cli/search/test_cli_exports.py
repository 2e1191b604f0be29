"""The cached network of an encoder, with which searches need no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.embedding.embed import MAX_ONNX_IMAGES
from retrieval.embedding.onnx_cache import NETWORK, export_folder
from tests.cli.pictures import save
from tests.cli.running import Outcome, Retr, fork

pytestmark = pytest.mark.usefixtures("launched")

IMAGES = 24
ROUNDING = 0.03  # largest difference of cosines in bfloat16 and float32, for images of noise
# Modules that are slow to import. A search needs only ONNX Runtime. pandas is not a dependency, but
# pyarrow imports it if it is installed.
SLOW = ("torch", "onnxruntime", "pyarrow.compute", "pyarrow.dataset", "pandas")
# Run the command, then print the imported ones of these modules to stderr.
TELLING = f"""
import sys
from cli.main import main
sys.argv[0] = "retr"
try:
    main()
finally:
    print(*(name for name in {SLOW} if name in sys.modules), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write photos/0.png to 23.png, their siamese-quick embeddings, an index and the network."""
    home = tmp_path_factory.mktemp("exports")
    for number in range(IMAGES):
        save(home / "photos" / f"{number}.png", seed=number)
    forked = Retr(home, places(home), start=fork)
    forked("encode", home / "photos", "--encoder", "siamese-quick")
    forked("index", "--backend", "hnsw")
    return home


def places(home: Path) -> dict[str, str]:
    """Return the variables that name the workspace and the cache."""
    return {"RETR_WORKSPACE": str(home / "workspace"), "XDG_CACHE_HOME": str(home / "cache")}


@pytest.fixture
def indexed(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of photos, with its workspace and cache in use."""
    for name, value in places(home).items():
        monkeypatch.setenv(name, value)
    return home / "photos"


def fingerprint_of(photos: Path) -> str:
    forked = Retr(photos.parent, start=fork)
    facts = forked.json("encode", photos, "--encoder", "siamese-quick")["encoder"]
    return str(facts["fingerprint"])


def told(retr: Retr, *arguments: str) -> tuple[Outcome, list[str]]:
    """Return the outcome of a new process, and which slow modules it imported."""
    finished = subprocess.run(
        [sys.executable, "-c", TELLING, *arguments],
        cwd=retr.cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Outcome(finished.returncode, finished.stdout, finished.stderr), finished.stderr.split()


def check_alike(one: Outcome, other: Outcome) -> None:
    """Check that both find the same nearest image, at nearly the same distance.

    The other pictures are noise, at distances that differ by less than rounding.
    """
    for answer, again in zip(one.document, other.document, strict=True):
        hits, expected = answer["hits"], again["hits"]
        assert hits[0]["id"] == expected[0]["id"]
        assert len(hits) == len(expected)
        for hit, like in zip(hits, expected, strict=True):
            assert abs(hit["distance"] - like["distance"]) < ROUNDING


def test_a_search_needs_no_torch_and_finds_the_same(retr: Retr, indexed: Path) -> None:
    images = [str(indexed / f"{number}.png") for number in (0, 7, 23)]
    quick, imported = told(retr, "search", *images, "-k", "5", "--json")
    assert imported == ["onnxruntime"]
    slow, imported = told(
        retr, "search", *images, "-k", "5", "--json", "--encoder", "siamese-quick"
    )
    assert "torch" in imported
    check_alike(quick, slow)


def test_a_search_in_python_needs_no_torch_either(home: Path, indexed: Path) -> None:
    program = f"""
import sys
from retrieval import Searcher
searcher = Searcher.open({str(index_folder(home))!r})
for hits in searcher.search_images([{str(indexed / "3.png")!r}, {str(indexed / "5.png")!r}], k=2):
    print(hits[0].id)
print(*(name for name in {SLOW} if name in sys.modules))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert finished.stdout.split() == ["3.png", "5.png", "onnxruntime"]


def index_folder(home: Path) -> Path:
    [folder] = (home / "workspace" / "indices").iterdir()
    return folder


def test_first_search_caches_the_network(retr: Retr, indexed: Path) -> None:
    folder = export_folder(fingerprint_of(indexed))
    (folder / NETWORK).write_bytes(b"damaged")
    image = str(indexed / "0.png")
    first, imported = told(retr, "search", image, "--json")
    assert {"torch", "onnxruntime"} <= {*imported}
    second, imported = told(retr, "search", image, "--json")
    assert imported == ["onnxruntime"]
    check_alike(first, second)


@pytest.mark.slow
def test_torch_runs_searches_of_many_images(retr: Retr, indexed: Path) -> None:
    image = str(indexed / "0.png")
    outcome, imported = told(retr, "search", *[image] * (MAX_ONNX_IMAGES + 1), "-k", "1", "--json")
    assert "torch" in imported
    assert len(outcome.document) == MAX_ONNX_IMAGES + 1


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_a_warning(
    retr: Retr, indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (retr.cwd / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(retr.cwd / "file"))
    outcome = retr("search", indexed / "0.png", "--json")
    assert len(outcome.document) == 1
    assert outcome.err.startswith("warning: searches will load torch and be slower: ")
    assert "is a file" in outcome.err
