"""The plug-in of `retr train`: reads a recipe, and runs it in a folder."""

import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from encoders.inference import torch_device
from encoders.training.checkpoints import CHECKPOINT
from encoders.training.checks import check_recipe, recipe_warnings
from encoders.training.optimization.batch_loss import forward_pass
from encoders.training.recipe import Recipe, read_recipe, recipe_names
from encoders.training.run import OnEpoch, OnStep, Run
from encoders.training.setup import check_same_recipe, complete, network_settings, set_up
from retrieval.errors import CannotWrite, RetrError
from retrieval.storage.cards import CARD, Card, is_trained
from retrieval.storage.files import locked, made_folder


class RecipeTrainer:
    """Trains encoders from recipes."""

    def recipes(self) -> dict[str, str]:
        """Return the name and the purpose of each recipe that ships."""
        return {name: read_recipe(name).about for name in recipe_names()}

    def recipe_warnings(self, recipe: str, changes: list[str]) -> list[str]:
        """Return warnings about settings that are valid but probably unintended.

        Raises BadInput and its kinds for an invalid recipe.
        """
        read = read_recipe(recipe, changes)
        return recipe_warnings(replace(read, network=network_settings(read)))

    def train(
        self,
        recipe: str,
        changes: list[str],
        folder: Path,
        *,
        data: Path | None,
        device: str,
        on_step: OnStep,
        on_epoch: OnEpoch,
    ) -> Card:
        """Train an encoder into `folder`, unless it is there already, and return its card.

        recipe: a name or a TOML file; changes: `KEY=VALUE`. A stopped run continues from its
        checkpoint. on_step is called with the images done and the images in all, on_epoch with
        each row of the log.

        Raises BadInput and its kinds for a recipe that cannot be trained, Mismatch if the folder
        holds another run, RetrError if the loss is no longer finite or the disk is full.
        """
        return train(read_recipe(recipe, changes), folder, data, device, on_step, on_epoch)

    def forward_pass(self, device: str) -> AbstractContextManager[object]:
        """Return the context that a training step's forward pass runs in (precision, kernels)."""
        return forward_pass(torch_device(device))


def train(
    recipe: Recipe,
    folder: Path,
    data_folder: Path | None = None,
    device: str = "auto",
    on_step: OnStep = lambda done, total: None,
    on_epoch: OnEpoch = lambda row: None,
) -> Card:
    """Train a parsed recipe; see `RecipeTrainer.train`."""
    began = time.perf_counter()
    recipe = complete(recipe)
    check_recipe(recipe)
    if is_trained(folder):
        check_same_recipe(folder / CARD, Card.read(folder).training.recipe, recipe)
    setup = set_up(recipe, data_folder, device)
    made_folder(folder)
    with locked(folder):
        if is_trained(folder):
            card = Card.read(folder)
            check_same_recipe(folder / CARD, card.training.recipe, recipe)
            setup.check_origin(folder / CARD, card.training.data)
            (folder / CHECKPOINT).unlink(missing_ok=True)  # left by a run killed after its card
            return card
        try:
            run = Run(setup, folder)
            run.position.total_seconds += time.perf_counter() - began
            return run.finish(on_step, on_epoch)
        except BrokenPipeError:
            raise  # the reader of the epochs' rows is gone
        except (OSError, CannotWrite) as error:
            raise RetrError(
                f"cannot write into {folder} ({error.strerror}); the last checkpoint is whole: "
                "make room and run the same command again"
            ) from error
