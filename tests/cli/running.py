"""Runs the command as a user does, and says what to expect of every run."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONSOLE_SCRIPT = Path(sys.executable).parent / "retr"
TIME_LIMIT = 120  # seconds; far more than any command here takes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of the command left behind: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; anything beside it fails the test."""
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Retr:
    """The console script, run in `cwd` with `env` on top of the test's own environment."""

    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str | Path) -> Outcome:
        """The outcome of `retr ARGUMENTS`, whatever it is, but without a traceback or warning."""
        finished = subprocess.run(
            [CONSOLE_SCRIPT, *map(os.fspath, arguments)],
            cwd=self.cwd,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=False,
        )
        outcome = Outcome(finished.returncode, finished.stdout, finished.stderr)
        assert "Traceback" not in outcome.err, outcome.err
        assert "Warning" not in outcome.err, outcome.err
        return outcome

    def __call__(self, *arguments: str | Path) -> Outcome:
        """The outcome of a run that must succeed."""
        outcome = self.run(*arguments)
        assert outcome.code == 0, outcome
        return outcome

    def json(self, *arguments: str | Path) -> Any:
        """The document of a run with --json, which must succeed and have nothing to warn of."""
        outcome = self(*arguments, "--json")
        assert outcome.err == "", outcome
        return outcome.document

    def refused(self, *arguments: str | Path, leaves: bool = False) -> str:
        """The message of a run that must be refused as bad input.

        That is exit code 2, nothing on stdout, one line on stderr that says what is wrong and
        what to do, and every file below `cwd` as it was. `leaves`: there may be new files.
        """
        before = snapshot(self.cwd)
        outcome = self.run(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.out == "", outcome
        assert outcome.err.endswith("\n"), outcome
        lines = outcome.err.splitlines()
        assert len(lines) == 1, outcome
        assert lines[0].startswith("error: "), outcome
        problem, semicolon, remedy = lines[0].removeprefix("error: ").partition("; ")
        assert problem, outcome
        assert semicolon, outcome
        assert remedy, outcome
        after = snapshot(self.cwd)
        assert {name: after.get(name) for name in before} == before
        assert leaves or after.keys() == before.keys(), after.keys() - before.keys()
        return lines[0]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below the folder with its content, and every folder with None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
