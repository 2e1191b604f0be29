"""Files and folders that a listing leaves out: by default, by `.retrignore`, and by `--exclude`.

Patterns have the syntax of gitignore. Where several say something about a path, `--exclude` comes
before a `.retrignore`, the `.retrignore` of a folder before those of the folders above it, and all
of them before the defaults. So `!.thumbnails/` in a `.retrignore` takes that folder in.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from retrieval.errors import BadInput

IGNORE_FILE = ".retrignore"

DEFAULT_FOLDERS = frozenset(
    {
        "@eadir",  # thumbnails of Synology
        "@syno",
        "@tmp",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "@snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "__macosx",
        "node_modules",
    }
)
"""Folders that are left out by default, in lower case, besides all names that begin with a dot."""


@dataclass(frozen=True, slots=True)
class Excludes:
    """Files and folders to leave out. patterns: gitignore's, relative to the source's root."""

    patterns: tuple[str, ...] = ()
    defaults: bool = True

    def __post_init__(self) -> None:
        if self.patterns:
            _spec(self.patterns, "--exclude")

    def rules(self) -> "Rules":
        """Return the rules at the root of a source."""
        return Rules(self)

    def leaves_out(self, parts: tuple[str, ...], is_folder: bool = False) -> bool:
        """Return whether the path, or a folder above it, is left out, without ignore files."""
        rules = self.rules()
        return any(
            rules.leave_out(parts[:end], is_folder or end < len(parts))
            for end in range(1, len(parts) + 1)
        )


NO_EXCLUDES = Excludes()
"""Only the defaults."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of a folder: the excludes, and the patterns of ignore files, innermost first.

    files: the number of names that lead to the folder of each file, and its patterns.
    """

    excludes: Excludes
    files: tuple[tuple[int, tuple[str, ...]], ...] = ()

    def with_file(self, path: Path, depth: int) -> "Rules":
        """Return the rules with those of an ignore file. Raises BadInput for a bad pattern."""
        try:
            lines = tuple(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines())
        except OSError:
            return self
        _spec(lines, str(path))
        return replace(self, files=((depth, lines), *self.files))

    def leave_out(self, parts: tuple[str, ...], is_folder: bool) -> bool:
        """Return whether the file or folder that these names lead to is left out."""
        own = [(0, self.excludes.patterns)] if self.excludes.patterns else []
        for depth, patterns in (*own, *self.files):
            path = "/".join(parts[depth:]) + ("/" if is_folder else "")
            found = _spec(patterns, "").check_file(path).include
            if found is not None:
                return bool(found)
        return self.excludes.defaults and is_left_out_by_default(parts[-1], is_folder)


def is_left_out_by_default(name: str, is_folder: bool) -> bool:
    """Return whether a file or folder of this name is one that systems leave behind."""
    return name.startswith(".") or (is_folder and name.lower() in DEFAULT_FOLDERS)


@cache
def _spec(patterns: Iterable[str], where: str) -> Any:
    """Return the compiled patterns. Raises BadInput, naming `where` they are."""
    from pathspec import GitIgnoreSpec  # most sources have no patterns

    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise BadInput(
            f"{where} has a pattern that cannot be read ({error}); use the syntax of gitignore"
        ) from None
