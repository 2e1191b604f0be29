"""What `retr train` asks of the plug-in that trains encoders."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from retrieval.contracts import Json
from retrieval.storage.cards import Card


class Trainer(Protocol):
    """Runs recipes."""

    def recipes(self) -> Mapping[str, str]:
        """The recipes that ship, and what each is for."""

    def doubts(self, recipe: str, changes: Sequence[str]) -> Sequence[str]:
        """What can be trained as the recipe says, and is seldom meant."""

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
        """Train what the recipe says into `folder`, or go on there; return its card.

        recipe: a name or a TOML file; changes: `KEY=VALUE` each; data: where data sets lie;
        device: auto, cpu or cuda. on_step is called with images done and to do, on_epoch with
        each row of the log, those from before a stop too; neither where all is done already.
        """

    def forward_pass(self, device: str) -> AbstractContextManager[object]:
        """What a step's forward pass runs in: its precision, and how its gradients will come."""
