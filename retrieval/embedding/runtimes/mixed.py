"""Find the layers of a network that rounding hurts, and leave those in float32.

The noise that rounding adds to embeddings is nearly the sum of what each layer adds. So groups of
layers are measured, and the noisiest is divided until the rest keeps within the limit: a few bad
layers among many are found in few measurements. The first layer is divided off first: it sees
pixels, and is the one that rounding hurts in most networks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Layer = tuple[str, ...]
"""Names of the operators that share one set of weights."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """The layers to round, and the noise that it adds, see `Deviation`."""

    layers: tuple[Layer, ...]
    noise: float


def rounded_layers(
    layers: Sequence[Layer],
    noise_of: Callable[[Sequence[Layer]], float],
    limit: float,
    seconds: float,
) -> Rounded | None:
    """Return as many layers to round as the limit of noise permits; None if there are none.

    noise_of: measures the noise when these layers, and no others, are rounded. seconds: after
    which groups are no longer divided, but left in float32 as a whole.
    """
    if not layers:
        return None
    deadline = time.monotonic() + seconds
    groups = [Rounded(tuple(layers), noise_of(layers))]
    while groups and sum(group.noise for group in groups) > limit:
        worst = _pop_noisiest(groups)
        whole = len(worst.layers) == len(layers)
        middle = min(1, len(layers) - 1) if whole else len(worst.layers) // 2
        if middle and time.monotonic() < deadline:
            halves = worst.layers[:middle], worst.layers[middle:]
            groups += [Rounded(half, noise_of(half)) for half in halves]
    while groups:
        together = _joined(layers, groups)
        noise = groups[0].noise if len(groups) == 1 else noise_of(together)
        if noise <= limit:
            return Rounded(together, noise)
        _pop_noisiest(groups)
    return None


def _pop_noisiest(groups: list[Rounded]) -> Rounded:
    worst = max(groups, key=lambda group: group.noise)
    groups.remove(worst)
    return worst


def _joined(layers: Sequence[Layer], groups: Sequence[Rounded]) -> tuple[Layer, ...]:
    """Return the layers of all groups, in the order of the network."""
    chosen = {layer for group in groups for layer in group.layers}
    return tuple(layer for layer in layers if layer in chosen)
