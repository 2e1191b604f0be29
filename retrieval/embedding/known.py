"""Encoders that were opened before, and can start from their exported network without torch.

Importing torch and reading weights takes seconds. So the user's cache remembers which fingerprint
an encoder's name stands for, with the size and time of each file that its weights and code came
from. If none of them has changed, the encoder's exported network is opened in its place.
docs/formats.md writes the file out.
"""

import hashlib
import importlib.util
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from retrieval.contracts import Encoder, FromFiles
from retrieval.embedding.onnx_cache import open_export
from retrieval.errors import BadData, BadInput
from retrieval.registry import encoder_module, open_encoder
from retrieval.storage.document import read_document
from retrieval.storage.files import made_folder, user_cache, write_sealed

FORMAT = "retr-known-encoder"
VERSION = 2  # a version 1 has no checksum, see `read_sealed`
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows' own Linux


@dataclass(frozen=True, slots=True)
class FileState:
    """A file, with what tells whether it has changed. changed: nanoseconds since 1970."""

    path: str
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """Return the present state of the file. Raises OSError if it is missing."""
        status = path.stat()
        return cls(str(path), status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class KnownEncoder:
    """The encoder that a name stood for. retr: the version. files: of weights and code."""

    name: str
    fingerprint: str
    retr: str
    files: tuple[FileState, ...]

    def is_current(self, name: str) -> bool:
        """Return whether the name stands for this encoder still."""
        try:
            now = tuple(FileState.of(Path(state.path)) for state in self.files)
            code = {str(path) for path in _code(name)}
        except (OSError, BadInput):
            return False
        known = {state.path for state in self.files}
        return (self.name, self.retr, self.files) == (name, version("retr"), now) and code <= known


def open_known(name: str, device: str = "auto", words: bool = False) -> Encoder:
    """Return the encoder of this name: its exported network on a CPU, if it is known.

    words: whether it is to embed text as well. Raises the errors of `open_encoder`.
    """
    name = _absolute(name)
    if device == "cpu" or (device == "auto" and not may_have_gpu()):
        with suppress(BadData, OSError):
            known = read_document(_file(name), KnownEncoder, FORMAT, VERSION, "delete it")
            if known.is_current(name):
                found = open_export(known.fingerprint, device, text=words)
                if found is not None:
                    return found
    encoder = open_encoder(name, device)
    with suppress(OSError, BadInput):
        _remember(name, encoder)
    return encoder


def may_have_gpu() -> bool:
    """Return whether this machine may have a GPU that torch can use."""
    return any(Path(device).exists() for device in GPU_DEVICES)


def _remember(name: str, encoder: Encoder) -> None:
    if not isinstance(encoder, FromFiles) or not encoder.files:
        return
    files = [*map(Path, encoder.files), *_code(name)]
    states = tuple(FileState.of(path) for path in files)
    known = KnownEncoder(name, encoder.fingerprint, version("retr"), states)
    made_folder(_file(name).parent)
    write_sealed(_file(name), FORMAT, VERSION, asdict(known))


def _file(name: str) -> Path:
    hashed = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return user_cache() / "exports" / "names" / f"{hashed[:16]}.json"


def _absolute(name: str) -> str:
    """Return the name, with the folder of a trained encoder absolute."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if "/" in name and folder.is_dir() else name


def _code(name: str) -> list[Path]:
    """Return the files of the Python package with the encoder's plug-in."""
    package = encoder_module(name).partition(".")[0]
    found = importlib.util.find_spec(package)
    folders = [] if found is None else [*(found.submodule_search_locations or ())]
    if found is not None and not folders and found.origin:
        return [Path(found.origin)]
    return sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
