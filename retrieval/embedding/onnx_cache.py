"""Networks exported to ONNX and kept, so that a search opens its encoder without torch.

Importing torch takes longer than all else that a search does. An encoder's network is therefore
written into the user's cache, under the encoder's fingerprint, by the first command that has it
open, and `encoders.onnx_encoder` runs it. docs/formats.md writes the folder out.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from retrieval.choices import resolve_choices
from retrieval.contracts import Encoder, Exportable, Framing, Metric
from retrieval.errors import BadData, Busy
from retrieval.registry import open_encoder
from retrieval.storage.document import read_document
from retrieval.storage.files import (
    locked,
    made_folder,
    sha256_of,
    user_cache,
    write_sealed,
    write_whole,
)
from retrieval.storage.sets.manifest import EncoderFacts

FORMAT = "retr-export"
VERSION = 2  # 1 had no checksum
EXPORT = "export.json"
NETWORK = "network.onnx"
PLUGIN = "exported"  # the encoder that runs an export


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """Contents of `export.json`: the encoder whose network this is."""

    encoder: EncoderFacts
    dim: int
    metric: Metric
    framing: Framing
    network_sha256: str

    def __post_init__(self) -> None:
        resolve_choices(self)

    def write(self, folder: Path) -> None:
        """Write `export.json`, whole or not at all."""
        write_sealed(folder / EXPORT, FORMAT, VERSION, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the facts of the folder.

        Raises BadData if they or the network are missing or damaged.
        """
        path = folder / EXPORT
        facts = read_document(path, cls, FORMAT, VERSION, "export again")
        network = folder / NETWORK
        if not network.is_file() or sha256_of(network) != facts.network_sha256:
            raise BadData(f"{network} has a checksum mismatch with {EXPORT}; export again")
        return facts


def export_folder(fingerprint: str) -> Path:
    """Return the folder for the export of the encoder with this fingerprint."""
    return user_cache() / "exports" / fingerprint[:16]


def keep_export(encoder: Encoder) -> None:
    """Export the encoder into the user's cache, unless it is there or another process is at it.

    Raises CannotExport, or BadInput or OSError where the cache cannot be written; all else can do
    without.
    """
    folder = export_folder(encoder.fingerprint)
    if not isinstance(encoder, Exportable) or _is_of(folder, encoder.fingerprint):
        return
    with suppress(Busy), locked(made_folder(folder)):
        write_whole(folder / NETWORK, encoder.export)
        ExportFacts(
            encoder=EncoderFacts.of(encoder),
            dim=encoder.dim,
            metric=encoder.metric,
            framing=encoder.framing,
            network_sha256=sha256_of(folder / NETWORK),
        ).write(folder)


def open_export(fingerprint: str, device: str = "auto") -> Encoder | None:
    """Return the encoder of this fingerprint from the user's cache; None if missing or damaged.

    device: auto or cpu; None is returned for another.
    """
    folder = export_folder(fingerprint)
    if device not in ("auto", "cpu") or not folder.is_dir():  # nor is the runtime imported
        return None
    try:
        found = open_encoder(f"{PLUGIN}:{folder}", device)
    except BadData:
        return None
    return found if found.fingerprint == fingerprint else None


def _is_of(folder: Path, fingerprint: str) -> bool:
    """Return whether the folder holds the complete export of this encoder."""
    try:
        return ExportFacts.read(folder).encoder.fingerprint == fingerprint
    except BadData:
        return False
