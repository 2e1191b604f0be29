"""Fetches files into a folder: each appears there whole and with the right checksum, or not."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from retrieval.errors import BadSource

_TIMEOUT = 30  # seconds without a byte
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Official:
    """Official download of a data set: a base address, and its files with their MD5."""

    base: str
    files: Mapping[str, str]


def download(official: Official, folder: Path) -> None:
    """Fetch the files that `folder` lacks, with a progress bar on stderr if it is a terminal.

    Raises BadSource if a file cannot be fetched or has another checksum; `folder` then holds
    the files that came before it, and nothing of this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, md5 in official.files.items():
        if not (folder / name).exists():
            _fetch(f"{official.base.rstrip('/')}/{name}", folder / name, md5)


def _fetch(url: str, target: Path, md5: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    temporary = Path(name)
    total = hashlib.md5(usedforsecurity=False)
    try:
        with os.fdopen(handle, "wb") as file:
            for block in _blocks(url):
                total.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if total.hexdigest() != md5:
            raise BadSource(f"{url} has an MD5 mismatch: {total.hexdigest()}, not {md5}; try again")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _blocks(url: str) -> Iterator[bytes]:
    # Slow to import, and of no use to most commands.
    from http.client import HTTPException
    from urllib.request import urlopen

    from tqdm import tqdm

    try:
        with urlopen(url, timeout=_TIMEOUT) as response:
            size = int(response.headers.get("Content-Length", 0)) or None
            name = url.rpartition("/")[2]
            # disable=None: no bar unless stderr is a terminal
            with tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=None) as bar:
                while block := response.read(_BLOCK):
                    yield block
                    bar.update(len(block))
    except (OSError, HTTPException) as error:
        raise BadSource(f"cannot fetch {url}: {error}; check the network") from error
