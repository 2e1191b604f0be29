"""Standard streams that are closed, full, or unable to encode a name."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.inspection import verify
from tests.cli.gallery import Gallery
from tests.cli.pictures import save
from tests.cli.running import CONSOLE_SCRIPT, TIME_LIMIT, Outcome, Retr


def shell(arguments: list[str], redirections: str, cwd: Path, **env: str) -> Outcome:
    """Return the outcome of the command in a shell, with these redirections."""
    command = f"{shlex.join([str(CONSOLE_SCRIPT), *arguments])} {redirections}"
    finished = subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    return Outcome(finished.returncode, finished.stdout.decode(), finished.stderr.decode())


def commands(gallery: Gallery) -> dict[str, list[str]]:
    index, embeddings = str(gallery.index()), str(gallery.embeddings)
    return {
        "help": ["--help"],
        "help of a command": ["search", "--help"],
        "nothing": [],
        "info": ["info", index],
        "json": ["info", index, "--json"],
        "search": ["search", str(gallery.image), "--index", index],
        "eval": ["eval", "--queries", embeddings, "--database", embeddings],
    }


@pytest.mark.parametrize("name", ["help", "help of a command", "info", "json", "search", "eval"])
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "it is closed"), (">/dev/full", "No space left on device")],
)
def test_unwritable_stdout_is_reported(
    retr: Retr, gallery: Gallery, name: str, redirection: str, reason: str
) -> None:
    outcome = shell(commands(gallery)[name], redirection, retr.cwd)
    said = f"error: cannot write to the standard output ({reason}); redirect it to a writable file"
    assert outcome.code == 1
    assert outcome.err.startswith(said) and outcome.err.count("\n") == 1


def test_quiet_needs_no_stdout(retr: Retr, gallery: Gallery) -> None:
    outcome = shell(["info", str(gallery.index()), "--quiet"], ">&-", retr.cwd)
    assert outcome == Outcome(0, "", "")


def test_bad_input_is_reported_although_stdout_is_closed(retr: Retr) -> None:
    outcome = shell(["info", "nothing"], ">&-", retr.cwd)
    assert outcome.code == 2 and outcome.err.startswith("error: nothing not found; ")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_closed_stderr_changes_nothing(retr: Retr, gallery: Gallery, redirection: str) -> None:
    arguments = ["info", str(gallery.index()), "--json"]
    outcome = shell(arguments, redirection, retr.cwd)
    assert outcome.code == 0 and outcome.document["rows"] == 60
    outcome = shell(["info", "nothing"], redirection, retr.cwd)
    assert (outcome.code, outcome.out) == (2, ""), "an error is never put on stdout"


def test_files_are_complete_without_any_stream(retr: Retr, gallery: Gallery) -> None:
    encode = ["encode", str(gallery.images), "--encoder", "toy", "--out", "made"]
    assert shell([*encode, "--quiet"], "<&- >&- 2>&-", retr.cwd).code == 0
    assert not verify(retr.cwd / "made").problems
    assert shell([*encode[:-1], "again"], "<&- >&- 2>&-", retr.cwd).code == 1, "nothing was said"
    assert not verify(retr.cwd / "again").problems


@pytest.fixture
def gone() -> Iterator[int]:
    """Yield a pipe whose reader is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("name", ["help", "nothing", "search", "json"])
def test_closed_pipe_ends_the_command_silently(
    retr: Retr, gallery: Gallery, name: str, gone: int
) -> None:
    command = [CONSOLE_SCRIPT, *commands(gallery)[name]]
    finished = subprocess.run(command, cwd=retr.cwd, stdout=gone, stderr=subprocess.PIPE)
    assert (finished.returncode, finished.stderr) == (1, b"")


def test_closed_pipe_of_stderr_changes_nothing(retr: Retr, gallery: Gallery, gone: int) -> None:
    for arguments, code in ((commands(gallery)["info"], 0), (["info", "nothing"], 2)):
        command = [CONSOLE_SCRIPT, *arguments]
        finished = subprocess.run(command, cwd=retr.cwd, stdout=subprocess.PIPE, stderr=gone)
        assert (finished.returncode, bool(finished.stdout)) == (code, code == 0)


@pytest.fixture
def named(retr: Retr) -> list[str]:
    """Return a search of pictures with names outside Latin-1 or ASCII."""
    for number, name in enumerate(["日本/é.png", "日本/ü.png", "cat/a.png"]):
        save(retr.cwd / "images" / name, seed=number)
    retr("encode", "images", "--encoder", "toy", "--out", "embeddings")
    retr("index", "embeddings", "--backend", "exact", "--out", "index")
    return ["search", "images/日本/é.png", "--index", "index"]


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
    ],
)
def test_characters_outside_the_encoding_are_escaped(
    retr: Retr, named: list[str], env: dict[str, str]
) -> None:
    images = ["search", "images/cat/a.png", *named[2:]]
    expected = retr.json(*images)
    assert shell([*images, "--json"], "", retr.cwd, **env).document == expected
    finished = subprocess.run(
        [CONSOLE_SCRIPT, *images], cwd=retr.cwd, env={**os.environ, **env}, capture_output=True
    )
    assert (finished.returncode, finished.stderr) == (0, b"")
    query, header, rule, *rows = finished.stdout.decode("latin-1").splitlines()
    assert query == "images/cat/a.png (cat)"
    assert {*rule} == {"-", " "} and len(rule) >= len(header)
    starts = [at for at, sign in enumerate(rule) if sign == "-" and rule[:at][-1:] != "-"]
    assert all(row[at - 1] == " " != row[at] for row in rows[:3] for at in starts[1:]), rows
    assert sum(r"\u65e5\u672c" in row for row in rows) == 2
    latin = "é" if env["PYTHONIOENCODING"] == "latin-1" else r"\xe9"
    assert sum(f"{latin}.png" in row for row in rows) == 1


def test_error_escapes_characters_outside_the_encoding(retr: Retr) -> None:
    outcome = shell(["info", "日本…"], "", retr.cwd, PYTHONIOENCODING="ascii")
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.startswith(r"error: \u65e5\u672c... not found; ")


def test_json_escapes_bytes_that_are_not_utf_8(capfd: pytest.CaptureFixture[str]) -> None:
    from cli.output import Output

    Output(json=True).document({"path": os.fsdecode(b"caf\xe9"), "label": "é"})
    printed = capfd.readouterr().out
    assert json.loads(printed) == {"path": os.fsdecode(b"caf\xe9"), "label": "é"}
