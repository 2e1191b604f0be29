"""Encoders whose networks were exported to ONNX: the same embeddings, without torch.

ONNX Runtime is imported in a fiftieth of torch's time, which a search for one image waits for. For
many images torch is faster on processors with bfloat16 instructions.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession

from encoders.runtimes.onnx_runtime import opened
from retrieval.contracts import Images, Prompts, Vectors
from retrieval.embedding.onnx_cache import NETWORK, TEXT_NETWORK, TOKENIZER, ExportFacts, checked
from retrieval.errors import BadData, BadInput
from retrieval.images import check_framed
from retrieval.runtime.threads import usable_cores

IMAGES_PER_BATCH = 50
TEXTS_PER_BATCH = 64


class Exported:
    """`exported:FOLDER`: an encoder that `Exportable.export` wrote, on the CPU, in float32."""

    def __init__(self, folder: str, device: str = "auto") -> None:
        """Open the folder. Raises BadData if it is damaged, BadInput for a GPU."""
        self._read(folder, device)
        _ = self._session

    def _read(self, folder: str, device: str) -> None:
        """Read the facts of the folder."""
        if device not in ("auto", "cpu"):
            raise BadInput(f"an exported encoder cannot run on '{device}'; give auto or cpu")
        self.folder = Path(folder).expanduser()
        self.facts = facts = ExportFacts.read(self.folder)
        self.name = facts.encoder.name
        self.dim = facts.dim
        self.metric = facts.metric
        self.framing = facts.framing
        self.config = dict(facts.encoder.config)
        self.fingerprint = facts.encoder.fingerprint

    @cached_property
    def _session(self) -> InferenceSession:
        return opened(checked(self.folder / NETWORK, self.facts.network_sha256), usable_cores())

    def encode(self, images: Images) -> Vectors:
        """Return embeddings (n, dim) of images (n, side, side, 3). Raises BadInput for others."""
        check_framed(images, self.framing)
        vectors = np.empty((len(images), self.dim), np.float32)
        for start in range(0, len(images), IMAGES_PER_BATCH):
            part = slice(start, start + IMAGES_PER_BATCH)
            batch = np.ascontiguousarray(images[part])
            vectors[part] = self._session.run(None, {"images": batch})[0]
        return vectors


class ExportedText(Exported):
    """`exported-text:FOLDER`: an encoder that `TextExportable.export_text` wrote.

    The network for images is opened when the first image comes: a search in words does not wait
    for it.
    """

    def __init__(self, folder: str, device: str = "auto") -> None:
        """Open the text tower. Raises BadData if it is damaged or missing, BadInput for a GPU."""
        from encoders.words.tokenizer import Tokenizer

        self._read(folder, device)
        text = self.facts.text
        if text is None:
            raise BadData(f"{self.folder} has no text tower; export it again")
        tokenizer = checked(self.folder / TOKENIZER, text.tokenizer_sha256)
        self.tokenizer = Tokenizer.read(tokenizer, text.tokenizer)
        text_network = checked(self.folder / TEXT_NETWORK, text.network_sha256)
        self._text = opened(text_network, usable_cores())
        self.prompts: Prompts = text.prompts

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of a text, those of start and end included."""
        return self.tokenizer.context

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text; those beyond the maximum are not read."""
        return self.tokenizer.counts(texts)

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Return the embeddings (n, dim) of n texts."""
        vectors = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), TEXTS_PER_BATCH):
            part = slice(start, start + TEXTS_PER_BATCH)
            vectors[part] = self._text.run(None, {"tokens": self.tokenizer(texts[part])})[0]
        return vectors
