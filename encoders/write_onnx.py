"""Export networks to ONNX, and compare their output with torch's."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from retrieval.errors import CannotExport

MAX_DEVIATION = 1e-4  # share of the longest embedding's length
COMPARED = 3  # another batch size than the traced one


class _FromBytes(nn.Module):
    """The network with images (n, side, side, 3) uint8 as its input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.network(images.permute(0, 3, 1, 2).float() / 255)
        return embeddings


def write_onnx(network: nn.Module, side: int, path: Path) -> None:
    """Write the network, for images (n, 3, side, side) from 0 to 1, to `path`.

    Raises CannotExport if ONNX cannot express the network, or if ONNX Runtime's embeddings differ
    from torch's in float32 by more than rounding.
    """
    whole = _FromBytes(copy.deepcopy(network).cpu())
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COMPARED, side, side, 3), generator=generator).byte()
    _write(whole, "images", images, path)


def write_text_onnx(network: nn.Module, tokens: Tensor, path: Path) -> None:
    """Write a text tower, for tokens (n, context) int64, to `path`.

    tokens: of at least three texts, to compare with. Raises CannotExport as `write_onnx` does.
    """
    _write(copy.deepcopy(network).cpu(), "tokens", tokens, path)


def _write(network: nn.Module, name: str, example: Tensor, path: Path) -> None:
    """Write the network with one input of this name, and `embeddings` as its output."""
    network = network.eval()
    free = {0: "number"}  # any number of images or texts
    try:
        with warnings.catch_warnings(), torch.inference_mode(), _plain_attention():
            warnings.simplefilter("ignore")
            # The newer exporter takes ten times as long: 5 s.
            torch.onnx.export(
                network,
                (example[:2],),
                path,
                dynamo=False,
                input_names=[name],
                output_names=["embeddings"],
                dynamic_axes={name: free, "embeddings": free},
            )
        _check(network, name, example, path)
    except CannotExport:
        raise
    except Exception as error:  # from several libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CannotExport(f"the network cannot be exported ({reason})") from None


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Run attention by operators that ONNX has, not by torch's fused one for inference."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@torch.inference_mode()
def _check(network: nn.Module, name: str, example: Tensor, path: Path) -> None:
    from onnxruntime import InferenceSession, disable_telemetry_events

    disable_telemetry_events()
    expected = network(example).numpy()
    met = InferenceSession(path).run(None, {name: example.numpy()})[0]
    apart = np.abs(met - expected).max() / np.linalg.norm(expected, axis=1).max()
    if not apart <= MAX_DEVIATION:
        raise CannotExport(
            f"embeddings of the exported network are off by {apart:.1e} of their length"
        )
