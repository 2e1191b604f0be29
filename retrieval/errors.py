"""Errors that retr raises.

RetrError                     a failure at run time: exit code 1
├── CannotExport              a network that cannot be written as ONNX
├── WorkerFailed              a worker of a cluster that failed, or died repeatedly
└── BadInput                  input that cannot be used: exit code 2
    ├── UnknownName           no encoder, backend, option, split of this name
    ├── BadImage              an image that cannot be read
    ├── CannotWrite           a file that cannot be written where it was asked for
    ├── BadSource             a source of images that is missing or not understood
    ├── BadData               a shard, manifest or index that is damaged
    ├── TakesNoWords          an encoder that embeds images only, and a text
    ├── Mismatch              two things that do not belong together: encoder, dimension, metric
    ├── Unreachable           a store or cluster that does not answer or denies access
    ├── NoCluster             a cluster that is unreachable, or lacks resources for the work
    └── Busy                  another process writes here

Messages are one line of two halves: what is wrong, with its numbers; then what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

MAX_LISTED_NAMES = 200  # in a message; comparing thousands of names takes seconds


class RetrError(Exception):
    """The root of all."""

    exit_code = 1

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the error by its attributes, whatever arguments `__init__` takes."""
        return _remade, (type(self), self.args, self.__dict__)


def _remade(kind: type[RetrError], args: tuple[object, ...], state: dict[str, object]) -> RetrError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class CannotExport(RetrError):
    """A network that cannot be written as ONNX, or that would then give other embeddings."""


class WorkerFailed(RetrError):
    """A worker of a cluster failed with an unexpected error, or its process died too often."""


class Lost(WorkerFailed):
    """A worker, or its node, that ended or does not answer. Another one may do its work."""


class BadInput(RetrError):
    """The input cannot be used."""

    exit_code = 2


class UnknownName(BadInput):
    """An unknown name; the message lists the known names and suggests the nearest."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        shown = " ".join(str(name).split())
        near = get_close_matches(shown, names[:MAX_LISTED_NAMES], n=1, cutoff=0.5)
        guess = f"did you mean '{near[0]}'? " if near else ""
        there_are = ", ".join(names[:MAX_LISTED_NAMES]) if names else "none"
        if len(names) > MAX_LISTED_NAMES:
            there_are += f" and {len(names) - MAX_LISTED_NAMES:,} more"
        super().__init__(f"unknown {kind} '{shown}'; {guess}there are: {there_are}")


class BadImage(BadInput):
    """An image that cannot be read. `reason` is the message without the image's name."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.path = path
        self.reason = reason


class CannotWrite(BadInput):
    """An output file that cannot be written. strerror: the system's reason."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"cannot write {path} ({error.strerror}); name another file")
        self.strerror = error.strerror


class BadSource(BadInput):
    """A source of images that is not there or not understood."""


class BadData(BadInput):
    """A file of retr that is damaged, incomplete or not as its manifest says."""


class TakesNoWords(BadInput):
    """A text was to be embedded by an encoder that embeds images only."""


class Mismatch(BadInput):
    """Inputs that do not belong together, such as an index and other embeddings."""


class NoCluster(BadInput):
    """The Ray cluster is unreachable, or lacks the resources for the work."""


class Busy(BadInput):
    """Another process holds the folder."""


class Unreachable(BadInput):
    """A store, server or cluster that does not answer or denies access.

    may_pass: whether a retry may succeed.
    """

    def __init__(self, message: str, may_pass: bool = True) -> None:
        super().__init__(message)
        self.may_pass = may_pass
