"""Features of timm models: the pooled output of a model, or the outputs of its layers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.layers import Format
from torch import Tensor, nn
from torch.nn import functional

from encoders.blocks.folding import fold
from retrieval.errors import BadInput, UnknownName


class LayerOutputs(nn.Module):
    """A timm model on images from 0 to 1, and what its layers put out on the way."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: str, layers: Sequence[str], network: Any) -> None:
        """network: the timm model without its classifier. Raises UnknownName for a layer."""
        super().__init__()
        settings = resolve_model_data_config(network)
        self.register_buffer("mean", torch.tensor(settings["mean"]).view(1, -1, 1, 1), False)
        self.register_buffer("std", torch.tensor(settings["std"]).view(1, -1, 1, 1), False)
        self.network = network
        self.layers = tuple(layers)
        self._seen: dict[str, Tensor] = {}
        inside = dict(network.named_modules())
        for layer in self.layers:
            if layer not in inside:
                # A network has hundreds: those that stand no deeper than most people look.
                shown = (name for name in inside if name and name.count(".") < 2)
                raise UnknownName(f"layer of {model}", layer, shown)
            # A partial, whose dictionary is copied with the network, as a closure's is not.
            inside[layer].register_forward_hook(partial(_keep, self._seen, layer))

    def run(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the model makes of images (n, 3, h, w), and the outputs of the layers, in order."""
        final: Tensor = self.network((images - self.mean) / self.std)
        return final, [self._seen.pop(layer).float() for layer in self.layers]


def _keep(
    seen: dict[str, Tensor], layer: str, module: nn.Module, inputs: object, output: Tensor
) -> None:
    seen[layer] = output


class Features(LayerOutputs):
    """Images (n, 3, h, w) from 0 to 1, to the features (n, dim) of a timm model.

    Without layers, those that its classifier would see. With layers, each layer's outputs are
    averaged over the image and brought to unit length, and put side by side.
    """

    def __init__(self, model: str, layers: Sequence[str], network: Any) -> None:
        """As `LayerOutputs`. Raises BadInput for a layer that has no output an image."""
        super().__init__(model, layers, network)
        self.shape = tuple(resolve_model_data_config(network)["input_size"])
        self.channels_last = getattr(network, "output_fmt", None) == Format.NHWC
        self.dim = self._dim() if layers else int(network.num_features)

    def forward(self, images: Tensor) -> Tensor:
        final, outputs = self.run(images)
        if not self.layers:
            return final
        pooled = [_pooled(output, self.channels_last) for output in outputs]
        return torch.cat([functional.normalize(vectors, dim=1) for vectors in pooled], 1)

    def fold(self) -> None:
        """Go over to evaluation, with norms folded into convolutions.

        Not with layers, since these may be norms, or stand before them.
        """
        self.eval()
        if not self.layers:
            generator = torch.Generator(self.mean.device).manual_seed(0)
            example = torch.randn(2, *self.shape, generator=generator, device=self.mean.device)
            fold(self.network, example)

    def _dim(self) -> int:
        training = self.network.training
        with torch.inference_mode():
            _, outputs = self.eval().run(torch.zeros(2, *self.shape))
        self.train(training)
        for layer, output in zip(self.layers, outputs, strict=True):
            if len(output) != 2:
                raise BadInput(
                    f"layer {layer} puts out {tuple(output.shape)} for two images, which are not "
                    "told apart there; choose another layer"
                )
        return sum(_pooled(output, self.channels_last).shape[1] for output in outputs)


def _pooled(output: Tensor, channels_last: bool) -> Tensor:
    """A layer's output averaged over places: maps, tokens (n, t, c) or (n, c) to (n, c).

    Images are square, and so are maps: where only two sides of one are alike, these are the
    places; else `channels_last` says whether a map is (n, h, w, c) or (n, c, h, w).
    """
    if output.ndim < 4:
        return output.mean(1) if output.ndim == 3 else output
    _, first, second, third = output.shape
    if (first == second) != (second == third):
        channels_last = first == second
    return output.mean((1, 2) if channels_last else (2, 3))
