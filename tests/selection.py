"""Test files of one module: `python tests/selection.py retrieval/hits.py` prints them.

A test file belongs to a module if it is named after it or imports it. A module that has no such
file has those of the modules that import it; failing that, those of its folder, and among them
those that name it in quotes, as tests name commands. At most `MAX_FILES` are selected: first files
with the module's name, then files that import few other modules.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[1]
PACKAGES = ("retrieval", "indexers", "encoders", "cli", "benchmarks")
FOLDERS = ("unit", "properties", "contract", "cli")  # the others start clusters or browsers
COMMANDS = {"evaluate": "eval"}  # commands that are not named as their modules
MAX_FILES = 5

Key = TypeVar("Key")


def selected(module: Path) -> list[Path]:
    """Return the test files of a module, relative to the root, most specific first.

    module: path relative to the root, such as retrieval/hits.py. Raises ValueError if there is no
    such module.
    """
    if module not in modules():
        raise ValueError(f"{module} is not a module of retr")
    found = nearest(module) or of_folder(module)
    order = sorted(
        found,
        key=lambda test: (
            not is_named_after(test, module.with_suffix("")),
            len(tests()[test]),
            test,
        ),
    )
    return order[:MAX_FILES]


def nearest(module: Path) -> set[Path]:
    """Return the tests of the module, or else of the modules that import it, level by level."""
    level = seen = {module}
    while level:
        found = importers(tests(), level) | {
            test
            for test in tests()
            if any(is_named_after(test, path.with_suffix("")) for path in level)
        }
        if found:
            return found
        level = importers(modules(), level) - seen
        seen = seen | level
    return set()


def of_folder(module: Path) -> set[Path]:
    """Return the tests named after the module's folder, or else those that import from it.

    Those that hold the name of the module, or of its command, in double quotes are enough.
    """
    named = {test for test in tests() if is_named_after(test, module.parent)}
    found = named or importers(
        tests(), (path for path in modules() if module.parent in path.parents)
    )
    name = COMMANDS.get(module.stem, module.stem)
    quoting = {test for test in found if f'"{name}"' in (ROOT / test).read_text(encoding="utf-8")}
    return quoting or found


def is_named_after(test: Path, path: Path) -> bool:
    """Return whether the test's name begins with an end of the path, or ends with its last word.

    test_metrics_properties.py and test_cli_metrics.py are named after retrieval/quality/metrics.
    The folder of the commands is left out: test_cli_search.py is named after cli/commands/search.
    """
    parts = [COMMANDS.get(part, part) for part in path.parts if part != "commands"]
    words = test.stem.removeprefix("test_")
    ends = ["_".join(parts[start:]) for start in range(len(parts))]
    return words.endswith(f"_{ends[-1]}") or any(f"{words}_".startswith(f"{end}_") for end in ends)


def importers(files: Mapping[Key, frozenset[str]], paths: Iterable[Path]) -> set[Key]:
    """Return the files that import any of the modules."""
    names = {dotted(path) for path in paths}
    return {file for file, imported in files.items() if imported & names}


def dotted(module: Path) -> str:
    """Return the import name of a module: retrieval/hits.py is retrieval.hits."""
    return ".".join(module.with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[Path, frozenset[str]]:
    """Return all modules, and the names that each imports from the project."""
    return {path: imports(path) for path in below(PACKAGES, "*.py")}


@cache
def tests() -> dict[Path, frozenset[str]]:
    """Return all test files that may be selected, and the names that each imports."""
    return {path: imports(path) for path in below(f"tests/{folder}" for folder in FOLDERS)}


def below(folders: Iterable[str], pattern: str = "test_*.py") -> list[Path]:
    """Return the files below the folders, relative to the root."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob(pattern))]
    return [path.relative_to(ROOT) for path in found]


def imports(path: Path) -> frozenset[str]:
    """Return the names that a file imports from the project, anywhere in it."""
    found = imported_names(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    return frozenset(name for name in found if name.partition(".")[0] in PACKAGES)


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported: a.b and a.b.c of `from a.b import c`, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


if __name__ == "__main__":
    try:
        print(*selected(Path(sys.argv[1])))
    except (IndexError, ValueError) as problem:
        sys.exit(f"error: {problem}; run make test-fast MODULE=retrieval/hits.py")
