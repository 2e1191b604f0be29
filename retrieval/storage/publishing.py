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

from retrieval.errors import BadInput, Busy
from retrieval.storage.files import PARTIAL, locked, sync_folder

READY = f".ready{PARTIAL}"
STALE = "stale.json"  # beside the new files: the names of those to delete
PATIENCE = 5.0  # seconds that a reader waits for a writer to move some files


def publish(new: Path, folder: Path, last: str, stale: Iterable[str]) -> None:
    """Make the files in `new`, a folder inside `folder`, the folder's, and delete the stale ones.

    The caller holds the folder's lock, and finds `new` gone.
    """
    (new / STALE).write_text(json.dumps(sorted(stale)))
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
    stale = ready / STALE
    for path in ready.iterdir():
        if path.name not in (last, STALE):
            path.replace(folder / path.name)
    sync_folder(folder)
    if (ready / last).exists():
        (ready / last).replace(folder / last)
        sync_folder(folder)
    if stale.exists():
        for name in json.loads(stale.read_text()):
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(ready)


def settle(folder: Path, last: str) -> None:
    """Finish what a writer that was killed has left ready, or wait for one that lives to do it.

    Does nothing where we may not write.
    """
    end = time.monotonic() + PATIENCE
    while (folder / READY).is_dir() and time.monotonic() < end:
        try:
            with locked(folder):
                finish(folder, last)
        except Busy:
            time.sleep(0.02)
        except BadInput:
            return
