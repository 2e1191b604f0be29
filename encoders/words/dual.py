"""The common part of dual encoders: a text tower beside the network for images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from encoders.inference import TorchEncoder
from encoders.words.tokenizer import Tokenizer
from encoders.write_onnx import write_text_onnx
from retrieval.contracts import Framing, Json, Metric, Prompts, Vectors

TEXTS_AT_ONCE = 64
COMPARED_TEXTS = ("a red car in the snow", "two dogs", "x")


class DualEncoder(TorchEncoder):
    """An encoder of images and text by two networks, whose vectors have unit length."""

    def __init__(
        self,
        network: nn.Module,
        text: nn.Module,
        tokenizer: Tokenizer,
        prompts: Prompts,
        *,
        name: str,
        dim: int,
        framing: Framing,
        config: Mapping[str, Json],
        weights: Mapping[str, Tensor],
        device: str,
        batch: int,
        bfloat16: bool = True,
        files: Sequence[Path] = (),
    ) -> None:
        """Move both networks to the device, and compute the fingerprint.

        network: from images (n, 3, side, side) with values from 0 to 1 to vectors (n, dim).
        text: from tokens (n, context) to vectors (n, dim). weights: of both networks. The other
        arguments are those of `TorchEncoder`; the tokenizer is added to `config`.
        """
        self.tokenizer = tokenizer
        self.prompts = prompts
        TorchEncoder.__init__(  # a subclass may have another base between
            self,
            network,
            name=name,
            dim=dim,
            metric=Metric.COSINE,
            framing=framing,
            config={**config, "tokenizer_sha256": tokenizer.sha256},
            weights=weights,
            device=device,
            batch=batch,
            bfloat16=bfloat16,
            files=files,
        )
        self.text = text.eval().to(self.device)

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of a text, those of start and end included."""
        return self.tokenizer.context

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text; those beyond the maximum are not read."""
        return self.tokenizer.counts(texts)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Return the embeddings (n, dim) of n texts, in float32."""
        vectors = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = self.tokenizer(texts[start : start + TEXTS_AT_ONCE])
            output = self.text(torch.from_numpy(part).to(self.device))
            vectors[start : start + len(part)] = output.float().cpu().numpy()
        return vectors

    def export_text(self, network: Path, tokenizer: Path) -> Mapping[str, Json]:
        """Write the text tower and the tokenizer, for `encoders.onnx_encoder`.

        Return the tokenizer's settings. Raises CannotExport.
        """
        tokens = torch.from_numpy(self.tokenizer(COMPARED_TEXTS))
        write_text_onnx(self.text, tokens, network)
        return self.tokenizer.save(tokenizer)
