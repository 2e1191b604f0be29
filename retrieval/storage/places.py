"""Local paths, and paths in object stores by their URL.

`RemotePath` has the methods of `pathlib.Path` that retr needs, over fsspec: `s3://bucket/photos`,
`gs://`, `hf://datasets/…`, and every other protocol of fsspec. Network errors are retried with
growing pauses, then reported in one line. The first contact with a store, with all its retries,
may take `FIRST_CONTACT_SECONDS`.

Stores have no rename. `retr` writes file by file, and the file that names the others last. Each
file is written completely or not at all if the store's own writes are atomic (S3, Google's,
Azure's, the hub's).
"""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePath
from typing import IO, Any, TypeVar, cast

from retrieval.errors import BadInput, Unreachable
from retrieval.values import shown

FIRST_CONTACT_SECONDS = 9.0
RETRY_PAUSES_SECONDS = (0.3, 1.0, 2.0, 4.0, 8.0)
PIP_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
}  # extras of retr that install a store's library
READ_AHEAD_BYTES = 4 << 20  # for files that are read piece by piece

_OPTIONS: dict[str, dict[str, Any]] = {
    # s3fs tries five times itself.
    "s3": {
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 30,
            "retries": {"total_max_attempts": 1},
        }
    },
}
_OPTIONS["s3a"] = _OPTIONS["s3"]
_FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "checksum", "content_md5")
_CHANGED = ("LastModified", "last_modified", "mtime", "updated", "created")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RemoteStat:
    """Facts that a store reports about a file.

    st_size: bytes. version: the store's hash of the content, else the time of the last change.
    """

    st_size: int
    version: str


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A file or folder in a store.

    All methods raise Unreachable if the store cannot be reached or denies access. Methods that read
    raise FileNotFoundError.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | PurePath) -> "RemotePath":
        # The path in a chain such as zip://folder::s3://bucket/a.zip is its first part.
        head, chain, rest = self.url.partition("::")
        between = "" if head.endswith("/") else "/"
        below = name.as_posix() if isinstance(name, PurePath) else name
        return RemotePath(f"{head}{between}{below}{chain}{rest}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.partition("::")[0].rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """The folder that contains it."""
        head, chain, rest = self.url.partition("::")
        above = head.rpartition("/")[0]
        return RemotePath(f"{above}{'/' if above.endswith(':/') else ''}{chain}{rest}")

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        """The suffix of the name, with its dot."""
        return Path(self.name).suffix

    def resolve(self) -> "RemotePath":
        """Itself: there are no relative URLs."""
        return self

    def exists(self) -> bool:
        """Return whether a file or a folder exists."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Return whether a file exists."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Return whether a folder exists: in most stores, any file below it."""
        return self._kind() == "directory"

    def stat(self) -> RemoteStat:
        """Size and version of a file."""
        return _stat(self._do(lambda store, path: store.info(path)))

    def read_bytes(self) -> bytes:
        """Return the content of the file."""
        return cast(bytes, self._do(lambda store, path: store.cat_file(path)))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content of the file, decoded."""
        return self.read_bytes().decode(encoding)

    @contextmanager
    def open(self, mode: str = "rb") -> Iterator[IO[bytes]]:
        """Yield the file, open for reading piece by piece."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: only rb; files are written by `upload`")
        file = self._do(lambda store, path: store.open(path, "rb", block_size=READ_AHEAD_BYTES))
        with file, _said(self.url):
            yield file

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yield the entries of the folder; nothing if it does not exist."""
        try:
            found = self._do(lambda store, path: store.ls(path, detail=False))
        except FileNotFoundError:
            return
        names = {str(each).rstrip("/").rpartition("/")[2] for each in found}
        yield from (self / name for name in sorted(names - {"", self.name}))

    def find(self) -> dict[str, RemoteStat]:
        """Return all files below the folder, by their paths relative to it."""

        def find(store: Any, path: str) -> dict[str, RemoteStat]:
            found = store.find(path, detail=True)
            below = len(path.rstrip("/")) + 1 if path.strip("/") else 0
            return {name[below:].lstrip("/"): _stat(facts) for name, facts in found.items()}

        return self._do(find)

    def read_all(self, names: list[str]) -> list[bytes | Exception]:
        """Return the contents of these files below the folder, fetched in parallel.

        A file that is missing or not readable gives its error instead.
        """

        def fetch(store: Any, path: str) -> list[bytes | Exception]:
            root = path.rstrip("/")
            paths = [f"{root}/{name}" if root else name for name in names]
            found = store.cat(paths, on_error="return")
            contents = [found[store._strip_protocol(each)] for each in paths]
            for content in contents:
                if isinstance(content, Exception) and not _is_final(content):
                    raise content
            return contents

        return self._do(fetch) if names else []

    def upload(self, file: Path) -> None:
        """Write the content of a local file to this file."""
        self._do(lambda store, path: store.put_file(str(file), path))

    def download(self, file: Path) -> None:
        """Write the content to a local file."""
        self._do(lambda store, path: store.get_file(path, str(file)))

    def touch(self) -> None:
        """Write an empty file."""
        self._do(lambda store, path: store.pipe_file(path, b""))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder of a store exists as soon as it has a file."""

    def absolute(self) -> "RemotePath":
        """Itself: there are no relative URLs."""
        return self

    def replace(self, target: "RemotePath") -> None:
        """Copy the content to the target, then delete this file. Not atomic."""
        _, there = _opened(target.url)
        self._do(lambda store, path: store.mv(path, there))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file."""
        try:
            self._do(lambda store, path: store.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self) -> None:
        """Delete the file, or the folder and everything in it."""
        self._do(lambda store, path: store.rm(path, recursive=True))

    def _kind(self) -> str | None:
        try:
            return str(self._do(lambda store, path: store.info(path))["type"])
        except FileNotFoundError:
            return None

    def _do(self, call: Callable[[Any, str], _T]) -> _T:
        """Return `call(store, path in it)`, with retries if the store or the network fails."""
        _contact(self.url)
        return _tried(self.url, call, RETRY_PAUSES_SECONDS)


Place = Path | RemotePath
"""Path of a file or folder, local or in a store."""


def place_of(spec: str | PathLike[str] | Place) -> Place:
    """Return the place with this name: a local path, or a URL of a store.

    Raises BadInput for a value that is neither text nor a path.
    """
    if isinstance(spec, RemotePath):
        return spec
    if not isinstance(spec, str | PathLike):
        raise BadInput(f"the folder is {shown(spec)}; give a path or a URL")
    text = str(spec)
    if "://" not in text:
        return Path(spec)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return RemotePath(text if text.endswith("://") else text.rstrip("/"))


_reached: set[tuple[str, ...]] = set()


def _contact(url: str) -> None:
    """Reach the bucket or host once, within `FIRST_CONTACT_SECONDS`. Raises Unreachable."""
    protocol, _, path = url.rpartition("::")[2].partition("://")
    root = (protocol, path.partition("/")[0])
    if root in _reached:
        return
    outcome: list[Exception | None] = []

    def reach() -> None:
        try:
            _tried(url, lambda store, path: store.info(path), RETRY_PAUSES_SECONDS[:2])
        except FileNotFoundError:
            outcome.append(None)  # the store itself answered this
        except Exception as error:
            outcome.append(error)
        else:
            outcome.append(None)

    # A daemon thread, so that the program can end while a store does not answer.
    thread = threading.Thread(target=reach, daemon=True)
    thread.start()
    thread.join(FIRST_CONTACT_SECONDS)
    if not outcome:
        raise Unreachable(f"{url} did not answer within {FIRST_CONTACT_SECONDS:.0f} s; {_REMEDY}")
    if outcome[0] is not None:
        raise outcome[0]
    _reached.add(root)


_REMEDY = "check its address and the network, and run the same command again"


def _tried(url: str, call: Callable[[Any, str], _T], pauses: tuple[float, ...]) -> _T:
    store, path = _opened(url)
    for pause in (*pauses, None):
        try:
            with _said(url):
                return call(store, path)
        except Unreachable as error:
            if pause is None or not error.may_pass:
                raise
            time.sleep(pause)
    raise AssertionError("the last try did not raise")


def _opened(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        # A cached listing would hide files that others write meanwhile.
        options = {"use_listings_cache": False, **_OPTIONS.get(protocol, {})}
        if "::" in url:  # each part has options
            options = {protocol: options}
        store, path = url_to_fs(url, **options)
    except ImportError as error:
        extra = PIP_EXTRAS.get(protocol)
        remedy = f"pip install 'retr[{extra}]'" if extra else "install it"
        raise BadInput(f"{protocol}:// needs a library: {error}; {remedy}") from None
    except ValueError as error:
        raise _unusable(url, error) from None
    return store, str(path)


@contextmanager
def _said(url: str) -> Iterator[None]:
    """Convert errors of the stores' libraries to Unreachable and BadInput."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        said = _meaning(url, error)
        if said is None:
            raise
        raise said from error


def _meaning(url: str, error: Exception) -> BadInput | None:
    """Return the error about the store; None for one about a single file, or about our own code."""
    if "bucket does not exist" in str(error):
        return Unreachable(
            f"the bucket of {url} does not exist; create it, or correct the URL", False
        )
    if isinstance(error, _FINAL):
        cause = error.__cause__  # fsspec wraps the error of an unknown host
        return _unreachable(url, cause) if "Connect" in type(cause).__name__ else None
    if isinstance(error, PermissionError) or _is_forbidden(error):
        remedy = "set credentials in the environment or the files that its library reads"
        return Unreachable(f"no access to {url}: {_words(error)}; {remedy}", may_pass=False)
    if isinstance(error, ValueError):
        return _unusable(url, error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None  # an error of the local disk
    return _unreachable(url, error) if _is_of_the_way(error) else None


def _unreachable(url: str, error: BaseException | None) -> Unreachable:
    return Unreachable(f"cannot reach {url}: {_words(error)}; {_REMEDY}")


def _unusable(url: str, error: Exception) -> BadInput:
    return BadInput(f"cannot use {url} ({_words(error)}); give a URL that fsspec supports")


def _is_forbidden(error: Exception) -> bool:
    """Return whether credentials are missing or wrong, by the class of the library's error."""
    name = type(error).__name__
    return "Credential" in name or "Unauthorized" in name or "Token" in name


def _is_final(error: Exception) -> bool:
    """Return whether the error is about a single file."""
    return isinstance(error, (*_FINAL, PermissionError))


def _is_of_the_way(error: BaseException) -> bool:
    """Return whether the store or the network failed, not our own code."""
    root = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | TimeoutError) or root in {
        "aiohttp",
        "botocore",
        "fsspec",
        "gcsfs",
        "google",
        "httpcore2",
        "httpx",
        "httpx2",
        "huggingface_hub",
        "requests",
        "urllib3",
        "azure",
    }


def _words(error: BaseException | None) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _stat(facts: dict[str, Any]) -> RemoteStat:
    for names in (_VERSIONS, _CHANGED):
        for name in names:
            if facts.get(name):
                return RemoteStat(int(facts["size"] or 0), str(facts[name]).strip('"'))
    return RemoteStat(int(facts.get("size") or 0), "")
