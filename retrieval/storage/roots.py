"""Folders of images that were moved: paths below the old folder become paths below the new one.

The path of an image file ends with its id. What stands before it is the root, the folder that was
encoded.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from retrieval.errors import BadInput
from retrieval.storage.names import restored, storable

ROOT_VARIABLE = "RETR_ROOT"


def move_root(root: str) -> None:
    """Read images below this folder, in this process and its children.

    root: as `parsed_root` takes it. It is checked when the first paths are read.
    """
    os.environ[ROOT_VARIABLE] = root


def parsed_root(root: str) -> tuple[str, str]:
    """Return the old folder, empty if it was not given, and the new one, both absolute.

    root: NEW, or OLD=NEW if images of several folders are involved. Raises BadInput if NEW is not a
    folder.
    """
    old, _, new = ("", "", root) if Path(root).is_dir() else root.rpartition("=")
    folder = Path(new).expanduser()
    if not folder.is_dir():
        raise BadInput(f"{new} is not a folder; name the folder where the images are now")
    return str(Path(old).expanduser().absolute()) if old else "", str(folder.resolve())


def roots_of(ids: Sequence[str], paths: Sequence[str | None]) -> list[str]:
    """Return the roots of the paths that end with their id, as stored text, each once."""
    roots = {
        path[: -len(id_) - 1]: None
        for id_, path in zip(ids, paths, strict=True)
        if path is not None and path.endswith(f"/{id_}")
    }
    return [*roots]


def at_moved_roots(rows: pa.Table) -> pa.Table:
    """Return the rows (id, path and others) with the paths that `move_root` asked for.

    Raises the errors of `with_root`.
    """
    moved = os.environ.get(ROOT_VARIABLE)
    return with_root(rows, *parsed_root(moved)) if moved else rows


def with_root(rows: pa.Table, old: str, new: str) -> pa.Table:
    """Return the rows (id, path and others) with paths below `new` in place of `old`.

    old: empty for the only root, or the only one that is gone. Raises BadInput if there is none, or
    several.
    """
    if not len(rows):
        return rows
    ids, paths = rows["id"].to_pylist(), rows["path"].to_pylist()
    head = (storable(old) or _moved_root(roots_of(ids, paths))).rstrip("/") + "/"
    new_head = storable(new).rstrip("/") + "/"
    changed = [
        new_head + path[len(head) :] if path is not None and path.startswith(head) else path
        for path in paths
    ]
    place = rows.schema.get_field_index("path")
    return rows.set_column(place, rows.schema.field(place), pa.array(changed, pa.string()))


def _moved_root(roots: Sequence[str]) -> str:
    """Return the only root, or the only one that is gone."""
    gone = (
        roots if len(roots) < 2 else [root for root in roots if not Path(restored(root)).is_dir()]
    )
    if len(gone) == 1:
        return gone[0]
    if not roots:
        raise BadInput(
            "these images are not files below a folder, which could be moved; leave --root out"
        )
    raise BadInput(
        f"the images are from {len(roots)} folders, such as {roots[0]}; "
        "say which one was moved with --root OLD=NEW"
    )
