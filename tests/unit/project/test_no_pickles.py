"""Nothing that retr ships unpickles: a pickle runs what its maker likes."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SHIPPED = ("retrieval", "indexers", "encoders", "cli", "benchmarks")
UNPICKLES = {
    "pickle": re.compile(
        r"\b(?:c?[pP]ickle|dill|joblib|shelve|marshal)\.(?:load|loads|Unpickler|open)\b"
    ),
    "torch": re.compile(r"\btorch\.load\((?!.*weights_only=True)"),
    "numpy": re.compile(r"\bnp\.load\((?!.*allow_pickle=False)"),
    "pandas": re.compile(r"\bread_pickle\b"),
}
CIFAR = "retrieval/images/datasets/cifar.py"
"""Reads the official archive's pickles by an unpickler that makes arrays of bytes alone."""


def lines() -> list[tuple[str, int, str]]:
    """Return (file, line, text) of all code, with calls over several lines as one."""
    found = []
    for package in SHIPPED:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = re.sub(r"\(\s+", "(", path.read_text())
            text = re.sub(r",\s*\n\s*", ", ", text)
            name = path.relative_to(ROOT).as_posix()
            found += [(name, number, line) for number, line in enumerate(text.splitlines(), 1)]
    return found


@pytest.mark.parametrize("what", UNPICKLES)
def test_nothing_is_unpickled(what: str) -> None:
    hits = [
        f"{name}: {line.strip()}"
        for name, _, line in lines()
        if UNPICKLES[what].search(line) and name != CIFAR
    ]
    assert not hits


def test_the_search_would_find_it() -> None:
    for line in ("pickle.loads(x)", "torch.load(path)", "np.load(path)", "pd.read_pickle(f)"):
        assert any(pattern.search(line) for pattern in UNPICKLES.values()), line
    assert not UNPICKLES["numpy"].search("np.load(path, allow_pickle=False)")
    assert len({name for name, _, _ in lines()}) > 100
