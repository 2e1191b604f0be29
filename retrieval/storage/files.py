"""Files that are whole or not there: hashing, and writing by temporary name and rename.

What is in a store is written here first, in a temporary folder, and uploaded.
"""

import csv
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast
from uuid import uuid4

from retrieval.contracts import Json
from retrieval.errors import BadData, BadInput, Busy
from retrieval.storage.leases import lease_on, leased
from retrieval.storage.names import escaped
from retrieval.storage.places import Place, RemotePath

_Place = TypeVar("_Place", bound=Place)

LOCK = ".lock"
CHECKSUM = "checksum"
PARTIAL = ".partial"  # the suffix of a file or folder that is still being written


def sha256_of(path: Place) -> str:
    """Return the sha256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def write_whole(path: Place, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary name beside `path`, flush it to disk, rename it to `path`.

    Whoever opens `path` finds the old content or the new, also after a crash.
    """
    if isinstance(path, RemotePath):
        with TemporaryDirectory(prefix="retr-") as folder:
            here = Path(folder) / path.name
            write(here)
            _send(here, path)
        return
    partial = path.with_name(path.name + PARTIAL)
    if partial.is_symlink():  # not ours: its target would be overwritten
        partial.unlink()
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _send(here: Path, path: RemotePath) -> None:
    """Write the local file to the store. Raises Busy if another machine has taken the folder."""
    lease = lease_on(path.parent)
    if lease is not None:
        lease.renew()
    if lease is not None and path.name in lease.seen:
        lease.write(path, here.read_bytes())
    else:
        path.upload(here)


@contextmanager
def native_path(path: Path) -> Iterator[str]:
    """Yield a path for a library that takes only UTF-8, even if its names are not UTF-8.

    Of a file that is yet to be written, only its folders' names may be so.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        is_there = path.exists()
        opened = os.open(path if is_there else path.parent, os.O_PATH)
        try:
            yield f"/proc/self/fd/{opened}" + ("" if is_there else f"/{path.name}")
        finally:
            os.close(opened)
    else:
        yield str(path)


def write_csv(
    path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()
) -> None:
    """Write the rows as CSV, whole or not at all: a column for each key that any of them has.

    columns: the first columns, also of a file without rows.
    """

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            names = dict.fromkeys([*columns, *(key for row in rows for key in row)])
            table = csv.DictWriter(file, [*names])
            table.writeheader()
            table.writerows(rows)

    write_whole(path, write)


def sync_folder(folder: Path) -> None:
    """Flush the folder's own entries (the names of its files) to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Place, document: Json) -> None:
    """Write the document with sorted keys, whole or not at all."""
    text = escaped(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Place) -> dict[str, Json]:
    """Return the JSON object in the file. Raises BadData if it is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:  # nested too deep for the parser
        raise BadData(f"cannot read {path} ({error}); write it again") from None
    if not isinstance(document, dict):
        raise BadData(f"{path} does not hold a JSON object; write it again")
    return cast(dict[str, Json], document)


def write_sealed(path: Place, wanted: str, version: int, content: Mapping[str, Any]) -> None:
    """Write a document of this format with a checksum, whole or not at all."""
    write_json(path, sealed({"format": wanted, "version": version, **content}))


def read_sealed(path: Place, wanted: str, version: int, remedy: str) -> dict[str, Any]:
    """Return the document that `write_sealed` wrote, without its checksum.

    Version 1 of each format has no checksum.

    Raises BadData for another format, a newer version, or a document that was changed.
    """
    document = read_json(path)
    check_format(document, wanted, version, path)
    return document if document["version"] == 1 else check_seal(document, path, remedy)


def sealed(document: Mapping[str, Json]) -> dict[str, Json]:
    """Return the document with a checksum of its content, so that changes are detected."""
    return {**document, CHECKSUM: _checksum(document)}


def check_seal(document: Mapping[str, Any], where: Place, remedy: str) -> dict[str, Any]:
    """Return the document without its checksum. Raises BadData for a checksum mismatch."""
    if document.get(CHECKSUM) != _checksum(document):
        raise BadData(f"{where} is damaged: checksum mismatch; {remedy}")
    return {key: value for key, value in document.items() if key != CHECKSUM}


def _checksum(document: Mapping[str, Any]) -> str:
    said = {key: value for key, value in document.items() if key != CHECKSUM}
    text = json.dumps(said, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_format(document: Mapping[str, Any], wanted: str, version: int, where: Place) -> None:
    """Raise BadData unless the document is of the wanted format, in a version known here."""
    if document.get("format") != wanted:
        raise BadData(f"{where} is not of the format {wanted}; name another folder")
    met = document.get("version")
    if not isinstance(met, int) or met < 1:
        raise BadData(f"{where} has no version; write it again")
    if met > version:
        raise BadData(
            f"{where} has version {met} of {wanted}, this retr reads up to {version}; "
            "use a newer retr"
        )


def user_cache() -> Path:
    """Return the folder for data that can be downloaded or computed again. It may not exist."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "retr"


def made_folder(folder: _Place) -> _Place:
    """Return the folder, created if it is missing. Raises BadInput if that fails.

    A store has no folders to make: a file is written there and deleted, as what cannot be written
    must be known before the work.
    """
    if isinstance(folder, RemotePath):
        probe = folder / f".{uuid4().hex}{PARTIAL}"
        probe.touch()
        probe.unlink(missing_ok=True)
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise BadInput(f"{folder} is a file; name a folder") from None
    except NotADirectoryError:
        raise BadInput(f"a parent of {folder} is a file; name another folder") from None
    except OSError as error:
        raise _not_writable(folder, error) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"cannot write into {folder}; name another folder or change its permissions")
    return folder


def check_free(folder: Place, owner: str, is_leftover: Callable[[str], bool]) -> None:
    """Raise BadInput if the folder holds files that retr did not write.

    owner: the name of the file that marks the folder as written by retr.
    is_leftover: whether an interrupted run, which wrote no `owner` yet, leaves a file of this name.
        The lock and files that end in PARTIAL always count as such.
    """
    if not folder.is_dir() or (folder / owner).exists() or (folder / PARTIAL).is_dir():
        return
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.name != LOCK and not path.name.endswith(PARTIAL) and not is_leftover(path.name)
    )
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise BadInput(
            f"{folder} holds other files ({others[0]}{more}); name an empty or new folder with "
            "--out"
        )


def moved(path: Place, target: Place) -> None:
    """Move a file to `target`, in the same file system or store, whole or not at all."""
    if isinstance(path, RemotePath):
        path.replace(cast(RemotePath, target))
        return
    path.replace(cast(Path, target))
    sync_folder(cast(Path, target).parent)


def remove(path: Place) -> None:
    """Delete the file, or the folder and all in it."""
    if isinstance(path, RemotePath):
        path.remove()
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def locked(folder: Place) -> Iterator[None]:
    """Hold the folder against a second writer. Raises Busy if there is one.

    The operating system lets go of the lock when the process ends, however it ends. A folder in a
    store is held against other machines by a lease, if the store has conditional writes.
    """
    from filelock import FileLock, Timeout  # slow to import, and only those who write need it

    lock = FileLock(_lock_of(folder), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(
            f"another process is writing into {folder}; wait for it or name another folder"
        ) from None
    except OSError as error:
        raise _not_writable(folder, error) from None
    try:
        if isinstance(folder, RemotePath):
            with leased(folder, folder / LOCK, _machine()):
                yield
        else:
            yield
    finally:
        lock.release()


def _machine() -> str:
    """Return the id of this machine: of the folder of its locks."""
    path = user_cache() / "locks" / "machine"
    if not path.exists():
        made = path.with_name(uuid4().hex)
        made.write_text(made.name)
        with suppress(FileExistsError):  # another process was faster
            os.link(made, path)
        made.unlink()
    return path.read_text()


def _lock_of(folder: Place) -> Path:
    if isinstance(folder, Path):
        return folder / LOCK
    locks = user_cache() / "locks"
    made_folder(locks)
    return locks / hashlib.sha256(str(folder).encode()).hexdigest()


def _not_writable(folder: Place, error: OSError) -> BadInput:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return BadInput(
            f"cannot write into {folder}; name another folder or change its permissions"
        )
    return BadInput(f"cannot write into {folder} ({error.strerror}); name another folder")
