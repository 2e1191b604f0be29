"""The reference of the command line, from the code: `python -m cli.reference > docs/cli.md`."""

import re
from typing import Any

import typer

from cli.main import application

HEAD = """# The command line

Written by `python -m cli.reference`; a test holds it against the code. `retr --install-completion`
makes the shell complete commands and options (bash, zsh, fish, PowerShell).

Every command: `--json` prints one JSON document on stdout and nothing else, `--quiet` nothing but
errors, `--debug` the traceback of an error, `--help` what stands here. Errors are one line on
stderr: what is wrong; what to do. Exit codes: 0, 2 for a wrong call or bad input, 1 for a failure,
130 where it was interrupted.

Characters that the terminal's encoding lacks are written as escapes, and `--json` is then ASCII. A
stdout that cannot be written, closed or full, is a failure. A reader that has gone, as `head` does,
ends the command silently, with exit code 1.
"""
EVERYWHERE = frozenset({"--json", "--quiet", "--debug", "--help"})


def reference() -> str:
    """The whole page, in Markdown."""
    group: Any = typer.main.get_command(application())
    with group.make_context("retr", []) as context:
        commands = [group.get_command(context, name) for name in group.list_commands(context)]
        return "\n".join([HEAD, *(_section(command, context) for command in commands)])


def _section(command: Any, parent: Any) -> str:
    with typer.Context(command, info_name=command.name, parent=parent) as context:
        usage = " ".join(command.collect_usage_pieces(context))
        text, *examples = (command.help or "").split("Example: ")
        shown = [param for param in command.params if not EVERYWHERE & set(param.opts)]
        rows = [_row(param, context) for param in shown]
    usage = f"retr {command.name} {usage}".replace("[OPTIONS]", "[OPTION]...")
    lines = [f"## retr {command.name}", "", f"`{usage}`", "", " ".join(text.split()), ""]
    lines += ["| | | default |", "|---|---|---|", *rows, ""]
    for example in examples:
        lines += [f"Example: `{' '.join(example.split())}`", ""]
    return "\n".join(lines)


def _row(param: Any, context: Any) -> str:
    """A line of the table: what it is called, what it does, what it is where it is left out."""
    names, told = param.get_help_record(context)
    told, _, default = told.partition("  [")
    default = re.split(r"\]|; ", default)[0].removeprefix("default: ")  # not the range behind it
    cells = (f"`{names}`", told, default)
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(reference(), end="")
