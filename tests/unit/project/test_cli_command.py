"""The decorator that turns a function into a command."""

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from cli.command import command
from cli.output import Output
from retrieval.workspace import Workspace


@dataclass(frozen=True)
class Size:
    """Options of a rectangle."""

    width: Annotated[int, typer.Option(help="Width.")] = 2
    height: Annotated[int, typer.Option("-y", help="Height.")] = 3


CALLS: list[dict[str, Any]] = []


@command(threads=True)
def paint(
    output: Output,
    workspace: "Workspace",
    color: str,
    *,
    size: Size,
    out: Annotated[Path | None, typer.Option(help="File.")] = None,
) -> None:
    """Paint a rectangle."""
    CALLS.append(
        {"output": output, "workspace": workspace, "color": color, "size": size, "out": out}
    )


def called(*arguments: str) -> dict[str, Any]:
    """Run the command, and return the arguments of its function."""
    app = typer.Typer(rich_markup_mode=None)
    app.command()(paint)
    CALLS.clear()
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    (call,) = CALLS
    return call


def test_groups_are_expanded_in_place_and_shared_options_come_last() -> None:
    assert [*signature(paint).parameters] == [
        "color", "width", "height", "out", "threads", "workspace", "json", "quiet", "debug",
    ]  # fmt: skip
    assert paint.__doc__ == "Paint a rectangle."


def test_defaults_are_those_of_function_and_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETR_WORKSPACE", raising=False)
    assert called("red") == {
        "output": Output(),
        "workspace": Workspace(Path(".retr")),
        "color": "red",
        "size": Size(2, 3),
        "out": None,
    }


def test_values_reach_function_and_group() -> None:
    options = ["--width", "5", "-y", "7", "--out", "a.png", "--workspace", "w", "--json", "--debug"]
    assert called("red", *options) == {
        "output": Output(json=True, debug=True),
        "workspace": Workspace(Path("w")),
        "color": "red",
        "size": Size(5, 7),
        "out": Path("a.png"),
    }


def test_only_the_shared_options_that_are_asked_for_are_added() -> None:
    @command()
    def plain(output: Output) -> None: ...

    assert [*signature(plain).parameters] == ["json", "quiet", "debug"]
