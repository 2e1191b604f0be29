"""Fold norms into the convolutions before them: the same function in fewer steps."""

from collections import Counter
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

NORMS = (nn.BatchNorm2d, BatchNormAct2d)


@torch.no_grad()
def fold(network: nn.Module, example: Tensor) -> None:
    """Fold the batch norms of a network in evaluation mode into their convolutions.

    An example (n, 3, h, w) shows which norm follows which convolution. If the folded network's
    output for it differs, because the output before a norm is also used, nothing is folded. The
    tensors that were the weights keep their values.
    """
    if not any(type(module) in NORMS for module in network.modules()):
        return
    found, wanted = _norms_after_convolutions(network, example)
    replaced = {name: network.get_submodule(name) for pair in found.items() for name in pair}
    for norm_name, conv_name in found.items():
        norm: Any = replaced[norm_name]
        conv: Any = replaced[conv_name]
        network.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        network.set_submodule(norm_name, _other_steps(norm))
    met = network(example)
    if not torch.allclose(met, wanted, 1e-3, 1e-3 * float(wanted.abs().max())):
        for name, module in replaced.items():
            network.set_submodule(name, module)


def _norms_after_convolutions(network: nn.Module, example: Tensor) -> tuple[dict[str, str], Tensor]:
    """Return the convolution before each norm, by their names, and the output for the example."""
    found: dict[str, str] = {}
    outputs: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors, so that ids stay unique
    runs: Counter[str] = Counter()
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def keep(module: nn.Module, given: Any, output: Tensor, name: str = name) -> None:
                runs[name] += 1
                outputs[id(output)] = (name, output)

            hooks.append(module.register_forward_hook(keep))
        elif type(module) in NORMS:

            def look(module: nn.Module, given: Any, name: str = name) -> None:
                runs[name] += 1
                if id(given[0]) in outputs:
                    found[name] = outputs[id(given[0])][0]

            hooks.append(module.register_forward_pre_hook(look))
    output: Tensor = network(example)
    for hook in hooks:
        hook.remove()
    once = {norm: conv for norm, conv in found.items() if runs[norm] == runs[conv] == 1}
    return once, output


def _other_steps(norm: nn.Module) -> nn.Module:
    """Return the other steps of a norm layer: dropout and activation."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
