"""Depthwise convolutions in bfloat16 with fast gradients on a CPU.

PyTorch computes two gradients of a depthwise convolution in bfloat16 with slow reference code of
oneDNN: that of the input with a stride above 1, and that of a 5×5 kernel. They take two thirds of a
training step of EfficientNet-Lite0 (torch 2.14.1, oneDNN 3.12). Here both are expressed by fast
operations.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

MAX_PLACE_PAIRS = 5_000
"""Pairs of an input and an output place up to which products of all pairs are faster.

The alternative is a convolution in float32. Measured on maps of 4×4 to 28×28.
"""


class FastDepthwise(TorchFunctionMode):
    """Context in which slow depthwise convolutions get fast gradients.

    They are slow on the CPU, under autocast to bfloat16. Kernels, strides and padding must be
    square.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7 and _is_slow(*args):
            images, kernels, bias, (stride, _), (padding, _), _, _ = args
            low = (images.bfloat16(), kernels.bfloat16())
            output: Tensor = _Depthwise.apply(*low, stride, padding)
            return output if bias is None else output + bias.to(output.dtype).view(-1, 1, 1)
        return func(*args, **(kwargs or {}))


def _is_slow(
    images: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> bool:
    return (
        images.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and torch.is_grad_enabled()
        and 1 < groups == images.shape[1] == kernels.shape[0]
        and kernels.shape[2] == kernels.shape[3]
        and not isinstance(padding, str)
        and tuple(dilation) == (1, 1)
        and stride[0] == stride[1]
        and padding[0] == padding[1]
    )


class _Depthwise(torch.autograd.Function):
    """Convolution of images (n, c, h, w) with kernels (c, 1, k, k), to (n, c, height, width)."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernels: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(images, kernels)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(images, kernels, None, stride, padding, 1, len(kernels))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        images, kernels = ctx.saved_tensors
        wants_images, wants_kernels, *_ = ctx.needs_input_grad
        return (
            _of_images(images, kernels, gradient, ctx.stride, ctx.padding)
            if wants_images
            else None,
            _of_kernels(images, kernels, gradient, ctx.stride, ctx.padding)
            if wants_kernels
            else None,
            None,
            None,
        )


def _of_images(
    images: Tensor, kernels: Tensor, gradient: Tensor, stride: int, padding: int
) -> Tensor:
    """Return the gradient of the images, by a convolution of stride 1 with unused outputs."""
    if stride > 1:
        n, c, h, w = images.shape
        fewer = kernels.shape[-1] - 1 - 2 * padding
        spread = torch.empty(
            (n, c, h - fewer, w - fewer),
            dtype=gradient.dtype,
            memory_format=torch.channels_last,
        ).zero_()
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return _gradients(images, kernels, gradient, 1, padding, (True, False))[0]


def _of_kernels(
    images: Tensor, kernels: Tensor, gradient: Tensor, stride: int, padding: int
) -> Tensor:
    """Return the gradient of the kernels, in the fastest way."""
    if kernels.shape[-1] <= 3:
        return _gradients(images, kernels, gradient, stride, padding, (False, True))[1]
    if images[0, 0].numel() * gradient[0, 0].numel() <= MAX_PLACE_PAIRS:
        return _by_products(images, kernels, gradient, stride, padding)
    found = _gradients(
        images.float(), kernels.float(), gradient.float(), stride, padding, (False, True)
    )
    return found[1].to(kernels.dtype)


def _by_products(
    images: Tensor, kernels: Tensor, gradient: Tensor, stride: int, padding: int
) -> Tensor:
    """Return the gradient of the kernels from the products of all input and output places.

    One matrix product per channel computes them. A tap of the kernel is the sum over the pairs of
    places that it connects.
    """
    n, c, h, w = images.shape
    inputs = images.permute(1, 2, 3, 0).reshape(c, h * w, n)
    products = inputs @ gradient.permute(1, 0, 2, 3).reshape(c, n, -1)
    # Row 0 is the padding. `rows` is the input row of each tap at each output place.
    places = torch.arange(1, h * w + 1, dtype=torch.float32).view(1, 1, h, w)
    rows = functional.unfold(places, kernels.shape[-1], padding=padding, stride=stride)[0].long()
    products = functional.pad(products, (0, 0, 1, 0))
    taps = products[:, rows, torch.arange(rows.shape[1])].sum(-1, dtype=torch.float32)
    return taps.to(kernels.dtype).view_as(kernels)


def _gradients(
    images: Tensor,
    kernels: Tensor,
    gradient: Tensor,
    stride: int,
    padding: int,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Return PyTorch's gradients of images and of kernels; undefined unless wanted."""
    of_images, of_kernels, _ = torch.ops.aten.convolution_backward(
        gradient,
        images,
        kernels,
        None,
        [stride] * 2,
        [padding] * 2,
        [1, 1],
        False,
        [0, 0],
        len(kernels),
        [*wanted, False],
    )
    return of_images, of_kernels
