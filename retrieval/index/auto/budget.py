"""The time that the choice of an index may take."""

import time
from dataclasses import dataclass, field

DEFAULT_SECONDS = 60.0
BUILD_FACTOR = 1.1
"""Without a budget, trials and the build may take this multiple of the build, if it is longer than
DEFAULT_SECONDS."""


@dataclass(slots=True)
class Budget:
    """The time for trials and the build; it begins when this is made.

    seconds: the limit; None for DEFAULT_SECONDS, or for more if the best index takes longer to
    build.
    needed: the expected seconds of the build over all rows: of the soonest built among those that
    may be the best.
    notes: what the limit changed, for people.
    """

    seconds: float | None = None
    needed: float = 0.0
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    ended: bool = False

    @property
    def elapsed(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self.began

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        limit = self.seconds or max(DEFAULT_SECONDS, BUILD_FACTOR * self.needed)
        return limit - self.elapsed

    def allows(self, seconds: float) -> bool:
        """Return whether a build over all rows that takes these seconds is in time."""
        return seconds <= max(self.left, self.needed)

    def is_spent(self) -> bool:
        """Return whether no time is left for trials, but for the build."""
        if not self.ended and self.left < self.needed:
            self.end("to leave time for the build")
        return self.ended

    def end(self, why: str) -> None:
        """End the trials."""
        self.ended = True
        self.notes.append(f"trials ended after {self.elapsed:.0f} s {why}")
