"""Networks exported to ONNX and kept, so that a search opens its encoder without torch.

Importing torch takes longer than all else that a search does. An encoder's network is therefore
written into the user's cache, under the encoder's fingerprint, by the first command that has it
open, and `encoders.onnx_encoder` runs it. docs/formats.md writes the folder out.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from retrieval.choices import resolve_choices
from retrieval.contracts import (
    Encoder,
    Exportable,
    Framing,
    Json,
    Metric,
    Prompted,
    Prompts,
    TextExportable,
)
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
VERSION = 3  # 1 had no checksum, 2 no text
EXPORT = "export.json"
NETWORK = "network.onnx"
TEXT_NETWORK = "text.onnx"
TOKENIZER = "tokenizer.json"
PLUGIN = "exported"  # the encoder that runs an export
TEXT_PLUGIN = "exported-text"  # the encoder that also runs its text tower


@dataclass(frozen=True, slots=True)
class TextFacts:
    """The text tower of an export. tokenizer: the settings that belong to `tokenizer.json`."""

    network_sha256: str
    tokenizer_sha256: str
    tokenizer: Mapping[str, Json]
    prompts: Prompts


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """Contents of `export.json`: the encoder whose network this is."""

    encoder: EncoderFacts
    dim: int
    metric: Metric
    framing: Framing
    network_sha256: str
    text: TextFacts | None = None  # for an encoder that takes words

    def __post_init__(self) -> None:
        resolve_choices(self)

    def write(self, folder: Path) -> None:
        """Write `export.json`, whole or not at all."""
        write_sealed(folder / EXPORT, FORMAT, VERSION, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the facts of the folder. Raises BadData if they are missing or damaged."""
        return read_document(folder / EXPORT, cls, FORMAT, VERSION, "export again")

    def check(self, folder: Path) -> None:
        """Raise BadData unless all files are there and undamaged."""
        checked(folder / NETWORK, self.network_sha256)
        if self.text is not None:
            checked(folder / TEXT_NETWORK, self.text.network_sha256)
            checked(folder / TOKENIZER, self.text.tokenizer_sha256)


def checked(file: Path, sha256: str) -> Path:
    """Return the file. Raises BadData if it is missing or damaged."""
    if not file.is_file() or sha256_of(file) != sha256:
        raise BadData(f"{file} has a checksum mismatch with {EXPORT}; export again")
    return file


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
            text=_kept_text(encoder, folder) if isinstance(encoder, TextExportable) else None,
        ).write(folder)


def _kept_text(encoder: TextExportable, folder: Path) -> TextFacts:
    """Export the text tower into the folder."""
    settings: dict[str, Json] = {}

    def write(network: Path) -> None:
        def write_tokenizer(tokenizer: Path) -> None:
            settings.update(encoder.export_text(network, tokenizer))

        write_whole(folder / TOKENIZER, write_tokenizer)

    write_whole(folder / TEXT_NETWORK, write)
    return TextFacts(
        network_sha256=sha256_of(folder / TEXT_NETWORK),
        tokenizer_sha256=sha256_of(folder / TOKENIZER),
        tokenizer=settings,
        prompts=encoder.prompts if isinstance(encoder, Prompted) else Prompts(),
    )


def open_export(fingerprint: str, device: str = "auto", text: bool = False) -> Encoder | None:
    """Return the encoder of this fingerprint from the user's cache; None if missing or damaged.

    device: auto or cpu; None is returned for another. text: the encoder is to embed text.
    """
    folder = export_folder(fingerprint)
    if device not in ("auto", "cpu") or not folder.is_dir():  # nor is the runtime imported
        return None
    try:
        found = open_encoder(f"{TEXT_PLUGIN if text else PLUGIN}:{folder}", device)
    except BadData:
        return None
    return found if found.fingerprint == fingerprint else None


def _is_of(folder: Path, fingerprint: str) -> bool:
    """Return whether the folder holds the complete export of this encoder."""
    try:
        facts = ExportFacts.read(folder)
        facts.check(folder)
        return facts.encoder.fingerprint == fingerprint
    except BadData:
        return False
