"""Hold a folder of a store against writers on other machines.

The holder creates the file `.lock` with a condition, and renews it with its next number. A second
writer is told at the start if the file changes within `LEASE_SECONDS` of the writer's own clock, so
no two clocks are compared. Otherwise the holder is gone, and the second writer replaces the file.

A holder that was suspended longer than that may still write. Therefore the file that names the
others (`COMMITS`) is written on condition that it is as the holder last saw or wrote it.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from uuid import uuid4

from retrieval.errors import Busy, Unreachable
from retrieval.storage.conditional import Answer, takes_conditions, version_of, write_if
from retrieval.storage.places import RemotePath

COMMITS = ("manifest.json", "index.json")
LEASE_SECONDS = 60.0
RENEWAL_SECONDS = 15.0
POLL_SECONDS = 1.0


@dataclass(slots=True)
class Lease:
    """A folder of a store that this process holds.

    machine: id of this machine. seen: versions of the files of `COMMITS`.
    """

    folder: RemotePath
    file: RemotePath
    machine: str
    version: str | None = None
    seen: dict[str, str | None] = field(default_factory=dict)
    number: int = 0
    writer: str = field(default_factory=lambda: uuid4().hex)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self) -> bool:
        """Take the lease; return False if the store takes no conditions.

        Raises Busy if another machine holds the folder.
        """
        before = version_of(self.file)
        if before is not None and self._holder() != self.machine:
            self._wait(before)
        answer = write_if(self.file, self._content(), before)
        if answer is Answer.UNSUPPORTED:
            return False
        if isinstance(answer, Answer):
            raise self.busy()
        renewed = write_if(self.file, self._content(), answer)
        if renewed is Answer.UNSUPPORTED:  # some servers know If-None-Match alone
            self.file.unlink(missing_ok=True)
            return False
        if isinstance(renewed, Answer):
            raise self.busy()
        self.version = renewed
        self.seen = {name: version_of(self.folder / name) for name in COMMITS}
        return True

    def renew(self) -> None:
        """Renew the lease. Raises Busy if another machine has taken the folder."""
        with self.guard:
            answer = write_if(self.file, self._content(), self.version)
            if isinstance(answer, Answer):
                raise self.busy()
            self.version = answer

    def write(self, place: RemotePath, content: bytes) -> None:
        """Write a file of `COMMITS`. Raises Busy if another machine has written it meanwhile."""
        answer = write_if(place, content, self.seen[place.name])
        if isinstance(answer, Answer):
            raise self.busy()
        self.seen[place.name] = answer

    def release(self) -> None:
        """Delete the file, unless another machine has replaced it."""
        with self.guard, suppress(Unreachable):
            if version_of(self.file) == self.version:
                self.file.unlink(missing_ok=True)

    def busy(self) -> Busy:
        """Return the error for the writer that is told."""
        return Busy(
            f"another machine is writing into {self.folder}; wait for it or name another folder"
        )

    def _content(self) -> bytes:
        self.number += 1
        said = {"machine": self.machine, "writer": self.writer, "number": self.number}
        return json.dumps(said).encode()

    def _holder(self) -> str | None:
        try:
            return str(json.loads(self.file.read_bytes())["machine"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _wait(self, before: str) -> None:
        """Wait until the holder is known to be gone. Raises Busy if it renews the lease."""
        end = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            if version_of(self.file) != before:
                raise self.busy()


_held: dict[str, Lease] = {}


def lease_on(folder: RemotePath) -> Lease | None:
    """Return the lease of this process on the folder, if there is one."""
    return _held.get(str(folder))


@contextmanager
def leased(folder: RemotePath, file: RemotePath, machine: str) -> Iterator[None]:
    """Hold the folder against other machines, where the store takes conditions.

    file: the file of the lease. Raises Busy if another machine holds the folder.
    """
    lease = Lease(folder, file, machine)
    if not takes_conditions(folder) or not lease.acquire():
        yield
        return
    done = threading.Event()

    def keep() -> None:
        while not done.wait(RENEWAL_SECONDS):
            with suppress(Unreachable):
                try:
                    lease.renew()
                except Busy:
                    return  # the next write tells the user

    renewing = threading.Thread(target=keep, daemon=True)
    renewing.start()
    _held[str(folder)] = lease
    try:
        yield
    finally:
        del _held[str(folder)]
        done.set()
        renewing.join()
        lease.release()
