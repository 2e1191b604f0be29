"""Measurements of two libraries in turns, so that changes of the machine's speed affect both."""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import IO, Any, Self

TARGETS = (0.90, 0.95, 0.99)
WAYS = ("single", "batch")

Effort = tuple[int, int]
"""A ladder and a rung."""


class WorkerError(Exception):
    """A library that cannot be measured; its last words."""


class Worker:
    """A process of `benchmarks.peers.worker`, with the efforts that reach the targets.

    efforts: for each target, the smallest effort that reaches it; of several ladders, the one whose
    effort is the fastest. recalls: of these efforts. Targets that are not reached are missing.
    """

    def __init__(self, name: str, folder: Path) -> None:
        """Start the process, build, and find the efforts. Raises WorkerError."""
        self.errors: IO[str] = (folder / f"{name}.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.efforts: dict[float, Effort] = {}
        self.recalls: dict[float, float] = {}
        try:
            built = self._answer()
            self.build_seconds: float = built["build_seconds"]
            self.choose(built["rungs"])
        except WorkerError:
            self.close()
            raise

    def choose(self, rungs: Sequence[int]) -> None:
        """Find the efforts that reach the targets; rungs: of each ladder. Raises WorkerError."""
        fastest: dict[float, float] = {}
        for ladder, count in enumerate(rungs):
            for target, rung, found in self._reached(ladder, count):
                if found["seconds"] < fastest.get(target, float("inf")):
                    self.efforts[target], fastest[target] = (ladder, rung), found["seconds"]
                    self.recalls[target] = found["recall"]

    def _reached(self, ladder: int, rungs: int) -> list[tuple[float, int, dict[str, float]]]:
        """Return each target that the ladder reaches, the first rung that does, and its recall."""
        reached, missing = [], [*TARGETS]
        for rung in range(rungs):
            found = self.ask("recall", (ladder, rung))
            while missing and found["recall"] >= missing[0]:
                reached.append((missing.pop(0), rung, found))
            if not missing:
                break
        return reached

    def seconds(self, way: str, target: float) -> float:
        """Return the seconds for a query, with the effort for the target."""
        return self.ask(way, self.efforts[target])["seconds"]

    def ask(self, what: str, effort: Effort) -> dict[str, float]:
        """Return the answer to a question; see `benchmarks.peers.worker`. Raises WorkerError."""
        assert self.process.stdin is not None
        question = {"what": what, "ladder": effort[0], "rung": effort[1]}
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failed() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self) -> WorkerError:
        code = self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().strip().splitlines()
        return WorkerError(words[-1] if words else f"exit code {code}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stdin):
            assert stream is not None
            with suppress(BrokenPipeError):  # the process has ended
                stream.close()
        self.errors.close()


@dataclass(slots=True)
class Compared:
    """A library beside the baseline, with the same target.

    seconds: for a query, in each round. ratios: how many times as fast as the baseline, whose time
    is the mean of the measurements before and after.
    """

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def cell(self) -> str:
        """Return queries per second, and the ratio with its range, for a table."""
        if not self.seconds:
            return "–"
        low, high = min(self.ratios), max(self.ratios)
        rate = f"{1 / median(self.seconds):,.0f}"
        return f"{rate} ({median(self.ratios):.2f}, {low:.2f}–{high:.2f})"


def compared(worker: Worker, baseline: Worker, rounds: int) -> dict[str, dict[float, Compared]]:
    """Return each way and target, each measurement between two of the baseline."""
    found = {way: {target: Compared() for target in TARGETS} for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            for target in TARGETS:
                if target not in worker.efforts or target not in baseline.efforts:
                    continue
                before = baseline.seconds(way, target)
                mine = worker.seconds(way, target)
                after = baseline.seconds(way, target)
                cell = found[way][target]
                cell.seconds.append(mine)
                cell.ratios.append((before + after) / 2 / mine)
    return found
