"""The fast gradients of depthwise convolutions are those of the slow ones."""

import pytest
import torch
from torch import Tensor, nn

from encoders.training.optimization.depthwise import FastDepthwise


def gradients(layer: nn.Conv2d, images: Tensor, weights: Tensor) -> list[Tensor]:
    """Return the gradients of images, kernels and bias, in float32."""
    images = images.clone().requires_grad_()
    layer.zero_grad()
    output = layer(images)
    (output.float() * weights).sum().backward()
    assert images.grad is not None
    return [images.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("side", [5, 7, 9, 14])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (5, 2), (3, 0), (5, 0), (7, 3), (1, 0)])
def test_gradients_are_those_of_float32(kernel: int, padding: int, stride: int, side: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, kernel, stride, padding, groups=16)
    images = torch.randn(8, 16, side, side).to(memory_format=torch.channels_last)
    weights = torch.randn_like(layer(images))
    wanted = gradients(layer, images, weights)
    with torch.autocast("cpu", torch.bfloat16), FastDepthwise():
        assert type(layer(images).grad_fn).__name__ != "ConvolutionBackward0"
        met = gradients(layer, images, weights)
    assert len(met) == len(wanted) == 3
    for one, other in zip(met, wanted, strict=True):
        assert (one - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 32, 3, groups=16),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.Conv2d(16, 16, (3, 5), groups=16),
        nn.Conv2d(16, 16, 3, dilation=2, groups=16),
        nn.Conv2d(16, 16, 3, stride=(1, 2), groups=16),
        nn.Conv2d(16, 16, 3, padding=(0, 1), groups=16),
        nn.Conv2d(16, 16, 3, padding="same", groups=16),
    ],
    ids=lambda layer: layer.extra_repr(),
)
def test_other_convolutions_are_unchanged(layer: nn.Conv2d) -> None:
    images = torch.randn(2, 16, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = layer(images)
        with FastDepthwise():
            met = layer(images)
    torch.testing.assert_close(met, wanted, rtol=0, atol=0)
    assert "Depthwise" not in type(met.grad_fn).__name__


def test_float32_is_left_alone() -> None:
    layer, images = nn.Conv2d(16, 16, 5, groups=16), torch.randn(2, 16, 9, 9)
    with FastDepthwise():
        assert "Depthwise" not in type(layer(images).grad_fn).__name__
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert layer(images).grad_fn is None


def test_frozen_kernels_get_no_gradient() -> None:
    layer = nn.Conv2d(16, 16, 5, groups=16, bias=False).requires_grad_(False)
    images = torch.randn(2, 16, 9, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), FastDepthwise():
        layer(images).float().sum().backward()
    assert images.grad is not None and layer.weight.grad is None
