"""Norms folded into the convolutions before them: the same function in fewer steps, to embed by."""

import copy
from collections import Counter
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of the network for inference, with batch norms folded into their convolutions.

    Which convolution a norm stands behind is seen when the example (n, 3, h, w) runs through.
    Where the copy says something else of it than the network, since the output of a convolution
    is wanted before its norm too, the copy has its norms.
    """
    plain = copy.deepcopy(network).eval()
    found = _norms_behind(plain, example)
    if not found:
        return plain
    shorter = copy.deepcopy(plain)
    for norm_name, conv_name in found.items():
        norm: Any = shorter.get_submodule(norm_name)
        conv: Any = shorter.get_submodule(conv_name)
        shorter.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        shorter.set_submodule(norm_name, _behind(norm))
    wanted, met = plain(example), shorter(example)
    return shorter if torch.allclose(met, wanted, 1e-3, 1e-3 * float(wanted.abs().max())) else plain


def _norms_behind(network: nn.Module, example: Tensor) -> dict[str, str]:
    """The names of norms, each with that of the convolution whose output it is given."""
    found: dict[str, str] = {}
    outputs: dict[int, tuple[str, Tensor]] = {}  # kept, so that no other tensor has their ids
    runs: Counter[str] = Counter()
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def keep(module: nn.Module, given: Any, output: Tensor, name: str = name) -> None:
                runs[name] += 1
                outputs[id(output)] = (name, output)

            hooks.append(module.register_forward_hook(keep))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):

            def look(module: nn.Module, given: Any, name: str = name) -> None:
                runs[name] += 1
                if id(given[0]) in outputs:
                    found[name] = outputs[id(given[0])][0]

            hooks.append(module.register_forward_pre_hook(look))
    network(example)
    for hook in hooks:
        hook.remove()
    return {norm: conv for norm, conv in found.items() if runs[norm] == runs[conv] == 1}


def _behind(norm: nn.Module) -> nn.Module:
    """What a norm does besides."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
