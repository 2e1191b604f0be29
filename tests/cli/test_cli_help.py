"""`retr --help` and `--help` of every command: fast, and with an example."""

import subprocess
import sys

import pytest

from tests.cli.running import Retr

pytestmark = pytest.mark.usefixtures("launched")

COMMANDS = [
    "encode", "index", "search", "compare", "eval", "pairs", "plot", "bench", "train", "info",
    "verify", "demo",
]  # fmt: skip
HEAVY = ["torch", "torchvision", "faiss", "hnswlib", "pyarrow", "numpy", "PIL", "sklearn", "tqdm"]

LOADED = f"""
import sys
from cli.main import run
for arguments in [["--help"], *([command, "--help"] for command in {COMMANDS})]:
    sys.argv = ["retr", *arguments]
    assert run() == 0
print("loaded:", sorted(set({HEAVY}) & set(sys.modules)))
"""


def test_help_imports_no_slow_library(retr: Retr) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=retr.cwd, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert done.stdout.count("Usage: ") == 1 + len(COMMANDS)
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_the_common_options(retr: Retr, command: str) -> None:
    text = " ".join(retr(command, "--help").out.split())
    assert text.startswith(f"Usage: retr {command} ")
    assert f"Example: retr {command} " in text
    for option in ("--json", "--quiet", "--debug", "--help"):
        assert option in text
    # Each option has a help text next to its name.
    assert "--json Print" in text
    assert "--quiet Print" in text


def test_help_lists_every_command(retr: Retr) -> None:
    text = retr("--help").out
    for command in COMMANDS:
        assert f"\n  {command} " in text
    assert retr("-h").out == text


def test_retr_without_a_command_prints_the_help(retr: Retr) -> None:
    outcome = retr.run()
    assert outcome.code in (0, 2)
    shown = outcome.out + outcome.err
    assert "error: " not in shown
    for command in COMMANDS:
        assert f"\n  {command} " in shown
