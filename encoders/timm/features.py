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
    """A timm model for images from 0 to 1 that also returns the outputs of some layers."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: str, layers: Sequence[str], network: Any) -> None:
        """Wrap the network, a timm model without classifier. Raises UnknownName for a layer."""
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
                # A network has hundreds of layers; list those near the top.
                shown = (name for name in inside if name and name.count(".") < 2)
                raise UnknownName(f"layer of {model}", layer, shown)
            # A partial's dictionary is copied with the network; a closure's would be shared.
            inside[layer].register_forward_hook(partial(_keep, self._seen, layer))

    def run(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the model's output for images (n, 3, h, w), and the layers' outputs, in order."""
        final: Tensor = self.network((images - self.mean) / self.std)
        return final, [self._seen.pop(layer).float() for layer in self.layers]


def _keep(
    seen: dict[str, Tensor], layer: str, module: nn.Module, inputs: object, output: Tensor
) -> None:
    seen[layer] = output


class Features(LayerOutputs):
    """A timm model from images (n, 3, h, w), with values from 0 to 1, to features (n, dim).

    Without layers, the features are the pooled ones before the classifier. With layers, each
    layer's output is averaged over the image and scaled to unit length, and all are concatenated.
    """

    def __init__(self, model: str, layers: Sequence[str], network: Any) -> None:
        """Wrap the network. Raises UnknownName and BadInput for layers that cannot be used."""
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
        """Switch to evaluation mode, and fold norms into convolutions unless there are layers.

        A layer may be a norm, or come before one.
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
                    f"layer {layer} outputs {tuple(output.shape)} for two images, not one "
                    "output per image; choose another layer"
                )
        return sum(_pooled(output, self.channels_last).shape[1] for output in outputs)


def _pooled(output: Tensor, channels_last: bool) -> Tensor:
    """Return a layer's output, maps, tokens (n, t, c) or (n, c), averaged over places: (n, c).

    Images are square, and so are maps: if only two sides are equal, they are height and width.
    Otherwise `channels_last` decides between (n, h, w, c) and (n, c, h, w).
    """
    if output.ndim < 4:
        return output.mean(1) if output.ndim == 3 else output
    _, first, second, third = output.shape
    if (first == second) != (second == third):
        channels_last = first == second
    return output.mean((1, 2) if channels_last else (2, 3))
