"""Checks before a run begins: whether recipe, images and network go together."""

from collections.abc import Sequence

import torch
from torch import nn

from encoders.networks import Network
from encoders.training.batches.sampling import check_sampler
from encoders.training.batches.training_set import NO_LABEL, TrainingSet
from encoders.training.optimization.captions import captions_of
from encoders.training.optimization.losses import (
    CAPTIONS,
    OF_NETWORKS,
    RECONSTRUCTION,
    Term,
    check_loss,
    has_classes,
)
from encoders.training.recipe import Loss, Recipe
from retrieval.errors import BadInput

SIZE_ERRORS = (
    RuntimeError,
    AssertionError,
    ValueError,
)  # raised by networks for a wrong image size


def check_recipe(recipe: Recipe) -> None:
    """Raise BadInput and its kinds for a recipe that cannot be trained on any data."""
    if recipe.epochs and not recipe.losses:
        raise BadInput("the recipe has no loss to train by; add [[losses]], or set epochs to 0")
    if recipe.keep_start and not recipe.start:
        raise BadInput("keep_start needs an encoder to start from; set start, or remove keep_start")
    for loss in recipe.losses:
        check_loss(loss, recipe.sampler.name == "pairs")
    terms = [loss for loss in recipe.losses if loss.name not in OF_NETWORKS]
    _check_clusters(recipe)
    _check_views(recipe, terms)
    if 0 < recipe.data.side <= recipe.augmentation.translate:
        raise BadInput(
            f"images of {recipe.data.side} pixels cannot be shifted by "
            f"{recipe.augmentation.translate}; set augmentation.translate lower"
        )


def recipe_warnings(recipe: Recipe) -> list[str]:
    """Return warnings about settings that are valid but probably unintended.

    The settings of the recipe's network include the defaults.
    """
    mirrored = recipe.network.get("mirror") and recipe.augmentation.flip == "none"
    if not (recipe.epochs and mirrored):
        return []
    return [
        "embeddings average an image and its mirror image, but the training never shows mirror "
        "images; set network.mirror to false, or augmentation.flip to random"
    ]


def check_data(recipe: Recipe, network: type[Network], data: TrainingSet) -> None:
    """Raise BadInput for too few or too many images, or images without required labels."""
    if recipe.epochs:
        check_sampler(recipe.sampler, torch.from_numpy(data.labels[data.training]), data.names)
    if network.max_images is not None and len(data.training) > network.max_images:
        raise BadInput(
            f"{recipe.encoder} is trained on at most {network.max_images} images, got "
            f"{len(data.training):,}; set data.per_class lower"
        )
    captions_of(recipe.captions, data.names)
    by_class = any(loss.labels == "class" for loss in recipe.losses if loss.name != RECONSTRUCTION)
    if NO_LABEL in data.names and (by_class or network.fits_labels):
        raise BadInput(
            f"some images of {data.source} have no label, which the training needs; name the "
            'classes with data.classes, or set labels = "image" for each loss'
        )


def check_network(recipe: Recipe, network: Network, terms: nn.ModuleList, images: int) -> None:
    """Raise BadInput if the network cannot be trained with these losses or images.

    images: number of training images.
    """
    if images <= network.fitted_axes:
        raise BadInput(
            f"whitening to {network.fitted_axes} numbers needs more training images than that, got "
            f"{images}; set network.dim lower"
        )
    if not network.draws and any(loss.name == RECONSTRUCTION for loss in recipe.losses):
        raise BadInput(
            f"the loss {RECONSTRUCTION} needs drawings, and {recipe.encoder} draws no images; "
            "remove it, or train an autoencoder"
        )
    _check_captions(recipe, network)
    found = [term.proxies() for term in terms if isinstance(term, Term)]
    if network.proxies is not None and all(proxies is None for proxies in found):
        raise BadInput(
            "the network's settings need class proxies, and no loss of the recipe has any; "
            "add the loss normalised-softmax, or remove network.class_sharpness"
        )
    training = network.training
    network.eval()
    if recipe.epochs:
        _check_outputs(recipe, network)
    side = recipe.data.side
    try:
        with torch.inference_mode():
            network.embedder().eval()(torch.zeros(2, 3, side, side))
    except SIZE_ERRORS as error:
        raise BadInput(
            f"the network cannot embed images of {side} × {side} pixels ({error}); change "
            "data.side or [network]"
        ) from None
    network.train(training)


def _check_captions(recipe: Recipe, network: Network) -> None:
    """Raise BadInput for captions without a text tower, or a text tower without captions."""
    wanted = any(loss.name == CAPTIONS for loss in recipe.losses)
    reads = network.caption_logits(torch.zeros(1, network.training_dim), ["x"]) is not None
    if wanted and not reads:
        raise BadInput(
            f"the loss {CAPTIONS} needs a text tower, and {recipe.encoder} has none; remove it, or "
            "train words"
        )
    if reads and recipe.epochs and not wanted:
        raise BadInput(
            f"the text tower of {recipe.encoder} learns nothing without the loss {CAPTIONS}; add it"
        )


def _check_outputs(recipe: Recipe, network: Network) -> None:
    crops = recipe.augmentation.crop_side
    side = crops or recipe.data.side
    try:
        outputs = network.outputs(torch.zeros(2, 3, side, side))
    except SIZE_ERRORS as error:
        what, key = ("crops", "augmentation.crop_side") if crops else ("images", "data.side")
        raise BadInput(
            f"the network cannot process {what} of {side} × {side} pixels ({error}); change {key}"
        ) from None
    names = {loss.name for loss in recipe.losses}
    seen = [outputs.embeddings] if names != {RECONSTRUCTION} else []
    if RECONSTRUCTION in names and outputs.drawn is not None:
        seen.append(outputs.drawn)
    if not any(output.requires_grad for output in seen):
        raise BadInput(
            f"no weight of this {recipe.encoder} network learns from the recipe's losses; set "
            "epochs to 0, or change [network] or [[losses]]"
        )


def _check_clusters(recipe: Recipe) -> None:
    wanted = any(loss.labels == "cluster" for loss in recipe.losses)
    if wanted and not recipe.data.clusters:
        raise BadInput(
            "a loss needs clusters, and there are none; set data.clusters and data.clustered_by"
        )
    if not wanted and (recipe.data.clusters or recipe.data.clustered_by):
        raise BadInput(
            "no loss uses clusters; remove data.clusters and data.clustered_by, or set labels = "
            '"cluster" for a loss'
        )


def _check_views(recipe: Recipe, terms: Sequence[Loss]) -> None:
    """Raise BadInput if a loss would see only similar pairs, or only dissimilar ones."""
    views = recipe.augmentation.views
    if recipe.augmentation.cutmix and (views > 1 or recipe.sampler.name == "pairs"):
        raise BadInput(
            "augmentation.cutmix mixes images of a batch, whose pairs then have no single label; "
            "remove it, or take one view and another sampler than pairs"
        )
    for loss in terms:
        if loss.labels == "image" and views < 2:
            raise BadInput(
                f'loss {loss.name} with labels = "image" needs two views of each image; set '
                "augmentation.views to 2"
            )
        if loss.labels == "image" and has_classes(loss.name):
            raise BadInput(
                f"loss {loss.name} needs a proxy for each class, and there are too many images for "
                "that; take another loss, or other labels"
            )
        if recipe.sampler.name == "pairs" and loss.miner is None:
            if views > 1:
                raise BadInput(
                    "the sampler pairs needs one view of each image; set augmentation.views to 1, "
                    "or take another sampler"
                )
            if loss.labels != "class":
                raise BadInput(
                    f"the sampler pairs draws pairs by class, and loss {loss.name} has labels = "
                    f'"{loss.labels}"; take another sampler'
                )
