"""Measure commands from a cold process: `python -m benchmarks.speed.cold --help`.

The measurements alternate, each in its own process, so that a slow phase of the machine affects
all: the bare interpreter, the imports that such a command needs, torch's import for comparison,
`retr --help`, a search through the encoder's exported network, and the same search through torch;
with --text, also a search in words.
A first search is not counted: it may export the network, and reads files that are cached later.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import cast

from benchmarks.suite import machine
from retrieval.contracts import Json
from retrieval.index.folder import IndexFacts

RETR = (sys.executable, "-c", "from cli.main import main; main()")


def measure(index: Path, image: Path, k: int, repeats: int, text: str = "") -> dict[str, Json]:
    """Return the seconds of each measurement in each repetition, and their median.

    Raises BadInput if `folder` has no index, CalledProcessError if a command fails.
    """
    facts = IndexFacts.read(index)
    search = (*RETR, "search", str(image), "-k", str(k), "--index", str(index))
    ways = {
        "python": (sys.executable, "-c", "pass"),
        "import_typer": (sys.executable, "-c", "import typer"),
        "import_all_needed": (sys.executable, "-c", "import typer, numpy, onnxruntime"),
        "import_torch": (sys.executable, "-c", "import torch"),
        "help": (*RETR, "--help"),
        "search": search,
        "search_with_torch": (*search, "--encoder", facts.encoder.name),
    }
    if text:
        words = (*RETR, "search", "--text", text, "-k", str(k), "--index", str(index))
        ways["search_in_words"] = words
        seconds(words)
    seconds(search)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, command in ways.items():
            taken[name].append(seconds(command))
    return {
        "index": {"backend": facts.backend, "rows": facts.rows, "dim": facts.dim},
        "encoder": facts.encoder.name,
        "seconds": {
            name: {"median": median(times), "repeats": cast(Json, times)}
            for name, times in taken.items()
        },
        "machine": machine.describe(),
    }


def seconds(command: tuple[str, ...]) -> float:
    """Return the seconds that the command takes. Raises CalledProcessError if it fails."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Print the times, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--text", default="", help="words to search for; none: no such search")
    given = parser.parse_args()
    results = measure(given.index, given.image, given.k, given.repeats, given.text)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
