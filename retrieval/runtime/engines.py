"""The engines that run work."""

from enum import StrEnum


class Engine(StrEnum):
    """What runs an encoding, a build or a search. ray: needs the extra `retr[ray]`."""

    LOCAL = "local"
    RAY = "ray"
