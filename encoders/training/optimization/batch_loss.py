"""The loss of one training step: augmented images, through the network, to a number."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from encoders.inference import autocast, floats
from encoders.training.batches.augmentation import Mixed, augmented, cut_mixed
from encoders.training.optimization.captions import caption_loss, captions_of, drawn_captions
from encoders.training.optimization.depthwise import FastDepthwise
from encoders.training.optimization.losses import CAPTIONS, RECONSTRUCTION, Term, pairs_of
from encoders.training.seeds import generator_of, seed_of
from encoders.training.setup import RunSetup


@contextmanager
def forward_pass(device: torch.device) -> Iterator[None]:
    """Run the body in the precision of a training step, with fast depthwise convolutions."""
    with autocast(device), FastDepthwise():
        yield


class BatchLoss:
    """Losses of batches; images and labels of the whole training set are kept on the device."""

    def __init__(self, setup: RunSetup) -> None:
        """Copy images and labels to the device."""
        recipe, data, device = setup.recipe, setup.data, setup.device
        self.recipe, self.network, self.terms = recipe, setup.network, setup.terms
        self.device = device
        self.drawing_weight, self.caption_weight = (
            sum(loss.weight for loss in recipe.losses if loss.name == name)
            for name in (RECONSTRUCTION, CAPTIONS)
        )
        self.captions = captions_of(recipe.captions, data.names)
        self.texts: list[str] = []  # captions of the current step
        self.text_classes = torch.empty(0, dtype=torch.int64)
        self.pixels = torch.from_numpy(data.images).to(device)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.clusters = torch.from_numpy(data.clusters).to(device)
        coins = torch.rand(len(data.images), generator=generator_of(recipe.seed, "coin"))
        self.mirrored_first = (coins < 0.5).to(device)

    def of_step(self, rows: Tensor, epoch: int, step: int) -> Tensor:
        """Return the loss of the images of these rows (n,), augmented for this step."""
        recipe = self.recipe
        place = (recipe.seed, "step", epoch, step)
        torch.manual_seed(seed_of(*place))  # for dropout
        generator = generator_of(*place, device=self.device)
        rows = rows.to(self.device)
        if self.caption_weight:
            self.texts, self.text_classes = drawn_captions(
                self.captions, recipe.captions.per_class, generator_of(*place, "captions")
            )
        images = augmented(
            floats(self.pixels[rows]),
            recipe.augmentation,
            epoch,
            self.mirrored_first[rows],
            generator,
        )
        return self.of_images(cut_mixed(images, recipe.augmentation.cutmix, generator), rows)

    def of_images(self, mixed: Mixed, rows: Tensor) -> Tensor:
        """Return the recipe's loss of a batch (views · n, 3, side, side) of these rows (n,).

        An image with a part of another has two losses, by its own label and by the other's. Each
        is weighted by its share of the area.
        """
        with forward_pass(self.device):
            embeddings, drawn = self.network.outputs(mixed.images)
        embeddings = embeddings.float()
        total = mixed.kept * self.of_embeddings(embeddings, rows)
        if mixed.kept < 1:
            others = self.of_embeddings(embeddings, rows[mixed.partners])
            total = total + (1 - mixed.kept) * others
        if self.drawing_weight:
            assert drawn is not None
            # Drawings are as large as the images, and views may be smaller. The views are scaled
            # up: in scaled-down drawings, a fine grid would cost nothing.
            wanted = functional.interpolate(mixed.images, drawn.shape[-1], mode="bilinear")
            total = total + self.drawing_weight * functional.mse_loss(drawn.float(), wanted)
        return total

    def of_embeddings(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Return the loss of embeddings (views · n, dim) with the labels of these rows (n,)."""
        views = self.recipe.augmentation.views
        labels = {
            "class": self.labels[rows].repeat(views),
            "cluster": self.clusters[rows].repeat(views),
            "image": torch.arange(len(rows), device=self.device).repeat(views),
        }
        pairs = pairs_of(labels["class"]) if self.recipe.sampler.name == "pairs" else None
        total = embeddings.new_zeros(())
        for term in self.terms:
            assert isinstance(term, Term)
            total = total + term(embeddings, labels[term.settings.labels], pairs)
        if self.caption_weight:
            total = total + self.caption_weight * caption_loss(
                self.network, embeddings, labels["class"], self.texts, self.text_classes
            )
        return total
