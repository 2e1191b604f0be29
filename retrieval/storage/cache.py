"""Files of indices in stores, kept on this machine: libraries read files, and read them again."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from retrieval.errors import BadData
from retrieval.storage.files import made_folder, sha256_of, user_cache
from retrieval.storage.places import RemotePath

CACHE_BYTES_VARIABLE = "RETR_CACHE_BYTES"
DEFAULT_CACHE_BYTES = 50 * 10**9  # bytes that are kept


def fetched(home: RemotePath, files: Mapping[str, str], remedy: str) -> Path:
    """Return a folder on this machine with these files (name to sha256) of the store's folder.

    What is here already is not fetched again. Of what other calls have fetched, the folders that
    were not used for longest are deleted, so that all together keep to RETR_CACHE_BYTES.

    Raises BadData, with the remedy, for a file that is missing or not the one that was written.
    """
    cache = user_cache() / "indices"
    listed = "".join(f"{name} {sha256}\n" for name, sha256 in sorted(files.items()))
    folder = made_folder(cache / hashlib.sha256(listed.encode()).hexdigest()[:32])
    os.utime(folder)
    for name, sha256 in files.items():
        here = folder / name
        if not here.is_file() or sha256_of(here) != sha256:
            _fetch(home / name, here, sha256, remedy)
    _make_room(cache, folder)
    return folder


def _fetch(there: RemotePath, here: Path, sha256: str, remedy: str) -> None:
    # Others may fetch the same at the same time.
    partial = here.with_name(f"{here.name}.{uuid4().hex}")
    try:
        there.download(partial)
        if sha256_of(partial) != sha256:
            raise BadData(f"{there} is damaged: checksum mismatch; {remedy}")
        partial.replace(here)
    except FileNotFoundError:
        raise BadData(f"{there} is missing; {remedy}") from None
    finally:
        partial.unlink(missing_ok=True)


def _make_room(cache: Path, kept: Path) -> None:
    """Delete the folders that were not used for longest, until the others have room."""
    limit = os.environ.get(CACHE_BYTES_VARIABLE, "")
    room = (int(limit) if limit.isdecimal() else DEFAULT_CACHE_BYTES) - _size(kept)
    others = [folder for folder in cache.iterdir() if folder.is_dir() and folder != kept]
    for folder in sorted(others, key=lambda each: each.stat().st_mtime, reverse=True):
        room -= _size(folder)
        if room < 0:
            shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
