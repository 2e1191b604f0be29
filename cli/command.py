"""Turn a function into a command, with the options that several commands share.

A new command is a function in a file of its own in `cli/commands/`, and a line in
`cli.main.COMMANDS`:

    @command(threads=True)
    def count(output: Output, workspace: "Workspace", folder: Folder) -> None:
        ...

The parameter `output` adds --json, --quiet and --debug. The parameter `workspace` adds --workspace
and may be left out. A parameter whose type is a dataclass is a group of options: each of its fields
is an option of the command.
"""

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

from cli.options import Debug, Json, MaxMegapixels, Quiet, Root, Threads, WorkspaceFolder
from cli.output import Output

Function = Callable[..., None]


def command(
    *, threads: bool = False, max_megapixels: bool = False, root: bool = False
) -> Callable[[Function], Function]:
    """Return a decorator that gives a function the options of a command.

    threads, max_megapixels, root: add --threads, --max-megapixels or --root. The function has no
    parameter for them: they take effect while the command line is read.
    """

    def decorate(function: Function) -> Function:
        parameters = signature(function).parameters.values()
        names = {parameter.name for parameter in parameters}
        shared = (
            *([_option("threads", Threads, None)] if threads else ()),
            *([_option("max_megapixels", MaxMegapixels, None)] if max_megapixels else ()),
            *([_option("root", Root, None)] if root else ()),
            *([_option("workspace", WorkspaceFolder, None)] if "workspace" in names else ()),
            _option("json", Json, False),
            _option("quiet", Quiet, False),
            _option("debug", Debug, False),
        )
        options = [*(option for each in parameters for option in _options_of(each)), *shared]

        @wraps(function)
        def run(**values: Any) -> None:
            function(**{each.name: _argument(each, values) for each in parameters})

        # typer reads these two, and not the function's own.
        vars(run)["__signature__"] = Signature(options)
        run.__annotations__ = {option.name: option.annotation for option in options}
        return run

    return decorate


def _option(name: str, annotation: object, default: object) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _options_of(parameter: Parameter) -> list[Parameter]:
    """Return the options in place of a function's parameter; none for one that is shared."""
    if parameter.name in ("output", "workspace"):
        return []
    group = _group(parameter)
    own = [parameter] if group is None else signature(group).parameters.values()
    return [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own]


def _argument(parameter: Parameter, values: Mapping[str, Any]) -> Any:
    """Return the argument of a function's parameter, from the values of all options."""
    if parameter.name == "output":
        return Output(values["json"], values["quiet"], values["debug"])
    if parameter.name == "workspace":
        from retrieval.workspace import Workspace

        return Workspace.at(values["workspace"])
    group = _group(parameter)
    if group is None:
        return values[parameter.name]
    return group(**{name: values[name] for name in signature(group).parameters})


def _group(parameter: Parameter) -> type[Any] | None:
    """Return the dataclass of a group of options; None for a single option."""
    kind = parameter.annotation
    return kind if isinstance(kind, type) and is_dataclass(kind) else None
