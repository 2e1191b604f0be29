"""Several files of a folder replaced as one, also where the process is killed on the way.

What is new is written into a folder of its own inside, flushed to disk, and renamed to `READY`:
from then on it is what stands there, and whoever comes next, reader or writer, moves what is not
moved yet. The file that names the others goes last.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from retrieval.errors import BadData, BadInput, Busy
from retrieval.storage.files import PARTIAL, locked, read_json, sync_folder

READY = f".ready{PARTIAL}"
STALE = "stale.json"  # names of the files to delete, beside the new ones
PATIENCE_SECONDS = 5.0  # for a reader to wait while a writer moves files


def publish(new: Path, folder: Path, last: str, stale: Iterable[str]) -> None:
    """Make the files in `new`, a folder inside `folder`, the folder's, and delete the stale ones.

    The caller holds the folder's lock, and finds `new` gone.
    """
    (new / STALE).write_text(json.dumps({"stale": sorted(stale)}))
    for path in new.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(new)
    new.replace(folder / READY)
    sync_folder(folder)
    finish(folder, last)


def finish(folder: Path, last: str) -> None:
    """Move what is ready in the folder to its place. The caller holds the folder's lock."""
    ready = folder / READY
    if not ready.is_dir():
        return
    stale = _stale(folder)  # before anything is moved
    for path in ready.iterdir():
        if path.name not in (last, STALE):
            path.replace(folder / path.name)
    sync_folder(folder)
    if (ready / last).exists():
        (ready / last).replace(folder / last)
        sync_folder(folder)
    for path in stale:
        path.unlink(missing_ok=True)
    shutil.rmtree(ready)


def _stale(folder: Path) -> list[Path]:
    """Return the files to delete. Raises BadData where these are not files of the folder."""
    ready = folder / READY
    file = ready / STALE
    if ready.is_symlink():
        raise BadData(f"{ready} leads out of its folder; delete it")
    if not file.exists():  # it is the last to go
        return []
    names = read_json(file).get("stale")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadData(f"{file} lacks the names of files; delete {ready}")
    paths = [folder / str(name) for name in names]
    if not all(path.parent.resolve().is_relative_to(folder.resolve()) for path in paths):
        raise BadData(f"{file} names a file outside its folder; delete {ready}")
    return paths


def settle(folder: Path, last: str) -> None:
    """Finish an interrupted publication, or wait for the writer that is at it.

    A folder that nothing is left to move into is not written to: it may be read-only.

    Raises BadInput where files are left to move and the folder cannot be written, Busy where the
    writer takes longer than `PATIENCE_SECONDS`, BadData for files that no writer of ours has left.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while (folder / READY).is_dir():
        try:
            with locked(folder):
                finish(folder, last)
        except Busy:
            if time.monotonic() >= end:
                raise
            time.sleep(0.02)
        except BadData:
            raise
        except (BadInput, OSError) as error:
            if not (folder / READY / last).exists():  # the last one is in its place: all are
                return
            raise BadInput(
                f"writing {folder} was interrupted, and it cannot be finished here ({error}); "
                "run the command once as a user who may write there"
            ) from None
