"""Norms folded into convolutions leave what a network says as it was."""

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from encoders.blocks.folding import fold

EXAMPLE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def moved(network: nn.Module) -> nn.Module:
    """The network with norms that do something, as after a training."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


def norms(network: nn.Module) -> Iterator[nn.Module]:
    return (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "test_resnet"])
def test_folded_network_has_the_same_output(name: str) -> None:
    network = moved(timm.create_model(name, pretrained=False, num_classes=0))
    short = copy.deepcopy(network)
    weights = short.state_dict()
    fold(short, EXAMPLE)
    assert not [*norms(short)] and [*norms(network)]
    for images in (EXAMPLE, EXAMPLE[:1, :, :48].flip(-1)):
        with torch.inference_mode():
            torch.testing.assert_close(short(images), network(images), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in short.modules())


class Residual(nn.Module):
    """Wants the output of its convolution before the norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class Twice(nn.Module):
    """Runs one convolution twice, its norm once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x))
        normed: Tensor = self.norm(x)
        return normed


@pytest.mark.parametrize(
    "network",
    [
        Residual(),
        Twice(),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), BatchNormAct2d(4)),
    ],
    ids=["residual", "twice", "before", "activation between"],
)
def test_norms_that_cannot_be_folded_stay(network: nn.Module) -> None:
    short = copy.deepcopy(moved(network))
    fold(short, EXAMPLE)
    assert [*norms(short)]
    with torch.inference_mode():
        torch.testing.assert_close(short(EXAMPLE), network(EXAMPLE), rtol=0, atol=0)


def test_network_without_norms_is_not_run() -> None:
    network = nn.Sequential(nn.Linear(3, 4))
    fold(network, EXAMPLE)  # the network could not take it
