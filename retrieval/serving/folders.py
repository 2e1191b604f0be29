"""Folders whose images a service may show; links out of them are not followed."""

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import BadImage
from retrieval.storage.names import restored


class Folders:
    """Folders, and URLs, below which images may be shown."""

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = [*map(str, roots)]
        self._real = [_real(root).rstrip("/") + "/" for root in roots]

    @classmethod
    def of(cls, paths: pa.ChunkedArray) -> "Folders":
        """Return the common folder of an index's local images, and that of its remote ones."""
        remote = pc.match_substring(paths, "://")
        kinds = (paths.filter(pc.invert(remote)), paths.filter(remote))
        return cls([_shared(kind) for kind in kinds if len(kind)])

    def check(self, path: str) -> None:
        """Raise BadImage for an image outside these folders, after following links.

        Rows of containers are always allowed: the container was named when it was encoded.
        """
        if _row_of(path) and "://" not in path:
            return
        if not any(_real(path).startswith(root) for root in self._real):
            served = ", ".join(self.roots) or "the served folders"
            raise BadImage(
                path, f"it links out of {served}; name the folder of its target with --images"
            )


def _shared(paths: pa.ChunkedArray) -> str:
    """Return the common parent of stored paths, of which there is at least one."""
    # A prefix of both the first and the last path, in order, is a prefix of all.
    ends = pc.min_max(paths).as_py()
    both = zip(ends["min"], ends["max"], strict=False)
    shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], both))
    return restored(shared[: shared.rfind("/") + 1])


def _row_of(path: str) -> bool:
    """Return whether the path has the form `FILE#ROW`."""
    file, mark, row = path.rpartition("#")
    return bool(mark and file and row.isdecimal()) and not Path(path).is_file()


def _real(path: str) -> str:
    return path if "://" in path else os.path.realpath(path or "/")
