"""Scores of a network in training: how well its images find others of their class."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from encoders.inference import fast_inference, floats
from encoders.training.batches.training_set import NO_LABEL
from encoders.training.setup import RunSetup
from retrieval.choices import choice
from retrieval.contracts import Images, Json, Metric, Vectors
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled

MEASURES = ("map", "precision_at_10", "knn_accuracy")
MAX_SCORED_IMAGES = 1_000
"""Images scored after an epoch; after the last, all held-out images are."""


def embed(network: nn.Module, images: Images, device: torch.device, batch: int) -> Vectors:
    """Return the outputs (n, dim) of the network for images (n, side, side, 3).

    batch: images per forward pass. Raises FloatingPointError for outputs that are not finite.
    """
    vectors = np.empty((len(images), 0), np.float32)
    with torch.inference_mode(), fast_inference(device):
        for start in range(0, len(images), batch):
            pixels = torch.from_numpy(images[start : start + batch]).to(device)
            output = network(floats(pixels)).float().cpu().numpy()
            if not start:
                vectors = np.empty((len(images), output.shape[1]), np.float32)
            vectors[start : start + len(output)] = output
    if not np.isfinite(vectors).all():
        raise FloatingPointError("the network's embeddings of its own images are not finite")
    return vectors


def score(setup: RunSetup, limit: int | None = None) -> dict[str, Json]:
    """Return retrieval measures of held-out images, or of training images if none are held out.

    limit: maximum number of images; None: all held-out images.
    """
    data, network = setup.data, setup.network
    rows, kind = rows_to_show(setup, limit)
    names = [data.names[label] for label in data.labels[rows].tolist()]
    return _measures(
        network.embedder().to(setup.device).eval(),
        data.images[rows],
        [None if name == NO_LABEL else name for name in names],
        kind,
        setup.device,
        network.metric,
        network.at_once,
    )


def rows_to_show(setup: RunSetup, limit: int | None) -> tuple[NDArray[np.int64], str]:
    """Return rows of held-out images and "held-out", or of training images and "training"."""
    rows, kind = setup.data.held_out, "held-out"
    if not len(rows):
        rows, kind, limit = setup.data.training, "training", MAX_SCORED_IMAGES
    if limit is None or limit >= len(rows):
        return rows, kind
    draw = np.random.default_rng(setup.recipe.seed).permutation(len(rows))[:limit]
    return rows[np.sort(draw)], kind


def _measures(
    network: nn.Module,
    images: Images,
    labels: Sequence[str | None],
    kind: str,
    device: torch.device,
    metric: Metric | str,
    batch: int,
) -> dict[str, Json]:
    """Return the measures of each image as a query against the others.

    kind: what the images are, for people. Measures are None if no two images share a label.
    """
    metric = choice(Metric, metric)
    scored_on: dict[str, Json] = {"scored_on": f"{len(images):,} {kind} images"}
    known = [label for label in labels if label is not None]
    if len(known) == len({*known}):
        return scored_on | dict.fromkeys(MEASURES)
    vectors = embed(network, images, device, batch)
    ids = [str(row) for row in range(len(vectors))]
    labelled = Labelled(vectors, ids, labels)
    result = evaluate(labelled, labelled, metric, (1, 10))
    values = (result.map, result.precision_at[10], result.knn_accuracy)
    return scored_on | dict(zip(MEASURES, values, strict=True))
