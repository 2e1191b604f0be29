"""Export a network to ONNX, and compare its output with torch's."""

import copy
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from retrieval.errors import CannotExport

MAX_DEVIATION = 1e-4  # share of the longest embedding's length
COMPARED_IMAGES = 3  # another batch size than the traced one


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
    whole = _FromBytes(copy.deepcopy(network).cpu()).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COMPARED_IMAGES, side, side, 3), generator=generator).byte()
    free = {0: "images"}  # any number of images
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            # The newer exporter takes ten times as long: 5 s.
            torch.onnx.export(
                whole,
                (images[:2],),
                path,
                dynamo=False,
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_axes={"images": free, "embeddings": free},
            )
        _check(whole, images, path)
    except CannotExport:
        raise
    except Exception as error:  # from several libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CannotExport(f"the network cannot be exported ({reason})") from None


@torch.inference_mode()
def _check(network: nn.Module, images: Tensor, path: Path) -> None:
    from onnxruntime import InferenceSession, disable_telemetry_events

    disable_telemetry_events()
    expected = network(images).numpy()
    met = InferenceSession(path).run(None, {"images": images.numpy()})[0]
    apart = np.abs(met - expected).max() / np.linalg.norm(expected, axis=1).max()
    if not apart <= MAX_DEVIATION:
        raise CannotExport(
            f"embeddings of the exported network are off by {apart:.1e} of their length"
        )
