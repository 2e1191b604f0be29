"""The documentation says only what there is."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from cli.main import application
from cli.reference import reference

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINKS = re.compile(r"\]\(([^)#]+)\)")


def commands(page: Path) -> list[str]:
    """The `retr …` lines of the page's code blocks, without comments and prompts."""
    lines = "\n".join(BLOCKS.findall(page.read_text())).splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.startswith("retr ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_ones_that_retr_takes(page: Path) -> None:
    group = typer.main.get_command(application())
    for line in commands(page):
        _, name, *arguments = shlex.split(line)
        with group.make_context("retr", []) as context:
            command = group.get_command(context, name)  # type: ignore[attr-defined]
            assert command is not None, line
            command.make_context(name, arguments, parent=context)  # raises for a wrong option


def test_the_reference_is_that_of_the_code() -> None:
    shown = (ROOT / "docs" / "cli.md").read_text()
    assert shown == reference(), "python -m cli.reference > docs/cli.md"


def test_the_readme_shows_the_main_job() -> None:
    shown = commands(ROOT / "README.md")
    for part in ("retr encode", "retr index --backend hnsw", "retr search img.png -k 10"):
        assert any(line.startswith(part) for line in shown)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINKS.findall(page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), target


def test_the_docker_image_starts_a_command_that_retr_takes() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    program, name, *arguments = json.loads(entry)
    assert program.endswith("/bin/retr")
    group = typer.main.get_command(application())
    with group.make_context("retr", []) as context:
        command = group.get_command(context, name)  # type: ignore[attr-defined]
        command.make_context(name, [*arguments, "--index", "photos"], parent=context)


def test_the_docker_image_gets_all_that_a_wheel_needs() -> None:
    allowed = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {*packages, "pyproject.toml", "README.md", "LICENSE"} <= {*allowed}
