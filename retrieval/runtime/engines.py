"""The engines that run work."""

from enum import StrEnum


class Engine(StrEnum):
    """Engine of an encoding, a build or a search. ray: needs the extra `retr[ray]`."""

    LOCAL = "local"
    RAY = "ray"
