"""Replace several files of a folder as one, also if the process is killed meanwhile.

New files are written into a folder inside, flushed to disk, and published by renaming that folder
to `READY`. Then they are moved into the outer folder, the file that names the others last. If the
process is killed before that, the next reader or writer moves the rest.
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
READER_TIMEOUT_SECONDS = 5.0  # for a reader, while a writer moves files


def publish(new: Path, folder: Path, last: str, stale: Iterable[str]) -> None:
    """Move the files of `new`, a folder inside `folder`, into `folder`; delete the stale files.

    The caller holds the folder's lock. `new` does not exist afterwards.
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
    """Move the files of `READY` into the folder. The caller holds the folder's lock."""
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
    """Return the files to delete. Raises BadData unless they are files of the folder."""
    ready = folder / READY
    file = ready / STALE
    if ready.is_symlink():
        raise BadData(f"{ready} is a link; delete it")
    if not file.exists():  # it is the last to go
        return []
    names = read_json(file).get("stale")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadData(f"{file} has no list of file names; delete {ready}")
    paths = [folder / str(name) for name in names]
    if not all(path.parent.resolve().is_relative_to(folder.resolve()) for path in paths):
        raise BadData(f"{file} names a file outside its folder; delete {ready}")
    return paths


def settle(folder: Path, last: str) -> None:
    """Finish an interrupted publication, or wait until its writer has finished.

    If no files are left to move, the folder is not written to: it may be read-only.

    Raises BadInput if files are left to move and the folder cannot be written, Busy if the writer
    takes longer than `READER_TIMEOUT_SECONDS`, BadData for files of another program.
    """
    end = time.monotonic() + READER_TIMEOUT_SECONDS
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
