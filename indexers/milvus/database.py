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
"""The environment variables."""

CONNECTING = 5.0  # seconds until a server counts as unreachable
WORKING: dict[str, Any] = {"timeout": None, "retry_times": 5}
"""Of requests that take as long as there are rows; a server that is gone is not waited for."""

SCHEMES = ("http", "https", "tcp")

TEMPORARY = "retr-milvus-"  # folders among the system's temporary ones
JUST_MADE = 60.0  # seconds in which such a folder is not taken for one that was left behind

DATABASE = "milvus.db"
BETWEEN = "+"  # stands for / in the names of a database's files; Milvus Lite has none in its own
NOT_SAVED = ("LOCK", "manifest.json.prev")  # an older state is worse than none
NEVER_CHANGED = (".parquet", ".idx")  # by Milvus Lite, once they are written
LOGGERS = ("pymilvus", "pymilvus.milvus_client", "pymilvus.bulk_writer", "milvus_lite")


class Database(ABC):
    """A collection that may or may not be there yet, and the client that knows about it."""

    answering: ClassVar[float | None]
    """Seconds that another request may take; None for any number."""

    def __init__(self, collection: str, folder: Path | None, temporary: bool) -> None:
        """folder: of Milvus Lite's files, deleted with this object where it is temporary."""
        self.collection = collection
        self.folder = folder
        self.is_temporary = temporary
        self._open: dict[str, Any] = {}
        gone = folder if temporary else None
        self.close = weakref.finalize(self, _end, self._open, folder, gone)
        """Close the client, stop what runs, delete what is temporary; at exit at the latest."""

    @cached_property
    def lite(self) -> bool:
        """True if the engine is Milvus Lite's, here or as a server."""
        with self.asked() as client:
            return str(client.get_server_version()).startswith("milvus_lite")

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the database in messages."""

    @property
    def client(self) -> Any:
        """The client, opened when it is first asked for. Raises BadInput where that fails."""
        if "client" not in self._open:
            self._open["client"] = self._connected()
        return self._open["client"]

    @abstractmethod
    def _connected(self) -> Any:
        """Return a new client."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what must be in an index folder, beside the facts, to find all of it again."""

    @contextmanager
    def asked(self) -> Iterator[Any]:
        """Yield the client; what it raises meanwhile is raised as BadInput, in one line."""
        pymilvus = library()
        import grpc

        try:
            yield self.client
        except (pymilvus.MilvusException, grpc.RpcError) as problem:
            raise self._said(problem) from None

    def _said(self, problem: BaseException) -> BadInput:
        return BadInput(f"{self.name} failed: {reason_of(problem)}; build the index again")


class Lite(Database):
    """A database of Milvus Lite in a folder, whose engine runs in this process.

    The engine is the only one that may have the folder open, and leaves files of its own there: so
    a saved index is opened in a temporary folder of links and copies, and stays as it is.
    """

    name = "Milvus Lite"
    answering = None  # nobody else is in the way

    def __init__(self, collection: str, folder: Path, temporary: bool = False) -> None:
        """Raises BadInput where Milvus Lite is not installed."""
        _check_lite()
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(collection, folder, temporary)
        self.path = folder / DATABASE

    @classmethod
    def temporary(cls, collection: str) -> "Lite":
        """Return a new one, gone with this object; those of processes that were killed go now."""
        _check_lite()
        for left in Path(gettempdir()).glob(f"{TEMPORARY}*"):
            _sweep(left)
        database = cls(collection, Path(mkdtemp(prefix=TEMPORARY)), True)
        assert database.folder is not None
        # Let go of by the system when the process ends, however it ends.
        database._open["lock"] = _lock(database.folder)
        database._open["lock"].acquire()
        return database

    @classmethod
    def saved(cls, collection: str, folder: Path) -> "Lite":
        """Return the one that `save` wrote into the folder, opened beside it. Raises BadData."""
        database = cls.temporary(collection)
        for file in files_in(folder):
            parts = file.name.split(BETWEEN)
            if not {"", ".", ".."}.isdisjoint(parts) or parts[0] != DATABASE:
                raise BadData(f"{file} is no file of Milvus Lite's; build the index again")
            there = database.path.joinpath(*parts[1:])
            there.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in NEVER_CHANGED:
                there.symlink_to(file.resolve())
            else:
                shutil.copyfile(file, there)
        return database

    def save(self, folder: Path) -> None:
        """Write the database's files, as they are, under names of one folder."""
        self.stop()  # to write everything; the next request starts it again
        for old in files_in(folder):
            old.unlink()
        for file in sorted(self.path.rglob("*")):
            if file.is_file() and file.name not in NOT_SAVED:
                name = BETWEEN.join((DATABASE, *file.relative_to(self.path).parts))
                write_whole(folder / name, partial(_write_again, file, self.is_temporary))

    def stop(self) -> None:
        """Let the engine write what it holds, and end."""
        _end(self._open, self.folder, None)

    def _connected(self) -> Any:
        pymilvus = library()
        no_proxy = {"grpc.enable_http_proxy": 0}  # it listens on this machine alone
        try:
            client = pymilvus.MilvusClient(
                str(self.path), timeout=CONNECTING, dedicated=True, grpc_options=no_proxy
            )
            self._open["client"] = client
            if client.has_collection(self.collection) and client.list_indexes(self.collection):
                client.load_collection(self.collection)
        except pymilvus.MilvusException as problem:
            self.stop()
            raise self._said(problem) from None
        return client


class Server(Database):
    """A server or a cluster, under an address. The token comes from the environment alone.

    named_by_us: whether the user gave the address. An address in an index folder may be untrusted:
    it gets the token only if MILVUS_URI names the same address.
    """

    answering = 30.0

    def __init__(self, collection: str, uri: str, named_by_us: bool) -> None:
        super().__init__(collection, None, False)
        self.uri = uri
        self.trusted = named_by_us or uri == os.environ.get(URI, "").rstrip("/")

    @property
    def name(self) -> str:
        return f"Milvus at {self.uri}"

    def save(self, folder: Path) -> None:
        """Nothing but the facts: the collection stays where it is."""
        for old in files_in(folder):
            old.unlink()

    def _connected(self) -> Any:
        pymilvus = library()
        import grpc

        token = os.environ.get(TOKEN, "") if self.trusted else ""
        try:
            return pymilvus.MilvusClient(self.uri, token=token, timeout=CONNECTING, dedicated=True)
        except (pymilvus.MilvusException, grpc.RpcError) as problem:
            raise self._said(problem) from None

    def _said(self, problem: BaseException) -> BadInput:
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
                    f"{self.name}, which the index folder names, wants a token; set {URI} to that "
                    f"address if the token in {TOKEN} is meant for it"
                )
            given = "refuses the token in" if os.environ.get(TOKEN) else "wants a token in"
            return BadInput(
                f"{self.name} {given} {TOKEN}; set it to USER:PASSWORD, or to an API key"
            )
        if status.PERMISSION_DENIED in codes or "permission deny" in low:
            return BadInput(
                f"{self.name} does not allow this to the owner of the token ({reason}); "
                f"set {TOKEN} to that of another"
            )
        unreachable = codes & {status.UNAVAILABLE, status.DEADLINE_EXCEEDED}
        if unreachable or "fail connecting" in low or "retry timeout" in low:
            return BadInput(
                f"{self.name} does not answer; start it, or correct the address in {URI} or "
                "--set uri="
            )
        return BadInput(f"{self.name} refuses: {reason}; its log says more")


def checked_uri(uri: str) -> str:
    """Return the address of a server. Raises BadInput for what is none, or holds a password."""
    try:
        parts = urlsplit(uri)
        good = parts.scheme in SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # the port is not a number
        good = False
    if not good:
        shown = uri.rpartition("@")[2]
        raise BadInput(f"'{shown}' is no address of Milvus; give it as http://HOST:19530")
    if parts.username is not None or parts.query or parts.fragment:
        raise BadInput(
            f"the address of Milvus at {parts.hostname} holds more than host, port and database; "
            f"leave it away, and set {TOKEN} to USER:PASSWORD"
        )
    return uri.rstrip("/")


def library() -> Any:
    """pymilvus, its own lines on stderr silenced. Raises BadInput where it is not installed."""
    if find_spec("pymilvus") is None:
        raise BadInput("the backend milvus wants the library pymilvus; pip install 'retr[milvus]'")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core writes to stderr by itself
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
            "an index of the backend milvus without a server wants Milvus Lite; "
            f"pip install --no-deps milvus-lite, or name a server in {URI}"
        )


def files_in(folder: Path) -> list[Path]:
    """Return the files of Milvus Lite's in an index folder."""
    return sorted(folder.glob(f"{DATABASE}{BETWEEN}*"))


def reason_of(problem: BaseException) -> str:
    """Return the library's message in one line, without the token."""
    said = getattr(problem, "message", None) or getattr(problem, "details", lambda: None)()
    reason = " ".join(str(said or problem).split())
    token = os.environ.get(TOKEN)
    return reason.replace(token, "…") if token else reason


def _write_again(file: Path, stays: bool, to: Path) -> None:
    """Return the file once more: a second name for it, where the first does not stay."""
    if file.suffix in NEVER_CHANGED and not stays:
        with suppress(OSError):  # raised if they are on two disks
            os.link(file, to)
            return
    shutil.copyfile(file, to)


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / LOCK, timeout=0, thread_local=False)


def _sweep(folder: Path) -> None:
    """Delete the folder where no process holds it, and it is not just being made."""
    with suppress(OSError, Timeout):
        if time.time() - folder.stat().st_mtime > JUST_MADE:
            with _lock(folder):
                shutil.rmtree(folder)


def _end(opened: dict[str, Any], folder: Path | None, gone: Path | None) -> None:
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
