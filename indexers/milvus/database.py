"""Databases of Milvus: the files of Milvus Lite, or a server.

Both are used through pymilvus's client, so that tests of one hold for the other where their
servers agree. This module has the differences: files, or an address and a token.
"""

import logging
import os
import shutil
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Any, ClassVar
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from retrieval.errors import BadData, BadInput
from retrieval.storage.files import LOCK, write_whole

URI, TOKEN = "MILVUS_URI", "MILVUS_TOKEN"
"""Environment variables."""

CONNECT_TIMEOUT_SECONDS = 5.0
LONG_REQUEST: dict[str, Any] = {"timeout": None, "retry_times": 5}
"""Options of requests whose time depends on the number of rows: no timeout, but few retries if the
server is unreachable."""

SCHEMES = ("http", "https", "tcp")

TEMPORARY_PREFIX = "retr-milvus-"  # prefix of temporary folders
NEW_FOLDER_SECONDS = 60.0  # a younger temporary folder may not have its lock yet

DATABASE = "milvus.db"
PATH_SEPARATOR = "+"  # in place of / in the names of saved files; Milvus Lite's names have no +
UNSAVED_FILES = ("LOCK", "manifest.json.prev")  # an older state is worse than none
IMMUTABLE_SUFFIXES = (".parquet", ".idx")  # Milvus Lite never changes such files
LOGGERS = ("pymilvus", "pymilvus.milvus_client", "pymilvus.bulk_writer", "milvus_lite")


class Database(ABC):
    """The database of a collection, which may not exist yet, and the client of the database."""

    timeout: ClassVar[float | None]
    """Maximum seconds of a request, except for long ones; None for no limit."""

    def __init__(self, collection: str, folder: Path | None, temporary: bool) -> None:
        """folder: for Milvus Lite's files. temporary: delete the folder with this object."""
        self.collection = collection
        self.folder = folder
        self.is_temporary = temporary
        self._open: dict[str, Any] = {}
        gone = folder if temporary else None
        self.close = weakref.finalize(self, _close, self._open, folder, gone)
        """Close the client, stop the engine, and delete a temporary folder. At exit, it is called
        if it was not before."""

    @cached_property
    def lite(self) -> bool:
        """True if the engine is Milvus Lite's, here or as a server."""
        with self.connected() as client:
            return str(client.get_server_version()).startswith("milvus_lite")

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the database in messages."""

    @property
    def client(self) -> Any:
        """The client, which connects on first use. Raises BadInput if it cannot connect."""
        if "client" not in self._open:
            self._open["client"] = self._new_client()
        return self._open["client"]

    @abstractmethod
    def _new_client(self) -> Any:
        """Return a new client."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files, besides the facts, that an index folder needs to load the collection."""

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Yield the client, and raise its errors as BadInput with a message of one line."""
        pymilvus = library()
        import grpc

        try:
            yield self.client
        except (pymilvus.MilvusException, grpc.RpcError) as problem:
            raise self._error_of(problem) from None

    def _error_of(self, problem: BaseException) -> BadInput:
        return BadInput(f"{self.name} failed: {reason_of(problem)}; build the index again")


class Lite(Database):
    """A database of Milvus Lite in a folder, whose engine runs in this process.

    Only one engine can have a folder open, and the engine writes files into it. So a saved index is
    opened in a temporary folder of links and copies, and its own folder does not change.
    """

    name = "Milvus Lite"
    timeout = None  # no other process slows the engine down

    def __init__(self, collection: str, folder: Path, temporary: bool = False) -> None:
        """Create the folder. Raises BadInput if Milvus Lite is not installed."""
        _check_lite()
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(collection, folder, temporary)
        self.path = folder / DATABASE

    @classmethod
    def temporary(cls, collection: str) -> "Lite":
        """Create a database in a temporary folder, which is deleted with the returned object.

        Temporary folders of killed processes are deleted now.
        """
        _check_lite()
        for left in Path(gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
            _delete_abandoned(left)
        database = cls(collection, Path(mkdtemp(prefix=TEMPORARY_PREFIX)), True)
        assert database.folder is not None
        # The system releases the lock when the process ends, even if it is killed.
        database._open["lock"] = _lock(database.folder)
        database._open["lock"].acquire()
        return database

    @classmethod
    def saved(cls, collection: str, folder: Path) -> "Lite":
        """Open the files of `save` in a temporary folder. Raises BadData for other files."""
        database = cls.temporary(collection)
        for file in files_in(folder):
            parts = file.name.split(PATH_SEPARATOR)
            if not {"", ".", ".."}.isdisjoint(parts) or parts[0] != DATABASE:
                raise BadData(f"{file} is not a file of Milvus Lite; build the index again")
            there = database.path.joinpath(*parts[1:])
            there.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in IMMUTABLE_SUFFIXES:
                there.symlink_to(file.resolve())
            else:
                shutil.copyfile(file, there)
        return database

    def save(self, folder: Path) -> None:
        """Copy the database's files into the folder, without subfolders; see PATH_SEPARATOR."""
        self.stop()  # to write everything; the next request starts it again
        for old in files_in(folder):
            old.unlink()
        for file in sorted(self.path.rglob("*")):
            if file.is_file() and file.name not in UNSAVED_FILES:
                name = PATH_SEPARATOR.join((DATABASE, *file.relative_to(self.path).parts))
                write_whole(folder / name, partial(_write_again, file, self.is_temporary))

    def stop(self) -> None:
        """Stop the engine, after it has written its data."""
        _close(self._open, self.folder, None)

    def _new_client(self) -> Any:
        pymilvus = library()
        no_proxy = {"grpc.enable_http_proxy": 0}  # the engine is on this machine
        try:
            client = pymilvus.MilvusClient(
                str(self.path),
                timeout=CONNECT_TIMEOUT_SECONDS,
                dedicated=True,
                grpc_options=no_proxy,
            )
            self._open["client"] = client
            if client.has_collection(self.collection) and client.list_indexes(self.collection):
                client.load_collection(self.collection)
        except pymilvus.MilvusException as problem:
            self.stop()
            raise self._error_of(problem) from None
        return client


class Server(Database):
    """A server or a cluster at an address. The token comes from the environment only.

    named_by_us: whether the user gave the address. An address in an index folder may be untrusted:
    it gets the token only if MILVUS_URI names the same address.
    """

    timeout = 30.0

    def __init__(self, collection: str, uri: str, named_by_us: bool) -> None:
        super().__init__(collection, None, False)
        self.uri = uri
        self.trusted = named_by_us or uri == os.environ.get(URI, "").rstrip("/")

    @property
    def name(self) -> str:
        return f"Milvus at {self.uri}"

    def save(self, folder: Path) -> None:
        """Delete files of Milvus Lite in the folder. The collection stays on the server."""
        for old in files_in(folder):
            old.unlink()

    def _new_client(self) -> Any:
        pymilvus = library()
        import grpc

        token = os.environ.get(TOKEN, "") if self.trusted else ""
        try:
            return pymilvus.MilvusClient(
                self.uri, token=token, timeout=CONNECT_TIMEOUT_SECONDS, dedicated=True
            )
        except (pymilvus.MilvusException, grpc.RpcError) as problem:
            raise self._error_of(problem) from None

    def _error_of(self, problem: BaseException) -> BadInput:
        import grpc

        chain = [problem, problem.__cause__, problem.__context__]
        codes = {each.code() for each in chain if isinstance(each, grpc.RpcError)}
        reason = reason_of(problem)
        low = reason.lower()
        status = grpc.StatusCode
        if (
            status.UNAUTHENTICATED in codes
            or "auth check failure" in low
            or "unauthenticated" in low
        ):
            if os.environ.get(TOKEN) and not self.trusted:
                return BadInput(
                    f"{self.name}, which the index folder names, requires a token; set {URI} to "
                    f"that address if it may get the token in {TOKEN}"
                )
            given = "rejects the token in" if os.environ.get(TOKEN) else "requires a token in"
            return BadInput(
                f"{self.name} {given} {TOKEN}; set it to USER:PASSWORD, or to an API key"
            )
        if status.PERMISSION_DENIED in codes or "permission deny" in low:
            return BadInput(
                f"{self.name} denies permission to the owner of the token ({reason}); "
                f"set {TOKEN} to another token"
            )
        unreachable = codes & {status.UNAVAILABLE, status.DEADLINE_EXCEEDED}
        if unreachable or "fail connecting" in low or "retry timeout" in low:
            return BadInput(
                f"{self.name} does not answer; start it, or correct the address in {URI} or "
                "--set uri="
            )
        return BadInput(f"{self.name} raised an error: {reason}; see the server's log")


def checked_uri(uri: str) -> str:
    """Return the address of a server. Raises BadInput if it is invalid or has a password."""
    try:
        parts = urlsplit(uri)
        good = parts.scheme in SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # the port is not a number
        good = False
    if not good:
        shown = uri.rpartition("@")[2]
        raise BadInput(f"invalid address '{shown}' of Milvus; give it as http://HOST:19530")
    if parts.username is not None or parts.query or parts.fragment:
        raise BadInput(
            f"the address of Milvus at {parts.hostname} has more than host, port and database; "
            f"leave out the rest, and set {TOKEN} to USER:PASSWORD"
        )
    return uri.rstrip("/")


def library() -> Any:
    """Import pymilvus, without its output on stderr. Raises BadInput if it is not installed."""
    if find_spec("pymilvus") is None:
        raise BadInput("the backend milvus requires pymilvus; pip install 'retr[milvus]'")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C code writes to stderr directly
    import pymilvus

    for name in LOGGERS:
        logger = logging.getLogger(name)
        # The library raises all that it logs. Add a handler to the root logger to see its log.
        logger.handlers = [logging.NullHandler()]
        logger.propagate = True
    return pymilvus


def _check_lite() -> None:
    if find_spec("milvus_lite") is None:
        raise BadInput(
            "the backend milvus without a server requires Milvus Lite; "
            f"pip install --no-deps milvus-lite, or name a server in {URI}"
        )


def files_in(folder: Path) -> list[Path]:
    """Return the files of Milvus Lite in an index folder."""
    return sorted(folder.glob(f"{DATABASE}{PATH_SEPARATOR}*"))


def reason_of(problem: BaseException) -> str:
    """Return the library's message in one line, without the token."""
    said = getattr(problem, "message", None) or getattr(problem, "details", lambda: None)()
    reason = " ".join(str(said or problem).split())
    token = os.environ.get(TOKEN)
    return reason.replace(token, "…") if token else reason


def _write_again(file: Path, stays: bool, to: Path) -> None:
    """Copy the file, or link an immutable file. stays: the file stays, so that links are unsafe."""
    if file.suffix in IMMUTABLE_SUFFIXES and not stays:
        with suppress(OSError):  # a link to another disk fails
            os.link(file, to)
            return
    shutil.copyfile(file, to)


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / LOCK, timeout=0, thread_local=False)


def _delete_abandoned(folder: Path) -> None:
    """Delete the temporary folder if no process has its lock, and it is not new."""
    with suppress(OSError, Timeout):
        if time.time() - folder.stat().st_mtime > NEW_FOLDER_SECONDS:
            with _lock(folder):
                shutil.rmtree(folder)


def _close(opened: dict[str, Any], folder: Path | None, gone: Path | None) -> None:
    client = opened.pop("client", None)
    if client is not None:
        client.close()
        if folder is not None:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(str(folder / DATABASE))
    if gone is not None:
        shutil.rmtree(gone, ignore_errors=True)
        if "lock" in opened:
            opened.pop("lock").release()
