"""A training run: epochs of steps with regular checkpoints, then publication.

Every random draw of a step follows from the recipe's seed, the epoch and the step. So a run that
was killed and continues from its checkpoint ends with the same weights as an unbroken one.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encoders.inference import floats, keep_freed_memory
from encoders.training.batches.sampling import batches
from encoders.training.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from encoders.training.optimization.batch_loss import BatchLoss
from encoders.training.optimization.losses import Term
from encoders.training.optimization.optimizers import Optimizers
from encoders.training.publishing import (
    rounded_weights,
    write_card,
    write_drawings,
    write_image_ids,
    write_weights,
)
from encoders.training.reports import draw_log, write_log
from encoders.training.scoring import MAX_SCORED_IMAGES, embed, score
from encoders.training.seeds import generator_of, seed_of
from encoders.training.setup import RunSetup, check_same_recipe
from retrieval.contracts import Json
from retrieval.errors import BadData, RetrError
from retrieval.storage.cards import Card

CHECKPOINT_VERSION = 1
CHECKPOINT_SECONDS = 60
CURVES_SECONDS = 10
"""Minimum time between two drawings of the curves. A drawing takes longer than a small epoch."""
MAX_SAMPLE_PIXELS = 10_000 * 32 * 32
"""Pixels of the sample of images that `Network.prepare` is given."""

OnStep = Callable[[int, int], None]
OnEpoch = Callable[[Mapping[str, Json]], None]


@dataclass(slots=True)
class Position:
    """Progress of a run."""

    epoch: int = 0
    step: int = 0  # within the epoch
    losses: list[float] = field(default_factory=list)  # one for each step of this epoch so far
    seconds: float = 0.0  # spent in this epoch
    total_seconds: float = 0.0  # spent in earlier epochs and in the setup


class Run:
    """One training run in a folder; it continues from the folder's checkpoint, if there is one."""

    def __init__(self, setup: RunSetup, folder: Path) -> None:
        """Move network and images to the device, and load the checkpoint.

        Raises Mismatch for a checkpoint of another run, BadData for a damaged one.
        """
        keep_freed_memory()
        self.setup, self.folder = setup, folder
        self.recipe, self.network = setup.recipe, setup.network
        self.terms = setup.terms.to(setup.device)
        self.batch_loss = BatchLoss(setup)
        self.training = torch.from_numpy(setup.data.training)
        self.network.to(setup.device)
        if not self.recipe.start:
            self.network.prepare(self._sample())
        self.network.to(memory_format=torch.channels_last)
        self.weights_at_start = (
            {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
            if self.recipe.keep_start
            else {}
        )
        self.optimizers = Optimizers(self.recipe.optimizer, self.network, self.terms)
        self.position = Position()
        self.rows: list[dict[str, Json]] = []
        self.drawn = time.perf_counter()  # when the curves were last drawn
        self.load()

    def _sample(self) -> Tensor:
        """Return some training images, spread over all: folders list images class by class."""
        training = self.setup.data.training
        most = max(1, MAX_SAMPLE_PIXELS // self.setup.framing.side**2)
        sample = training[:: -(-len(training) // most)]
        return floats(self.batch_loss.pixels[torch.from_numpy(sample)])

    def finish(self, on_step: OnStep, on_epoch: OnEpoch) -> Card:
        """Train to the end, publish weights, card, log and curves, and return the card.

        Raises RetrError if a number is no longer finite.
        """
        try:
            for row in self.rows:
                on_epoch(row)
            while self.position.epoch < self.recipe.epochs:
                on_epoch(self.epoch(on_step))
            trained = time.perf_counter()
            self.average()
            if self.network.needs_features:
                self.keep_proxies()
                self.network.load_state_dict(rounded_weights(self.network))  # as they are written
                self.fit()
            return self.publish(trained)
        except FloatingPointError as error:
            raise RetrError(
                f"{error}; {self.last_checkpoint()}; train into another --out with a lower "
                f"optimizer.lr than {self.recipe.optimizer.lr}"
            ) from None

    def average(self) -> None:
        """Mix the weights with those at the start, by the share that the recipe gives.

        Wortsman et al., Robust fine-tuning of zero-shot models (CVPR 2022): the mean of weights
        before and after a fine-tuning may be better than either. No checkpoint is written after
        this, so that no run does it twice.
        """
        share = self.recipe.keep_start
        if not share:
            return
        with torch.no_grad():
            for name, tensor in self.network.state_dict().items():
                if tensor.is_floating_point():
                    tensor.lerp_(self.weights_at_start[name], share)
        self.setup.start.hand_over(self.terms, self.setup.data.names, share)

    def fit(self) -> None:
        """Fit the parts of the network that need the features of all training images."""
        data, device = self.setup.data, self.setup.device
        extractor = self.network.features().to(device).eval()
        features = embed(extractor, data.images[data.training], device, self.network.at_once)
        labels = torch.from_numpy(data.labels[data.training])
        torch.manual_seed(seed_of(self.recipe.seed, "fit"))
        self.network.fit(torch.from_numpy(features), labels)

    def epoch(self, on_step: OnStep) -> dict[str, Json]:
        """Train the rest of the current epoch, score it, and return its row of the log."""
        here, recipe = self.position, self.recipe
        order = generator_of(recipe.seed, "order", here.epoch)
        labels = torch.from_numpy(self.setup.data.labels[self.setup.data.training])
        batch_rows = batches(recipe.sampler, labels, order)
        images = len(batch_rows) * recipe.sampler.batch
        self.network.train()
        started = saved = time.perf_counter()
        before = here.seconds
        while here.step < len(batch_rows):
            done = (here.epoch + here.step / len(batch_rows)) / recipe.epochs
            here.losses.append(self.step(self.training[batch_rows[here.step]], done))
            here.step += 1
            now = time.perf_counter()
            here.seconds = before + now - started
            on_step(here.epoch * images + here.step * recipe.sampler.batch, recipe.epochs * images)
            if now - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.perf_counter()
        trained = time.perf_counter()
        self.keep_proxies()
        metrics = score(self.setup, MAX_SCORED_IMAGES)
        row: dict[str, Json] = {
            "epoch": here.epoch + 1,
            "loss": float(np.mean(here.losses)),
            "seconds": round(here.seconds, 1),
            "images_per_second": round(images / here.seconds, 1),
            **metrics,
        }
        self.rows.append(row)
        total = here.total_seconds + here.seconds + time.perf_counter() - trained
        self.position = Position(epoch=here.epoch + 1, total_seconds=total)
        self.save()
        self.report()
        return row

    def report(self) -> None:
        """Write the log. Draw its curves if they were not drawn within `CURVES_SECONDS`."""
        write_log(self.folder, self.rows)
        if time.perf_counter() - self.drawn > CURVES_SECONDS:
            draw_log(self.folder, self.rows)
            self.drawn = time.perf_counter()

    def step(self, rows: Tensor, done: float) -> float:
        """Train on the images of these rows (n,) and return the loss.

        done: share of the run that is done. Raises FloatingPointError for a loss or a gradient
        that is not finite, before it changes a weight: so checkpoints stay good.
        """
        here = self.position
        loss = self.batch_loss.of_step(rows, here.epoch, here.step)
        loss.backward()
        value = loss.item()
        for name, met in (("loss", value), ("length of its gradient", self.optimizers.length())):
            if not math.isfinite(met):
                raise FloatingPointError(
                    f"the {name} is {met} in epoch {here.epoch + 1}, step {here.step + 1}"
                )
        self.optimizers.step(done)
        return value

    def keep_proxies(self) -> None:
        """Give the network the class proxies of the losses, if its embeddings use them."""
        found = (term.proxies() for term in self.terms if isinstance(term, Term))
        proxies = next((proxies for proxies in found if proxies is not None), None)
        if self.network.proxies is not None and proxies is not None:
            self.network.keep_proxies(proxies)

    def save(self) -> None:
        """Replace the checkpoint by the current state."""
        here = self.position
        state = {
            "version": CHECKPOINT_VERSION,
            "recipe": self.recipe.to_json(),
            "data": self.setup.origin(),
            "epoch": here.epoch,
            "step": here.step,
            "losses": here.losses,
            "seconds": here.seconds,
            "total_seconds": here.total_seconds,
            "rows": self.rows,
            "network": self.network.state_dict(),
            "terms": self.terms.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }
        save_checkpoint(self.folder, state)

    def load(self) -> None:
        """Load the folder's checkpoint, if there is one. Raises Mismatch if it is another run's."""
        state = load_checkpoint(self.folder)
        if state is None:
            return
        file = self.folder / CHECKPOINT
        if state.get("version") != CHECKPOINT_VERSION:
            raise BadData(
                f"{file} has version {state.get('version')}, this retr writes "
                f"{CHECKPOINT_VERSION}; delete it to train from the start"
            )
        check_same_recipe(file, state["recipe"], self.recipe)
        self.setup.check_origin(file, state["data"])
        self.position = Position(
            state["epoch"],
            state["step"],
            state["losses"],
            state["seconds"],
            state["total_seconds"],
        )
        self.rows = state["rows"]
        self.network.load_state_dict(state["network"])
        self.terms.load_state_dict(state["terms"])
        self.optimizers.load_state_dict(state["optimizers"])

    def last_checkpoint(self) -> str:
        """Return a phrase for people that names the last good checkpoint."""
        state = load_checkpoint(self.folder)
        if state is None:
            return "there is no checkpoint yet"
        return (
            f"the last good checkpoint is of epoch {state['epoch'] + 1}, step {state['step']}, "
            f"in {self.folder / CHECKPOINT}"
        )

    def publish(self, trained: float) -> Card:
        """Write the trained encoder, its card last, and remove the checkpoint.

        trained: time of `time.perf_counter` at the end of the last epoch.
        """
        self.keep_proxies()
        weights = rounded_weights(self.network)
        write_weights(self.folder, weights)
        self.network.load_state_dict(weights)  # score the weights that were written
        if self.rows:
            write_log(self.folder, self.rows)
            draw_log(self.folder, self.rows)
        if self.network.draws:
            write_drawings(self.setup, self.folder)
        write_image_ids(self.setup, self.folder)
        metrics = score(self.setup)
        seconds = self.position.total_seconds + time.perf_counter() - trained
        card = write_card(self.setup, self.folder, seconds, metrics)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return card
