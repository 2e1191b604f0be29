"""The command `retr`: its subcommands, and how errors are printed.

Only the module of the given command is imported at start, and it imports what it needs when it
runs: every command waits for these imports.
"""

import sys
from collections.abc import Iterable
from importlib import import_module

import typer

from cli.output import one_line
from cli.streams import CannotPrint, OutputLost, ReaderGone, discard_stdout, open_streams
from retrieval.errors import RetrError

COMMANDS = {
    "encode": "encode",
    "index": "index",
    "search": "search",
    "serve": "serve",
    "label": "label",
    "eval": "evaluate",
    "compare": "compare",
    "pairs": "pairs",
    "duplicates": "duplicates",
    "plot": "plot",
    "bench": "bench",
    "report": "report",
    "train": "train",
    "info": "info",
    "verify": "verify",
    "relocate": "relocate",
    "list": "list_workspace",
    "prune": "prune",
    "demo": "demo",
}
"""The module in `cli/commands/` of each command, which is also the name of its function."""


def application(commands: Iterable[str] = COMMANDS) -> typer.Typer:
    """Return the command line with these commands."""
    app = typer.Typer(
        help="Search images by example: encode, index, search, and measure the quality.",
        epilog="First steps: retr demo",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback(invoke_without_command=True)
    def without_command(context: typer.Context) -> None:
        """Search images by example: encode, index, search, and measure the quality."""
        if context.invoked_subcommand is None:
            print(context.get_help())

    for name in commands:
        module = import_module(f"cli.commands.{COMMANDS[name]}")
        app.command(name)(getattr(module, COMMANDS[name]))
    return app


def main() -> None:
    """Run `retr` and leave with its exit code: 0, 2 for bad input, 1 for a failure."""
    open_streams()
    sys.exit(run())


def run() -> int:
    """Run the command line and return its exit code. An error is one line on stderr."""
    try:
        given = [name for name in sys.argv[1:2] if name in COMMANDS]
        code = application(given or COMMANDS)(prog_name="retr", standalone_mode=False)
        sys.stdout.flush()
    except RetrError as error:
        return _failed(error, str(error), error.exit_code)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = "retr" if context is None else context.command_path
        message = error.format_message().rstrip(".")
        return _failed(error, f"{message}; see '{command} --help'", 2)
    except ReaderGone:
        discard_stdout()
        return 1
    except CannotPrint as error:
        return _failed(error, str(error), 1)
    except PermissionError as error:
        name = f": {error.filename}" if error.filename else ""
        return _failed(error, f"permission denied{name}; change its mode, or name another file", 2)
    except Exception as error:
        detail = " ".join(str(error).split()) or "no details"
        message = f"{type(error).__name__}: {detail}; run again with --debug to see the traceback"
        return _failed(error, message, 1)
    return code if isinstance(code, int) else 0


def _failed(error: Exception, message: str, exit_code: int) -> int:
    try:
        sys.stdout.flush()
    except OutputLost:
        discard_stdout()
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exception(error)
    print(f"error: {one_line(message)}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
