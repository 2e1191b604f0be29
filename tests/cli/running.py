"""Run the command, and check what holds for every run."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.forking import forking

CONSOLE_SCRIPT = Path(sys.executable).parent / "retr"
TIME_LIMIT = 120  # seconds; far more than any command takes


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code of a run, and its output."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; anything beside it fails the test."""
        return json.loads(self.out)


Launch = Callable[[Sequence[str], Path, Mapping[str, str]], Outcome]
"""Run `retr` with these arguments, in this folder, with these variables added."""


def launch(arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Outcome:
    """Run the console script, as a user does."""
    finished = subprocess.run(
        [CONSOLE_SCRIPT, *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    return Outcome(finished.returncode, finished.stdout, finished.stderr)


def fork(arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Outcome:
    """Run the command in a process forked from one that has done all imports.

    This takes a tenth of the time of a new process.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        everything = {**os.environ, **env}
        process = forking().Process(target=_forked, args=(arguments, cwd, everything, out, err))
        process.start()
        process.join(TIME_LIMIT)
        process.kill()
        process.join()
        assert process.exitcode is not None
        return Outcome(process.exitcode, out.read_text(), err.read_text())


def _forked(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], out: Path, err: Path
) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["retr", *arguments]

    from cli.main import main

    main()


@dataclass(frozen=True, slots=True)
class Retr:
    """The command, run in `cwd` with the variables `env` added."""

    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    start: Launch = fork

    def run(self, *arguments: str | Path) -> Outcome:
        """Run `retr ARGUMENTS`. Fail on a traceback or a Python warning."""
        outcome = self.start([str(argument) for argument in arguments], self.cwd, self.env)
        assert "Traceback" not in outcome.err, outcome.err
        assert "Warning" not in outcome.err, outcome.err
        return outcome

    def __call__(self, *arguments: str | Path, code: int = 0) -> Outcome:
        """Run the command. Fail unless it exits with `code`."""
        outcome = self.run(*arguments)
        assert outcome.code == code, outcome
        return outcome

    def json(self, *arguments: str | Path) -> Any:
        """Run with --json and return the document. Fail on an error or a warning."""
        outcome = self(*arguments, "--json")
        assert outcome.err == "", outcome
        return outcome.document

    def refused(self, *arguments: str | Path, leaves: bool = False) -> str:
        """Return the error of a run. Fail unless it is refused as bad input.

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
    """Return every file below the folder with its content, and every folder with None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
