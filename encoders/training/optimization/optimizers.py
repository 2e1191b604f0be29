"""Optimizers that a recipe may name, and the schedule of their learning rates."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from encoders.networks import Network
from encoders.training import recipe
from encoders.training.optimization.muon import Muon

ADAM_BESIDE_MUON = (0.85, 0.95)
"""Betas of Adam for the parameters that Muon leaves; from airbench, arXiv:2404.00498."""


class Optimizers:
    """The optimizers of a run, whose learning rates follow the recipe's schedule."""

    def __init__(self, settings: recipe.Optimizer, network: Network, losses: nn.Module) -> None:
        """Create optimizers for the trainable parameters of network and losses (class proxies)."""
        self.settings = settings
        fresh = [*network.fresh_parameters(), *losses.parameters()]
        known = {id(parameter) for parameter in fresh}
        grown = [p for p in network.parameters() if id(p) not in known]
        self.optimizers = _made(settings, _trainable(grown), _trainable(fresh))
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    def length(self) -> float:
        """Return the Euclidean length of all gradients together."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def step(self, done: float) -> None:
        """Update the parameters and clear the gradients. done: share of the run that is done."""
        factor = rate_at(done, self.settings)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of each optimizer."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Load the state of a run of the same recipe."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
            for parameter, kept in optimizer.state.items():
                for name, value in kept.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        # The optimizer's own memory layout.
                        kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def rate_at(done: float, settings: recipe.Optimizer) -> float:
    """Return the factor of all learning rates after the share `done` of the run."""
    if done < settings.warmup:
        return done / settings.warmup
    left = (1 - done) / (1 - settings.warmup) if settings.warmup < 1 else 1.0
    return left if settings.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def _trainable(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p for p in parameters if p.requires_grad]


def _made(
    settings: recipe.Optimizer, grown: list[Tensor], fresh: list[Tensor]
) -> list[torch.optim.Optimizer]:
    if not grown and not fresh:
        return []
    decay = settings.weight_decay
    other_lr = settings.other_lr or settings.lr
    muon: list[torch.optim.Optimizer] = []
    lr = settings.lr
    if settings.name == "muon":
        matrices, lr = [p for p in grown if p.ndim > 1], other_lr
        grown = [p for p in grown if p.ndim < 2]
        muon = [Muon(matrices, settings.lr, settings.momentum)] if matrices else []
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": lr_of_family, "weight_decay": weight_decay}
        for family, lr_of_family in ((grown, lr), (fresh, other_lr))
        for parameters, weight_decay in (
            ([p for p in family if p.ndim > 1], decay),
            ([p for p in family if p.ndim < 2], 0.0),  # biases and norms are not decayed
        )
        if parameters
    ]
    if settings.name == "muon":
        return [*muon, *([torch.optim.AdamW(groups, betas=ADAM_BESIDE_MUON)] if groups else [])]
    if settings.name == "sgd":
        nesterov = settings.momentum > 0
        return [torch.optim.SGD(groups, settings.lr, settings.momentum, nesterov=nesterov)]
    return [torch.optim.AdamW(groups, settings.lr)]
