"""The contract of the plug-in that trains encoders for `retr train`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from retrieval.contracts import Json
from retrieval.storage.cards import Card


class Trainer(Protocol):
    """Runs recipes."""

    def recipes(self) -> Mapping[str, str]:
        """Return the name and the purpose of each recipe that ships."""

    def recipe_warnings(self, recipe: str, changes: Sequence[str]) -> Sequence[str]:
        """Return warnings about settings that are valid but probably unintended."""

    def train(
        self,
        recipe: str,
        changes: Sequence[str],
        folder: Path,
        *,
        data: Path | None,
        device: str,
        on_step: Callable[[int, int], None],
        on_epoch: Callable[[Mapping[str, Json]], None],
    ) -> Card:
        """Train an encoder into `folder`, or continue a stopped run there, and return its card.

        recipe: a name or a TOML file; changes: `KEY=VALUE` each; data: where data sets lie;
        device: auto, cpu or cuda. on_step is called with the images done and the images in all,
        on_epoch with each row of the log, those from before a stop too. Neither is called if the
        folder already holds the trained encoder.
        """

    def forward_pass(self, device: str) -> AbstractContextManager[object]:
        """Return the context that a training step's forward pass runs in (precision, kernels)."""
