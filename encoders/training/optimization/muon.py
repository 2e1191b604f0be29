"""Muon: momentum, orthogonalised by Newton-Schulz, for matrices and convolution filters.

After Keller Jordan, https://kellerjordan.github.io/posts/muon/ (2024), in the form that its
author used for CIFAR-10: the weights of each layer are held at a fixed norm, so that the
learning rate alone says how far a step turns them.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# The quintic of the post: its slope at zero is large and its fixed points lie around 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """Return the (m, n) matrix with singular values moved toward 1, in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    wide = x if x.size(0) <= x.size(1) else x.T
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    result: Tensor = wide if x.size(0) <= x.size(1) else wide.T
    return result


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalised, for parameters of 2 or more dimensions."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.6, steps: int = 3
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step from the gradients that the parameters hold."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum"]
                buffer.mul_(group["momentum"]).add_(parameter.grad)
                update = parameter.grad.add(buffer, alpha=group["momentum"])
                parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                matrix = orthogonalised(update.reshape(len(update), -1), group["steps"])
                parameter.add_(matrix.reshape(update.shape), alpha=-group["lr"])
