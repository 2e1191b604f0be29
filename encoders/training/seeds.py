"""Seeds of a run: every random draw follows from the recipe's seed and its place in the run."""

import hashlib

import torch
from torch import Generator


def seed_of(*place: object) -> int:
    """Return the seed for this place of a run; any other place has an unrelated one."""
    digest = hashlib.sha256("/".join(map(str, place)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def generator_of(*place: object, device: torch.device | str = "cpu") -> Generator:
    """Return a random generator with the seed of this place of a run."""
    return torch.Generator(device).manual_seed(seed_of(*place))
